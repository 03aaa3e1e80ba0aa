"""One video prepared: which faults of its product's images it survives."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from mixed_catalogue import write_clip, write_strange_card

from catalog import storage
from catalog.errors import ErrorCode, VideoError
from catalog.sampling import SamplingConfig
from catalog.world import WorldPaths
from scoring.fingerprints import Images, fingerprints
from scoring.graph import PrepareActor
from scoring.prepare import Prepared, Request, make_prepare
from scoring.settings import ProductConfig, VideoLimits


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
        (("nowhere.png", "blank.png"), ErrorCode.BAD_PRODUCT_IMAGE, "image 1: is not an image.*image 2: has only 0"),
    ],
)
def test_without_any_good_image_the_reason_is_given(
    tmp_path: Path, images: tuple[str, ...], code: ErrorCode, words: str
) -> None:
    with pytest.raises(VideoError, match=words) as failure:
        prepared(tmp_path, *images)
    assert failure.value.code == code


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


HUNG = """
import time
from scoring import prepare

def make_child(*settings):
    answer = prepare.make_child(*settings)

    def hung(asked):
        if isinstance(asked, prepare.FingerprintOf) and "hung" in asked.request.video_uri:
            time.sleep(600)
        return answer(asked)

    return hung
"""


def test_a_file_that_hangs_when_it_is_only_named_costs_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hung_child.py").write_text(HUNG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    write_clip(tmp_path / "clip.mp4", 1)
    write_strange_card(tmp_path / "card.png")
    images: Images = {"p": ((f"{tmp_path}/card.png",), ((0.0, 0.0, 1.0, 0.0, 1.0, 1.0),))}
    actor = PrepareActor(
        [images],  # pyright: ignore
        64, SamplingConfig(), ProductConfig(), VideoLimits(video_timeout=20), None, None,
    )  # fmt: skip
    actor.child.target = "hung_child:make_child"
    paths = [f"{tmp_path}/{name}.mp4" for name in ("hung", "clip", "gone")]
    videos = pa.table({"video_id": ["a", "b", "c"], "video_uri": paths, "product_id": ["p", "p", None]})
    rows = [row for table in actor(videos) for row in table.to_pylist()]
    actor.child.close()
    assert [row["error_code"] for row in rows] == ["decode_timeout", "bad_product_image", "not_found"]
    assert [row["fingerprint"] for row in rows] == [None, fingerprints(images)(paths[1], "p"), None]


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
