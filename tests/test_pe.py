"""PE, E and P worked out by hand, and outlines brought onto the grid against their exact area."""

import numpy as np
import pytest

from scoring.pe import covered_share, min_max_scaled, pe_scores, rasterised

E = np.array([[[1, 3], [5, 9]], [[1, 1], [7, 5]]], np.float32)
"""2 seconds of 2 x 2 cells, smallest 1, largest 9; scaled [[0, .25], [.5, 1]] and [[0, 0], [.75, .5]]."""
P = np.array([[[0, 1], [0, 1]], [[1, 0], [1, 0]]], bool)


def shoelace(corners: np.ndarray) -> float:
    x, y = corners.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def cut(corners: np.ndarray) -> np.ndarray:
    """The polygon less its parts beyond the unit square (Sutherland & Hodgman 1974)."""
    for axis, side, bound in ((0, 1, 0.0), (0, -1, 1.0), (1, 1, 0.0), (1, -1, 1.0)):
        kept = []
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            inside_a, inside_b = side * (a[axis] - bound) >= 0, side * (b[axis] - bound) >= 0
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                kept.append(a + (b - a) * (bound - a[axis]) / (b[axis] - a[axis]))
        corners = np.array(kept).reshape(-1, 2)
    return corners


def turned(centre: tuple[float, float], size: tuple[float, float], degrees: float) -> np.ndarray:
    """(4, 2) corners of a rectangle, in fractions of the frame."""
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * size
    return corners @ rotation.T + centre


def test_scores_worked_out_by_hand():
    scores = pe_scores(E, P)
    assert scores.pe_score == pytest.approx((0.25 + 1 + 0 + 0.75) / 8)
    assert scores.e_score == pytest.approx((0.25 + 0.5 + 1 + 0.75 + 0.5) / 8)
    assert scores.p_score == 0.5
    assert scores.pe_score_raw == pytest.approx((3 + 9 + 1 + 7) / 8)
    assert scores.e_score_raw == pytest.approx(32 / 8)
    assert scores.e_on_product == pytest.approx((0.25 + 1 + 0 + 0.75) / 4)
    per_second = {"pe": [1.25 / 4, 0.75 / 4], "e": [1.75 / 4, 1.25 / 4], "p": [0.5, 0.5]}
    for name, expected in per_second.items():
        np.testing.assert_allclose(getattr(scores, f"{name}_per_second"), expected)


def test_a_product_map_of_zeros_and_ones_means_the_same_as_one_of_booleans():
    assert pe_scores(E, P.astype(np.uint8)).pe_score == pe_scores(E, P).pe_score


def test_pe_is_engagement_on_the_product_times_its_share():
    rng = np.random.default_rng(2)
    for share in (0.002, 0.3, 1.0):
        e, p = rng.gamma(0.5, 3.0, (7, 20, 30)).astype(np.float32), rng.random((7, 20, 30)) < share
        scores = pe_scores(e, p)
        assert scores.e_on_product is not None
        assert scores.p_score is not None
        assert scores.p_score == pytest.approx(p.mean())
        assert scores.e_on_product == pytest.approx(min_max_scaled(e)[p].mean(), rel=1e-6)
        assert scores.pe_score == pytest.approx(scores.e_on_product * scores.p_score, rel=1e-12)


def test_per_second_values_average_to_the_scores():
    rng = np.random.default_rng(3)
    scores = pe_scores(rng.random((5, 8, 8)).astype(np.float32), rng.random((5, 8, 8)) < 0.4)
    for name in ("pe", "e", "p"):
        per_second = getattr(scores, f"{name}_per_second")
        assert per_second.shape == (5,)
        assert per_second.std() > 0
        assert per_second.mean() == pytest.approx(getattr(scores, f"{name}_score"))


def test_engagement_is_scaled_over_the_whole_video_not_over_a_second():
    np.testing.assert_allclose(min_max_scaled(E), (E - 1) / 8)
    assert min_max_scaled(E)[1].max() == 0.75


def test_scaled_scores_ignore_the_unit_of_engagement_and_raw_ones_follow_it():
    scores, tenfold = pe_scores(E, P), pe_scores(10 * E, P)
    assert tenfold.pe_score == pytest.approx(scores.pe_score)
    assert tenfold.e_on_product == pytest.approx(scores.e_on_product)
    assert tenfold.pe_score_raw == pytest.approx(10 * 2.5)
    assert tenfold.e_score_raw == pytest.approx(10 * 4.0)


@pytest.mark.parametrize("level", [0.0, 0.7, 1e-30])
def test_engagement_without_any_contrast_scores_zero(level: float):
    scores = pe_scores(np.full((3, 4, 4), level, np.float32), np.ones((3, 4, 4), bool))
    assert (scores.pe_score, scores.e_score, scores.e_on_product, scores.p_score) == (0, 0, 0, 1)
    assert scores.pe_score_raw == scores.e_score_raw == pytest.approx(level)


def test_without_a_product_map_only_engagement_is_scored():
    scores = pe_scores(E, None)
    assert scores.e_score == pe_scores(E, P).e_score
    assert scores.e_score_raw == 4.0
    np.testing.assert_allclose(scores.e_per_second, [1.75 / 4, 1.25 / 4])
    for name in ("pe_score", "p_score", "pe_score_raw", "e_on_product", "pe_per_second", "p_per_second"):
        assert getattr(scores, name) is None


def test_a_product_that_is_never_seen_scores_zero_and_has_no_engagement_on_it():
    scores = pe_scores(E, np.zeros_like(P))
    assert (scores.pe_score, scores.p_score, scores.pe_score_raw) == (0, 0, 0)
    assert scores.e_on_product is None
    assert scores.e_score > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_engagement_that_is_not_finite_is_refused(bad: float):
    broken = E.copy()
    broken[1, 0, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        pe_scores(broken, P)


def test_maps_on_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*one grid"):
        pe_scores(E, np.ones((2, 2, 3), bool))


def test_a_rectangle_along_cell_edges_fills_exactly_those_cells():
    expected = np.zeros((112, 112), bool)
    expected[28:56, 14:84] = True
    quad = np.array([[14, 28], [84, 28], [84, 56], [14, 56]]) / 112
    np.testing.assert_array_equal(rasterised([[quad]], 112, 112)[0], expected)


def test_the_whole_frame_and_all_beyond_it_fill_the_grid():
    whole = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
    huge = (whole - 0.5) * 1e9
    assert rasterised([[whole], [huge]], 7, 5).all()


@pytest.mark.parametrize(
    ("covered", "is_product"),
    [(0.0, False), (0.3, False), (0.45, False), (0.49, False), (0.5, True), (0.55, True), (1.0, True)],
)
def test_a_cell_is_product_where_at_least_half_of_it_is_covered(covered: float, is_product: bool):
    for along in (0, 1):
        corners = np.array([[2, 3], [2 + covered, 3], [2 + covered, 4], [2, 4]], np.float64)
        quad = corners / 8 if along == 0 else corners[:, ::-1] / 8
        cell = rasterised([[quad]], 8, 8)[0]
        assert bool(cell[3, 2] if along == 0 else cell[2, 3]) is is_product
        assert cell.sum() == int(is_product)


@pytest.mark.parametrize(
    ("centre", "size", "degrees"),
    [
        ((0.5, 0.5), (0.4, 0.3), 0),
        ((0.503, 0.497), (0.331, 0.217), 0),
        ((0.5, 0.5), (0.4, 0.3), 45),
        ((0.4, 0.6), (0.5, 0.2), 17),
        ((0.6, 0.3), (0.25, 0.33), -72),
        ((0.95, 0.5), (0.4, 0.3), 30),
        ((0.02, 0.01), (0.5, 0.5), 12),
        ((0.5, 1.1), (0.7, 0.4), 5),
        ((0.5, 0.5), (1.5, 1.5), 45),
    ],
)
def test_area_on_the_grid_is_the_outlines_area_inside_the_frame(
    centre: tuple[float, float], size: tuple[float, float], degrees: float
):
    quad = turned(centre, size, degrees)
    exact = shoelace(cut(quad))
    assert exact > 0.03
    for height, width in ((112, 112), (64, 180), (7, 5)):
        covered = covered_share(quad * (width, height), height, width)
        assert covered.mean() == pytest.approx(exact, abs=1e-12)
        np.testing.assert_array_equal(rasterised([[quad]], height, width)[0], covered >= 0.5 - 1e-6)
    # whole cells instead of shares of them: nearly the same
    assert rasterised([[quad]], 112, 112).mean() == pytest.approx(exact, abs=0.0025)


def test_outlines_are_x_then_y_on_a_grid_of_rows_then_columns():
    quad = np.array([[0.5, 0], [1, 0], [1, 0.25], [0.5, 0.25]])
    expected = np.zeros((4, 6), bool)
    expected[0, 3:] = True
    np.testing.assert_array_equal(rasterised([[quad]], 4, 6)[0], expected)


def test_winding_direction_and_first_corner_do_not_matter():
    quad = turned((0.45, 0.55), (0.37, 0.21), 33)
    wanted = rasterised([[quad]], 112, 112)
    for same in (quad[::-1], np.roll(quad, 1, axis=0), np.roll(quad[::-1], 2, axis=0)):
        np.testing.assert_array_equal(rasterised([[same]], 112, 112), wanted)


def test_outlines_of_more_than_four_corners_are_filled():
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = 0.5 + 0.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert rasterised([[circle]], 112, 112).mean() == pytest.approx(shoelace(circle), abs=0.002)


def test_a_quad_smaller_than_a_cell_covers_no_more_than_its_cell():
    tiny = turned((0.505, 0.505), (0.001, 0.001), 20)
    assert not rasterised([[tiny]], 112, 112).any()
    cell_and_a_half = turned(((56 + 0.5) / 112, (56 + 0.5) / 112), (1.5 / 112, 1.5 / 112), 0)
    assert rasterised([[cell_and_a_half]], 112, 112).sum() == 1


def test_seconds_without_the_product_are_all_zero_and_stay_in_place():
    quad = turned((0.5, 0.5), (0.4, 0.3), 0)
    product = rasterised([[], [quad], [], [], [quad]], 16, 16)
    assert product.shape == (5, 16, 16)
    assert product.dtype == bool
    assert product.any(axis=(1, 2)).tolist() == [False, True, False, False, True]


def test_copies_in_one_second_are_all_product():
    left, right = turned((0.25, 0.5), (0.3, 0.3), 10), turned((0.75, 0.5), (0.3, 0.3), -20)
    both = rasterised([[left, right]], 32, 32)
    np.testing.assert_array_equal(both, rasterised([[left]], 32, 32) | rasterised([[right]], 32, 32))
    # side by side within one column of cells, each covers less than half of it and both together all of it
    halves = [np.array([[x, 0], [x + 1 / 8, 0], [x + 1 / 8, 1], [x, 1]]) for x in (0.5, 0.625)]
    assert not rasterised([[halves[0] - (0.01, 0)]], 4, 4)[0, :, 2].any()
    assert rasterised([halves], 4, 4)[0, :, 2].all()


def test_a_video_without_seconds_gives_an_empty_map():
    assert rasterised([], 16, 16).shape == (0, 16, 16)
