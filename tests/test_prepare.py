"""One video prepared: which faults of its product's images it survives."""

from pathlib import Path
from typing import Any

import av
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
from scoring.rows import PREPARED, prepared_row
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


def write_film(path: Path, *pictures: np.ndarray) -> str:
    """RGB pictures of one size, a second each."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture
def card_shown(tmp_path: Path) -> tuple[str, str]:
    """A video with nothing in its first second and a card in the other two, and the card's photo."""
    write_strange_card(tmp_path / "card.png")
    wall = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (640, 480, 3), dtype=np.uint8), (0, 0), 3)
    pictures = [wall, wall.copy(), wall.copy()]
    card = cv2.cvtColor(cv2.imread(f"{tmp_path}/card.png"), cv2.COLOR_BGR2RGB)
    for left, picture in zip((60, 90), pictures[1:], strict=True):
        picture[100:500, left : left + 300] = card
    return write_film(tmp_path / "film.mp4", *pictures), f"{tmp_path}/card.png"


def test_one_image_of_two_products_is_found_for_both(card_shown: tuple[str, str]) -> None:
    prepare = make_prepare(SamplingConfig(), ProductConfig(), 64)
    video, card = card_shown
    first, second = (prepare(Request(video, product, (card,))).detections for product in ("p1", "p2"))
    assert first is not None
    assert second is not None
    assert [one is not None for one in first] == [one is not None for one in second] == [False, True, True]


def test_the_published_method_gives_rows_without_probabilities(card_shown: tuple[str, str]) -> None:
    prepare = make_prepare(SamplingConfig(), ProductConfig(product_method="hull"), 64)
    video, card = card_shown
    row = prepared_row({"video_id": "v", "product_id": "p"}, prepare(Request(video, "p", (card,))))
    assert pa.Table.from_pylist([row], schema=PREPARED).num_rows == 1
    assert row["product_quads"][0] is None
    assert [len(quad) for quad in row["product_quads"][1:]] == [8, 8]
    assert row["product_probability"] == [0.0, None, None]
    assert row["product_inliers"][0] == 0
    assert min(row["product_inliers"][1:]) >= 3


def test_kept_views_serve_the_next_run(
    card_shown: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, card = card_shown

    def detections() -> list:
        prepare = make_prepare(SamplingConfig(), ProductConfig(), 64, product_cache=f"{tmp_path}/views")
        return prepare(Request(video, "p", (card,))).detections or []

    made = detections()
    assert len(list((tmp_path / "views").iterdir())) == 1
    monkeypatch.setattr("scoring.product_index.view_of", None)  # whoever computes again fails
    for before, after in zip(made, detections(), strict=True):
        assert (before is None) == (after is None)
        if before is not None:
            np.testing.assert_array_equal(before.quad, after.quad)


def test_a_video_of_one_colour_at_full_size_has_no_product(tmp_path: Path) -> None:
    write_strange_card(tmp_path / "card.png")
    video = write_film(tmp_path / "red.mp4", *[np.full((1920, 1080, 3), (200, 30, 40), np.uint8)] * 3)
    prepare = make_prepare(SamplingConfig(), ProductConfig(), 64)
    assert prepare(Request(video, "p", (f"{tmp_path}/card.png",))).detections == [None] * 3


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
