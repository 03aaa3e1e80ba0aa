"""Local features: RootSIFT (Lowe 2004; Arandjelovic & Zisserman 2012) and their mutual matches.

An own SIFT beside OpenCV's, which always doubles the image first and looks at every pixel of every patch: at the same
resolution this one costs a quarter (docs/product-map.md). Kernel code: numpy and OpenCV alone.
"""

import dataclasses
import functools

import cv2
import numpy as np

from scoring.scale_space import Keypoints, keypoints_of, octaves_of

MAX_FEATURES = 1500
TURN_BINS = 36
TURN_SIDE = 12
TURN_WIDTH = 9.0
"""of the patch that a keypoint's direction is taken from, in its sigmas"""
SECOND_PEAK = 0.8
SIDE = 12
CELLS = 4
BINS = 8
WIDTH = 12.0
"""of the patch that is described, in the keypoint's sigmas"""
LARGEST_ENTRY = 0.2


@dataclasses.dataclass(frozen=True)
class Features:
    """Local features of one image; N may be 0."""

    points: np.ndarray
    """(N, 2) float32, x, y, pixels"""
    sizes: np.ndarray
    """(N,) float32, diameter, pixels"""
    angles: np.ndarray
    """(N,) float32, degrees"""
    descriptors: np.ndarray
    """(N, 128) float32 RootSIFT, unit length"""

    def __len__(self) -> int:
        return len(self.points)

    def outside(self, outline: np.ndarray) -> "Features":
        """Those that are not on a polygon (K, 2)."""
        out = [cv2.pointPolygonTest(outline, point, False) < 0 for point in self.points.tolist()]
        return Features(self.points[out], self.sizes[out], self.angles[out], self.descriptors[out])

    def mirrored(self, last_column: int) -> "Features":
        """Those of the image mirrored left to right, whose last column has this number; nothing is computed anew."""
        points = np.column_stack([last_column - self.points[:, 0], self.points[:, 1]]).astype(np.float32)
        cells = self.descriptors.reshape(-1, CELLS, CELLS, BINS)[:, ::-1, :, -np.arange(BINS)]
        return Features(points, self.sizes, (180 - self.angles) % 360, cells.reshape(self.descriptors.shape))


def root_sift(
    gray: np.ndarray, mask: np.ndarray | None = None, doubled: bool = False, most: int = MAX_FEATURES
) -> Features:
    """Features of a uint8 (H, W) image, where ``mask`` (uint8, same shape) is not 0.

    doubled: also those of half the size, at four times the cost. most: keypoints, those of highest contrast are kept.
    """
    octaves = octaves_of(gray, doubled)
    keypoints = keypoints_of(octaves, mask, most)
    if not len(keypoints):
        return Features(*(np.empty(shape, np.float32) for shape in ((0, 2), 0, 0, (0, 128))))
    which, angles = _directions(octaves, keypoints)
    keypoints = keypoints[which]
    unit_px = (2.0 ** (keypoints.octave - doubled)).astype(np.float32)
    return Features(
        # a pixel's centre is at a whole number; doubling and halving move it
        keypoints.points * unit_px[:, None] + (np.float32(-0.25) if doubled else 0),
        2 * keypoints.sigmas * unit_px,
        np.rad2deg(angles),
        _described(octaves, keypoints, angles),
    )


def _directions(octaves: list[np.ndarray], keypoints: Keypoints) -> tuple[np.ndarray, np.ndarray]:
    """Which keypoints (M,) have which direction (M,) float32, radians; some have several (Lowe 2004, section 5)."""
    count = len(keypoints)
    length, angle = _gradients(octaves, keypoints, np.zeros(count, np.float32), TURN_SIDE, TURN_WIDTH)
    x, y = _grid(TURN_SIDE) * (TURN_WIDTH / TURN_SIDE)
    length *= np.exp(-(x**2 + y**2) / (2 * 1.5**2))[:, None]
    bins = np.rint(angle * (TURN_BINS / (2 * np.pi))).astype(np.int32) % TURN_BINS
    bins += TURN_BINS * np.arange(count, dtype=np.int32)
    histogram = np.bincount(bins.ravel(), length.ravel(), TURN_BINS * count).reshape(count, TURN_BINS)
    near, far = (np.roll(histogram, s, 1) + np.roll(histogram, -s, 1) for s in (1, 2))
    histogram = (6 * histogram + 4 * near + far) / 16
    left, right = np.roll(histogram, 1, 1), np.roll(histogram, -1, 1)
    is_peak = (histogram > left) & (histogram >= right)
    which, peak = np.nonzero(is_peak & (histogram >= SECOND_PEAK * histogram.max(axis=1, keepdims=True)))
    left, top, right = (h[which, peak] for h in (left, histogram, right))
    turn = peak + 0.5 * (left - right) / (left - 2 * top + right)
    return which, (turn * (2 * np.pi / TURN_BINS)).astype(np.float32)


def _described(octaves: list[np.ndarray], keypoints: Keypoints, angles: np.ndarray) -> np.ndarray:
    """(N, 128) float32: histograms of gradients in CELLS x CELLS cells (Lowe 2004, section 6), square roots taken."""
    count = len(keypoints)
    length, angle = _gradients(octaves, keypoints, angles, SIDE, WIDTH)
    angle *= BINS / (2 * np.pi)
    lower = angle.astype(np.int32)
    angle -= lower
    in_bins = np.zeros((SIDE * SIDE, count * BINS), np.float32)
    at = (np.arange(SIDE * SIDE * count, dtype=np.int32) * BINS).reshape(SIDE * SIDE, count)
    upper_share = length * angle
    in_bins.ravel()[at + lower % BINS] = length - upper_share
    in_bins.ravel()[at + (lower + 1) % BINS] = upper_share
    cells = (_pooling() @ in_bins).reshape(CELLS * CELLS, count, BINS)
    descriptors = cells.transpose(1, 0, 2).reshape(count, -1)
    descriptors = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-7)
    descriptors = np.minimum(descriptors, LARGEST_ENTRY)
    return np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7))


def _gradients(
    octaves: list[np.ndarray], keypoints: Keypoints, angles: np.ndarray, side: int, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Length and direction (radians, 0 to 2 pi) of the gradients in square patches of ``width`` sigmas, turned by
    ``angles``: float32 (side * side, N) each."""
    count = len(keypoints)
    x, y = _grid(side + 2)[:, :, None]
    step = keypoints.sigmas * np.float32(width / side)
    cos, sin = np.cos(angles) * step, np.sin(angles) * step
    at_x = cos * x - sin * y + keypoints.points[:, 0]
    at_y = sin * x + cos * y + keypoints.points[:, 1]
    patches = np.empty_like(at_x)
    group = keypoints.octave * 16 + keypoints.layer
    ends = [*(np.flatnonzero(np.diff(group)) + 1).tolist(), count]
    for start, end in zip([0, *ends], ends, strict=False):
        layer = octaves[keypoints.octave[start]][keypoints.layer[start]]
        part = np.s_[:, start:end]
        patches[part] = cv2.remap(
            layer, at_x[part], at_y[part], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ).reshape(-1, end - start)
    patches = patches.reshape(side + 2, side + 2, count)
    along_x = (patches[1:-1, 2:] - patches[1:-1, :-2]).reshape(-1, count)
    along_y = (patches[2:, 1:-1] - patches[:-2, 1:-1]).reshape(-1, count)
    length, angle = cv2.cartToPolar(along_x, along_y)
    return length, angle


@functools.cache
def _grid(side: int) -> np.ndarray:
    """(2, side * side) float32: x and y of the points of a square grid round 0, a unit apart, row by row."""
    along = np.arange(side, dtype=np.float32) - (side - 1) / 2
    return np.stack(np.meshgrid(along, along)).reshape(2, -1).astype(np.float32)


@functools.cache
def _pooling() -> np.ndarray:
    """(CELLS * CELLS, SIDE * SIDE) float32: how much a point of the patch counts in a cell."""
    point = (np.arange(SIDE) + 0.5) * CELLS / SIDE - 0.5
    shares = np.maximum(0, 1 - np.abs(point - np.arange(CELLS)[:, None]))
    shares *= np.exp(-((point - point.mean()) ** 2) / (CELLS**2 / 2))
    return np.kron(shares, shares).astype(np.float32)


def mutual_matches(frame: np.ndarray, view: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Matches of descriptors (N, 128) with (M, 128), all of unit length.

    Index pairs (into frame, into view) that pass Lowe's ratio test and are each other's best, best first.
    """
    if len(frame) < 2 or len(view) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    similarity = frame @ view.T
    rows = np.arange(len(frame))
    best = similarity.argmax(axis=1)
    rows = rows[similarity.argmax(axis=0)[best] == rows]
    best = best[rows]
    rest = similarity[rows]
    # unit vectors: squared distance = 2 - 2 * similarity
    distance = 1 - rest[np.arange(len(rows)), best]
    rest[np.arange(len(rows)), best] = -1
    keep = distance < ratio**2 * (1 - rest.max(axis=1))
    order = np.argsort(distance[keep], kind="stable")
    return rows[keep][order], best[keep][order]
