"""Every gate between matches and a sighting, by homographies and matches made by hand."""

import numpy as np
import pytest

from scoring.catalogue_image import View
from scoring.pose import Rejection, fit, implausible, out_of_size
from scoring.sift import Features

SIDE = 100.0


def features_at(points: np.ndarray) -> Features:
    """(N, 2) points of one size and direction, each with a descriptor unlike all others."""
    count = len(points)
    descriptors = np.eye(128, dtype=np.float32)[:count]
    ones = np.ones(count, np.float32)
    return Features(points.astype(np.float32), 8 * ones, 0 * ones, descriptors)


def square_view(points: np.ndarray) -> View:
    """A square product with features at these points."""
    corners = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], np.float32)
    return View(features_at(points), corners, corners, np.zeros((100, 100), np.uint8), None)


def scattered(count: int, across: float = SIDE) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, across, (count, 2))


HOMOGRAPHIES = {
    None: np.diag([2.0, 2.0, 1.0]),
    Rejection.BEHIND_CAMERA: np.array([[1, 0, 0], [0, 1, 0], [-0.015, 0, 1]]),
    Rejection.NOT_CONVEX: np.array([[1, 0, 0], [0, 0, 5], [0, 0, 1.0]]),
    Rejection.MIRRORED: np.diag([-1.0, 1.0, 1.0]),
    Rejection.DISTORTED: np.diag([5.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("reason", HOMOGRAPHIES)
def test_a_homography_that_no_camera_makes_is_implausible(reason: Rejection | None):
    view = square_view(scattered(9))
    assert implausible(HOMOGRAPHIES[reason], view) == reason
    assert implausible(-3 * HOMOGRAPHIES[reason], view) == reason  # homographies have no sign and no scale


@pytest.mark.parametrize(("side", "too_small_or_large"), [(4, True), (6, False), (190, False), (210, True)])
def test_a_product_far_smaller_or_larger_than_the_frame_is_out_of_size(side: float, too_small_or_large: bool):
    quad = side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    assert out_of_size(quad, (100, 100)) == too_small_or_large


@pytest.mark.parametrize(
    ("in_view", "reason"),
    [
        (scattered(20), None),
        (scattered(3), Rejection.FEW_MATCHES),
        (scattered(6), Rejection.FEW_INLIERS),
        (np.full((9, 2), 50.0), Rejection.NO_HOMOGRAPHY),
        (scattered(20, across=8), Rejection.NOT_SPREAD),
    ],
)
def test_matches_are_rejected_for_their_reason(in_view: np.ndarray, reason: Rejection | None):
    found = fit(features_at(1.5 * in_view + 20), square_view(in_view), ratio=0.9, min_inliers=7)
    assert found.rejection == reason
    if reason is None:
        assert found.inliers >= 18


def test_matches_of_an_implausible_homography_only_say_where_to_look():
    in_view = scattered(40)
    in_frame = features_at((in_view - SIDE / 2) * (5, 1) + SIDE / 2)
    found = fit(in_frame, square_view(in_view), ratio=0.9, min_inliers=7)
    assert (found.inliers, found.rejection) == (0, Rejection.DISTORTED)
    assert found.homography is not None
    assert implausible(found.homography, square_view(in_view)) is None
