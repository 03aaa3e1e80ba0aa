"""What the numbers of a video say, worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest

from views.moments import Moments
from views.video_page import hooks


def moments(e: list[float], p: list[float] | None = None, pe: list[float] | None = None, rate: float = 1.0, **more):
    arrays = (None if values is None else np.array(values, float) for values in (e, p, pe))
    return Moments(*arrays, rate, **more)


def kinds(of: Moments) -> dict[str, str]:
    return {suggestion.kind: str(suggestion.span) for suggestion in of.suggestions()}


def test_attention_that_peaks_before_the_product_shows_is_told_with_both_times():
    apart = moments([1, 1, 4, 4, 4, 1, 1, 1, 1, 1], [0] * 8 + [0.1, 0.1], [0] * 8 + [0.1, 0.1])
    assert apart.missed() == "The product shows at 8–10 s; attention peaks at 2–5 s, without it."


def test_a_peak_with_the_product_on_screen_is_no_miss():
    together = moments([1, 1, 4, 1], [0, 0.1, 0.1, 0], [0, 0.1, 0.4, 0])
    assert together.missed() == "The product shows at 1–3 s; attention peaks at 2–3 s, with the product on screen."


def test_even_attention_has_no_peak():
    assert (
        moments([1, 1.1, 1, 1], [0.1] * 4, [0.1] * 4).missed()
        == "The product shows at 0–4 s; attention is even all through."
    )


@pytest.mark.parametrize("p, says", [(None, None), ([0, 0, 0], "The product was found in no second.")])
def test_without_a_product_nothing_is_suggested(p, says):
    without = moments([1, 4, 1], p, p)
    assert without.missed() == says
    assert without.suggestions() == []


def test_half_second_samples_are_told_in_seconds():
    fast = moments([1, 1, 4, 1], [0, 0, 0.1, 0.1], [0, 0, 0.4, 0.1], rate=2.0)
    assert [str(span) for span in fast.shown()] == ["1–2 s"]
    assert [str(span) for span in fast.peaks()] == ["1–1.5 s"]


def test_the_opening_is_compared_with_the_whole_video():
    assert moments([2, 2, 2, 1, 1, 1]).hook() == pytest.approx(2 / 1.5)
    assert moments([2, 2, 2]).hook() is None
    assert moments([4] * 6 + [1] * 6, rate=2.0).hook() == pytest.approx(4 / 2.5)


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_the_openings_of_a_catalogue_are_those_of_its_videos(rate: float):
    lists = [[2, 2, 2, 1, 1, 1], None, [2, 2, 2], [1, 3, 5, 7, 9, 2, 4, 6], [], [0, 0, 0, 0]]
    every = hooks(pa.chunked_array([pa.array(lists[:2], pa.list_(pa.float32())), lists[2:]]), rate)
    one_by_one = [moments(e, rate=rate).hook() for e in lists if e]
    assert every.tolist() == pytest.approx([value for value in one_by_one if value is not None])


def test_an_opening_without_the_product_is_suggested_with_its_share_of_attention():
    late = moments([2, 2, 2, 1, 1, 1, 1], [0, 0, 0, 0, 0.1, 0.1, 0.1], [0, 0, 0, 0, 0.1, 0.1, 0.1])
    (first, *_) = late.suggestions()
    assert (first.kind, str(first.span)) == ("hook", "0–3 s")
    assert first.because == "The first 3 s hold 60% of all attention; the product shows from 4 s."


def test_an_early_product_needs_no_such_suggestion():
    early = moments([2, 2, 2, 1, 1, 1], [0, 0, 0.1, 0.1, 0, 0], [0, 0, 0.2, 0.1, 0, 0])
    assert "hook" not in kinds(early)


def test_a_peak_without_the_product_is_suggested_once():
    peaked = moments([1, 1, 1, 1, 5, 1, 1, 1], [0.1, 0.1, 0, 0, 0, 0, 0, 0], [0.1, 0.1, 0, 0, 0, 0, 0, 0])
    assert kinds(peaked)["peak"] == "4–5 s"
    in_opening = moments([1, 5, 1, 1, 1, 1], [0, 0, 0, 0, 0.1, 0.1], [0, 0, 0, 0, 0.1, 0.1])
    assert "peak" not in kinds(in_opening)


@pytest.mark.parametrize("on_product, kind", [(0.5, "off_product"), (1.0, None), (1.5, "small")])
def test_attention_on_the_product_is_held_against_that_on_the_picture(on_product: float, kind: str | None):
    e, p = 0.2, 0.04
    shown = moments([e] * 4, [p] * 4, [on_product * e * p] * 4)
    assert shown.on_product(shown.shown()[0]) == pytest.approx(on_product)
    assert set(kinds(shown)) - {"best"} == ({kind} if kind else set())


def test_a_large_product_that_draws_attention_is_not_called_small():
    assert "small" not in kinds(moments([0.2] * 4, [0.2] * 4, [0.06] * 4))


@pytest.mark.parametrize(
    "rows, columns, where, said",
    [
        (slice(6, 9), slice(0, 3), "lower left", "at the lower left"),
        (slice(6, 9), slice(3, 6), "lower", "at the bottom"),
        (slice(0, 3), slice(3, 6), "upper", "at the top"),
        (slice(3, 6), slice(6, 9), "right", "on the right"),
        (slice(3, 6), slice(3, 6), "middle", "in the middle"),
    ],
)
def test_suggestions_name_the_ninth_of_the_picture_that_draws_attention(
    rows: slice, columns: slice, where: str, said: str
):
    levels = np.zeros((2, 9, 9), np.uint8)
    levels[:, rows, columns] = 200
    away = moments([0.2] * 2, [0.1] * 2, [0.001] * 2, levels=levels)
    assert away.where(away.shown()[0]) == where
    because = {suggestion.kind: suggestion.because for suggestion in away.suggestions()}
    assert because["off_product"].endswith(f"times the picture’s mean; it is strongest {said}.")


def test_the_best_second_is_that_of_the_highest_pe():
    best = moments([1, 1, 1, 1], [0.1] * 4, [0.1, 0.1, 0.5, 0.1])
    assert kinds(best)["best"] == "2–3 s"
