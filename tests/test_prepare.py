"""One video prepared: which faults of its product's images it survives."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from mixed_catalogue import write_clip, write_strange_card

from catalog import storage
from catalog.errors import ErrorCode, VideoError
from catalog.sampling import SamplingConfig
from catalog.world import WorldPaths
from scoring.prepare import Prepared, Request, make_prepare
from scoring.settings import ProductConfig


def prepared(folder: Path, *images: str) -> Prepared:
    write_clip(folder / "clip.mp4", 2)
    write_strange_card(folder / "card.png")
    cv2.imwrite(str(folder / "blank.png"), np.full((200, 200, 3), 255, np.uint8))
    prepare = make_prepare(SamplingConfig(), ProductConfig(), 64)
    return prepare(Request(f"{folder}/clip.mp4", "p1", tuple(f"{folder}/{image}" for image in images)))


def test_one_good_image_is_enough_whether_the_others_are_absent_or_blank(tmp_path: Path) -> None:
    result = prepared(tmp_path, "nowhere.png", "card.png", "blank.png")
    assert result.clip.shape == (2, 64, 64, 3)
    assert result.detections == [None, None]


@pytest.mark.parametrize(
    ("images", "code", "words"),
    [
        (("nowhere.png",), ErrorCode.NO_PRODUCT_IMAGE, "nowhere.png cannot be read: no such file"),
        (
            ("nowhere.png", "blank.png"),
            ErrorCode.BAD_PRODUCT_IMAGE,
            "image 1: .*nowhere.png cannot be read: no such file; image 2: has only 0",
        ),
    ],
)
def test_without_any_good_image_the_reason_is_given(
    tmp_path: Path, images: tuple[str, ...], code: ErrorCode, words: str
) -> None:
    with pytest.raises(VideoError, match=words) as failure:
        prepared(tmp_path, *images)
    assert failure.value.code == code


def test_an_image_that_cannot_be_used_is_read_once_for_all_videos_of_its_product(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 2)
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((200, 200, 3), 255, np.uint8))
    prepare = make_prepare(SamplingConfig(), ProductConfig(), 64)
    for _ in range(2):
        with pytest.raises(VideoError, match="image 1: has only 0 features"):
            prepare(Request(f"{tmp_path}/clip.mp4", "p1", (f"{tmp_path}/blank.png",)))
        (tmp_path / "blank.png").unlink(missing_ok=True)


def test_an_image_that_may_come_the_next_time_is_not_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = storage.read_bytes

    def slow(uri: str, *limits: float) -> bytes:
        if "nowhere" in uri:
            raise TimeoutError("did not arrive within 120 s")
        return read_bytes(uri, *limits)  # pyright: ignore

    monkeypatch.setattr(storage, "read_bytes", slow)
    with pytest.raises(VideoError, match="did not arrive") as failure:
        prepared(tmp_path, "card.png", "nowhere.png")
    assert failure.value.code == ErrorCode.NO_PRODUCT_IMAGE


def test_products_are_found_behind_coloured_overlays_and_nowhere_else(small_world: WorldPaths) -> None:
    prepare = make_prepare(SamplingConfig(), ProductConfig(), 112)
    images = {row["product_id"]: row["image_uris"] for row in pq.read_table(small_world.products).to_pylist()}
    truth = {row["video_id"]: row for row in pq.read_table(small_world.truth).to_pylist()}
    seen, false = [], 0
    for row in pq.read_table(small_world.videos).to_pylist():
        uris = tuple(str(small_world.folder / uri) for uri in images[row["product_id"]])
        found = prepare(Request(str(small_world.folder / row["video_uri"]), row["product_id"], uris)).detections
        true = truth[row["video_id"]]
        assert found is not None
        for detection, share, occluded in zip(found, true["product_share"], true["occluded"], strict=True):
            if share >= 0.05 and not occluded:
                seen.append(detection is not None)
            false += share == 0 and detection is not None
    assert len(seen) > 20
    assert np.mean(seen) >= 0.9
    assert false == 0
