"""From matched features to where the product is: pose clusters, MAGSAC homography, gates.

Kernel code: numpy and OpenCV alone.
"""

import dataclasses
from enum import StrEnum

import cv2
import numpy as np

from scoring.catalogue_image import View
from scoring.sift import Features, mutual_matches

MIN_EVIDENCE = 4
"""matches that must agree on a pose for a closer look"""
POSE_TURN_DEGREES = 25.0
POSE_ZOOM_OCTAVES = 0.6
POSE_SHIFT_SHARE = 0.25
"""of the product's diagonal"""
REPROJECTION_PX = 4.0
MIN_SHARE_OF_FRAME = 0.002
MAX_SHARE_OF_FRAME = 4.0
MAX_ASPECT_DISTORTION = 4.0
MIN_INLIER_SPREAD = 0.12
PUBLISHED_RATIO = 0.75


class Rejection(StrEnum):
    """Why a frame's matches with a view are not the product."""

    FEW_MATCHES = "few_matches"
    NO_HOMOGRAPHY = "no_homography"
    FEW_INLIERS = "few_inliers"
    BEHIND_CAMERA = "behind_camera"
    NOT_CONVEX = "not_convex"
    MIRRORED = "mirrored"
    AREA = "area"
    DISTORTED = "distorted"
    NOT_SPREAD = "not_spread"
    UNLIKE = "unlike"
    """the frame does not look like the catalogue image there"""
    OTHER_COLOURS = "other_colours"
    ALONE = "alone"
    """not sure, and in no neighbouring second"""


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the matches of one frame with one view say."""

    homography: np.ndarray | None
    """(3, 3) from the view's pixels to the frame's, a similarity where matches agree on no more; None: no evidence"""
    inliers: int
    """matches that agree with the homography; 0 where it is a similarity"""
    rejection: Rejection | None


def fit(frame: Features, view: View, ratio: float, min_inliers: int) -> Fit:
    """The homography that most matches agree with."""
    in_frame, in_view = mutual_matches(frame.descriptors, view.features.descriptors, ratio)
    poses = _poses(frame, in_frame, view, in_view)
    cluster = _largest_cluster(poses, view)
    if cluster.sum() < MIN_EVIDENCE:
        return Fit(None, 0, Rejection.FEW_MATCHES)
    source, target = view.features.points[in_view[cluster]], frame.points[in_frame[cluster]]
    homography, inlying = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, REPROJECTION_PX, maxIters=2000, confidence=0.999
    )
    inlying = np.zeros(len(source), bool) if homography is None else inlying.ravel().astype(bool)
    inliers = int(inlying.sum())
    if homography is None:
        rejection = Rejection.NO_HOMOGRAPHY
    elif inliers < min_inliers:
        rejection = Rejection.FEW_INLIERS
    else:
        rejection = implausible(homography, view) or _bunched(source[inlying], view)
    if homography is None or inliers < min_inliers or implausible(homography, view):
        homography = _similarity(poses[cluster], view)
        inliers = 0
    return Fit(homography, inliers, rejection)


def _poses(frame: Features, in_frame: np.ndarray, view: View, in_view: np.ndarray) -> np.ndarray:
    """(N, 4): the turn (degrees), zoom and centre x, y (pixels) of the product that each match alone implies."""
    turn = frame.angles[in_frame] - view.features.angles[in_view]
    zoom = frame.sizes[in_frame] / view.features.sizes[in_view]
    to_centre = view.corners.mean(axis=0) - view.features.points[in_view]
    centre = frame.points[in_frame] + zoom[:, None] * _turned(to_centre, turn)
    return np.column_stack([turn, zoom, centre])


def _largest_cluster(poses: np.ndarray, view: View) -> np.ndarray:
    """Mask of the matches that agree with one another about the product's turn, size and centre.

    False matches imply poses all over the frame, so that a loose ratio test can be used where the true ones
    must agree.
    """
    if not len(poses):
        return np.empty(0, bool)
    turn, zoom, centre = poses[:, 0], poses[:, 1], poses[:, 2:]
    diagonal = np.linalg.norm(view.corners[2] - view.corners[0])
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=2)
    agree = (
        (np.abs((turn[:, None] - turn[None] + 180) % 360 - 180) < POSE_TURN_DEGREES)
        & (np.abs(np.log2(zoom[:, None] / zoom[None])) < POSE_ZOOM_OCTAVES)
        & (apart < POSE_SHIFT_SHARE * diagonal * np.minimum(zoom[:, None], zoom[None]))
    )
    return agree[agree.sum(axis=1).argmax()]


def _similarity(poses: np.ndarray, view: View) -> np.ndarray:
    """(3, 3) the median of these poses as a map from the view's pixels to the frame's."""
    turn = np.deg2rad(poses[0, 0] + np.median((poses[:, 0] - poses[0, 0] + 180) % 360 - 180))
    zoom = np.median(poses[:, 1])
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shift = np.median(poses[:, 2:], axis=0) - linear @ view.corners.mean(axis=0)
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


def _turned(vectors: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """(N, 2) vectors, each turned by its own angle, clockwise as pictures are seen."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y = vectors.T
    return np.column_stack([cos * x - sin * y, sin * x + cos * y])


def implausible(homography: np.ndarray, view: View) -> Rejection | None:
    """Why no camera could see the product's front so; None where one could."""
    depth = np.c_[view.corners, np.ones(4)] @ homography[2]
    if (depth <= 0).any() if depth[0] > 0 else (depth >= 0).any():
        return Rejection.BEHIND_CAMERA
    quad = projected(view.corners, homography)
    if not cv2.isContourConvex(quad):
        return Rejection.NOT_CONVEX
    if cv2.contourArea(quad, oriented=True) * cv2.contourArea(view.corners, oriented=True) <= 0:
        return Rejection.MIRRORED
    sides = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
    true_sides = np.linalg.norm(view.corners - np.roll(view.corners, -1, axis=0), axis=1)
    stretch = sides / np.maximum(true_sides, 1e-6)
    if stretch.min() <= 0 or stretch.max() / stretch.min() > MAX_ASPECT_DISTORTION:
        return Rejection.DISTORTED
    return None


def out_of_size(quad: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Is the product smaller or larger than one could tell? quad: (4, 2) pixels of a frame of ``shape``."""
    frame_area = shape[0] * shape[1]
    return not MIN_SHARE_OF_FRAME * frame_area <= cv2.contourArea(quad) <= MAX_SHARE_OF_FRAME * frame_area


def _bunched(inliers: np.ndarray, view: View) -> Rejection | None:
    """All inliers in one small corner (a logo that many products share) do not show the whole product."""
    spread = np.sqrt(np.prod(inliers.std(axis=0) * np.sqrt(12)) / cv2.contourArea(view.corners))
    return Rejection.NOT_SPREAD if spread < MIN_INLIER_SPREAD else None


def hull_of_matches(frame: Features, view: View) -> tuple[np.ndarray | None, int]:
    """The published method: the convex hull (K, 2), pixels, of all matches that pass the ratio test, and their number.

    None below three matches. Nothing checks that the matches agree.
    """
    similarity = frame.descriptors @ view.features.descriptors.T
    if min(similarity.shape) < 2:
        return None, 0
    second, best = np.partition(1 - similarity, 1, axis=1)[:, 1::-1].T
    matched = frame.points[best < PUBLISHED_RATIO**2 * second]
    return (cv2.convexHull(matched)[:, 0], len(matched)) if len(matched) >= 3 else (None, len(matched))


def projected(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """(N, 2) points through a homography, float32."""
    return cv2.perspectiveTransform(points[None].astype(np.float32), homography)[0]
