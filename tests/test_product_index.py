"""Views of products are made once, kept within bounds, and made anew where what was kept is damaged."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from catalog.errors import VideoError
from scoring.product import ProductIndex, locate, view_of
from tests.cards import CARD, UPRIGHT, placed, png, quad_in, scene
from tests.test_catalogue_image import UNUSABLE


def test_a_product_without_a_usable_image_is_looked_at_once():
    index = ProductIndex()
    with pytest.raises(VideoError) as first:
        index.add("p1", [UNUSABLE["white"][0]], [None])
    assert "p1" in index
    with pytest.raises(VideoError) as again:
        index["p1"]
    assert str(again.value) == str(first.value)


def test_the_index_keeps_no_more_bytes_than_its_capacity():
    index = ProductIndex(capacity_bytes=2 * view_of(png(CARD)).nbytes)
    for name in ("a", "b", "b", "c"):
        index.add(name, [png(CARD)], [None])
    assert [name in index for name in ("a", "b", "c")] == [False, True, True]
    index.add("many", [png(CARD)] * 3, [None] * 3)
    assert [name in index for name in ("b", "c", "many")] == [False, False, True]


def test_the_bytes_of_a_view_are_what_it_takes_with_the_mirrored_one():
    view_of(png(CARD))  # what its first use loads is not the view's
    tracemalloc.start()
    view = view_of(png(CARD))
    _ = view.mirrored
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < view.nbytes / held < 1.3


def test_views_are_kept_between_runs_and_give_the_same_detections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = str(tmp_path / "views")
    outline = [10.0, 10, 340, 10, 340, 430, 10, 430]
    made = ProductIndex(folder=folder).add("p1", [png(CARD), png(CARD)], [None, outline])
    assert len(list((tmp_path / "views").iterdir())) == 2
    monkeypatch.setattr("scoring.product_index.view_of", None)  # whoever computes again fails
    kept = ProductIndex(folder=folder).add("another product", [png(CARD), png(CARD)], [None, outline])
    frame = placed(scene(), CARD, quad_in(scene(), *UPRIGHT))
    for before, after in zip(made, kept, strict=True):
        (first,), (second,) = locate([frame], [before]), locate([frame], [after])
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.quad, second.quad)
        assert (first.inliers, first.probability) == (second.inliers, second.probability)


def without_its_picture(content: bytes) -> bytes:
    with np.load(io.BytesIO(content)) as stored:
        arrays = {**stored, "picture": np.zeros(0, np.uint8)}
    changed = io.BytesIO()
    np.savez(changed, **arrays)
    return changed.getvalue()


DAMAGES = {
    "empty": lambda content: b"",
    "signature alone": lambda content: content[:4],
    "first part": lambda content: content[:1000],
    "all but the end": lambda content: content[:-30],
    "text": lambda content: b"<html>404</html>",
    "numbers": lambda content: np.random.default_rng(0).bytes(5000),
    "numbers in the middle": lambda content: content[:400] + np.random.default_rng(0).bytes(5000) + content[5400:],
    "a pickle": lambda content: b"\x80\x04N.",
    "no picture": without_its_picture,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_among_the_kept_views_is_made_anew(tmp_path: Path, damage: str):
    folder = str(tmp_path)
    ProductIndex(folder=folder).add("p1", [png(CARD)], [None])
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGES[damage](whole))
    (view,) = ProductIndex(folder=folder).add("p1", [png(CARD)], [None])
    assert len(view.features) >= 16
    assert kept.read_bytes() == whole
