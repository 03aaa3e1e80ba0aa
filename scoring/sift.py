"""Local features: RootSIFT (Lowe 2004; Arandjelovic & Zisserman 2012) and their mutual matches.

Kernel code: numpy and OpenCV alone.
"""

import dataclasses
import functools
from typing import Any

import cv2
import numpy as np

MAX_FEATURES = 3000


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


def root_sift(gray: np.ndarray, mask: np.ndarray | None = None) -> Features:
    """Features of a uint8 (H, W) image, where ``mask`` (same shape) is not 0."""
    keypoints, descriptors = _detector().detectAndCompute(gray, mask)
    if descriptors is None:
        keypoints, descriptors = (), np.empty((0, 128), np.float32)
    descriptors /= np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7)
    geometry = np.array([(*k.pt, k.size, k.angle) for k in keypoints], np.float32).reshape(-1, 4)
    return Features(geometry[:, :2], geometry[:, 2], geometry[:, 3], np.sqrt(descriptors))


@functools.cache
def _detector() -> Any:
    return cv2.SIFT_create(nfeatures=MAX_FEATURES)  # pyright: ignore


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
