"""Our SIFT against known warps, and against OpenCV's."""

import cv2
import numpy as np
import pytest

from catalog.world.packaging import draw_packaging
from scoring.sift import Features, mutual_matches, root_sift


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    prints = [draw_packaging(3, index) for index in (0, 6, 12, 18)]
    prints = [cv2.resize(p, (220, 260), interpolation=cv2.INTER_AREA) for p in prints]
    return cv2.cvtColor(np.vstack([np.hstack(prints[:2]), np.hstack(prints[2:])]), cv2.COLOR_RGB2GRAY)


def warped(picture: np.ndarray, turn: float, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture turned (degrees) and zoomed, and the (2, 3) map that did it."""
    height, width = picture.shape
    how = cv2.getRotationMatrix2D((width / 2, height / 2), turn, zoom)
    sharp = cv2.GaussianBlur(picture, (0, 0), 0.4 / zoom) if zoom < 1 else picture
    return cv2.warpAffine(sharp, how, (width, height)), how


def errors_px(before: Features, after: Features, how: np.ndarray) -> np.ndarray:
    in_after, in_before = mutual_matches(after.descriptors, before.descriptors, 0.8)
    expected = before.points[in_before] @ how[:, :2].T + how[:, 2]
    return np.linalg.norm(expected - after.points[in_after], axis=1)


def opencv_features(picture: np.ndarray) -> Features:
    keypoints, descriptors = cv2.SIFT_create().detectAndCompute(picture, None)  # pyright: ignore
    descriptors = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))
    return Features(*(np.array([p.pt for p in keypoints], np.float32), np.empty(0), np.empty(0)), descriptors)


@pytest.mark.parametrize(("turn", "zoom"), [(25, 0.6), (10, 0.9), (60, 1.3), (180, 1.0)])
def test_features_follow_a_warp_as_well_as_opencvs(picture: np.ndarray, turn: float, zoom: float):
    after, how = warped(picture, turn, zoom)
    ours = errors_px(root_sift(picture, doubled=True), root_sift(after, doubled=True), how)
    theirs = errors_px(opencv_features(picture), opencv_features(after), how)
    assert (ours < 2).sum() >= 0.9 * (theirs < 2).sum()
    assert (ours < 2).mean() >= 0.95
    assert np.median(ours) < 0.5


def test_angles_and_sizes_say_how_the_picture_was_turned_and_zoomed(picture: np.ndarray):
    after, how = warped(picture, 30, 0.7)
    first, second = root_sift(picture), root_sift(after)
    in_second, in_first = mutual_matches(second.descriptors, first.descriptors, 0.8)
    right = np.linalg.norm(first.points[in_first] @ how[:, :2].T + how[:, 2] - second.points[in_second], axis=1) < 2
    turn = (second.angles[in_second] - first.angles[in_first])[right] % 360
    assert np.median(turn) == pytest.approx(330, abs=2)  # OpenCV turns against the clock, angles go with it
    assert np.median((second.sizes[in_second] / first.sizes[in_first])[right]) == pytest.approx(0.7, abs=0.05)


def test_mirrored_features_are_those_of_the_mirrored_picture(picture: np.ndarray):
    turned_over = root_sift(np.ascontiguousarray(picture[:, ::-1]))
    mirrored = root_sift(picture).mirrored(picture.shape[1] - 1)
    found, _ = mutual_matches(mirrored.descriptors, turned_over.descriptors, 0.8)
    assert len(found) > 0.8 * len(mirrored)
    same = np.linalg.norm(mirrored.points[:, None] - turned_over.points[None], axis=2).argmin(axis=1)
    likeness = (mirrored.descriptors * turned_over.descriptors[same]).sum(axis=1)
    assert np.median(likeness) > 0.98
    apart = (mirrored.angles - turned_over.angles[same] + 180) % 360 - 180
    assert np.median(np.abs(apart)) < 3


def test_only_what_the_mask_shows_has_features(picture: np.ndarray):
    mask = np.zeros_like(picture)
    mask[100:300, 50:200] = 255
    points = root_sift(picture, mask).points
    assert len(points) > 20
    assert (points >= (48, 98)).all()
    assert (points <= (202, 302)).all()


def test_the_features_of_highest_contrast_are_kept(picture: np.ndarray):
    every, few = root_sift(picture, most=10_000), root_sift(picture, most=50)
    assert 50 <= len(few) < len(every)
    rows = {tuple(point) for point in every.points.tolist()}
    assert all(tuple(point) in rows for point in few.points.tolist())


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (24, 24), (300, 3)])
def test_pictures_without_anything_to_see_have_none(shape: tuple[int, int]):
    assert len(root_sift(np.full(shape, 128, np.uint8))) == 0
