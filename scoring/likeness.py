"""Does the frame look like the catalogue image where the homography lays it?

Matches alone cannot tell packagings of one printed layout apart: they share a frame, a foot and a barcode. Kernel code:
numpy and OpenCV alone.
"""

import cv2
import numpy as np

from scoring.catalogue_image import View
from scoring.pose import projected

LONG_SIDE_PX = 96
MIN_SIDE_PX = 16
WINDOW = 0.15
"""side of the windows that are compared, of the product's shorter side"""
MIN_WINDOW_PX = 5
SLACK_PX = 1.0
"""blur that forgives an outline off by so much"""
PLAIN_STD = 4.0
"""grey levels: a window of the catalogue image with less says nothing"""
MIN_COVER = 0.3
"""of a window, in product and frame"""
VISIBLE = 0.2
"""share of the print that must be in sight and agree"""
CALIBRATION = (2.8, 7.3)
MIN_UNLIKENESS = 0.005


def probability_of(like: float) -> float:
    """That it is the product and no look-alike, of a likeness: logistic in the logarithm of what it lacks to 1.

    Fitted on products and look-alikes of one layout by ``python -m benchmarks.product_map --calibrate``.
    """
    per_logarithm, constant = CALIBRATION
    return float(1 / (1 + np.exp(per_logarithm * np.log(max(1 - like, MIN_UNLIKENESS)) + constant)))


def likeness(gray: np.ndarray, view: View, homography: np.ndarray) -> float:
    """Normalised cross-correlation, -1 to 1, that at least a fifth of the print's windows reach.

    A fifth and not all, because hands, labels and glare cover the rest; a true fifth agrees almost perfectly.
    gray: uint8 (H, W) frame. homography: (3, 3) from the view's pixels to the frame's.
    """
    seen, expected, mask = _same_grid(gray, view, homography)
    correlation, weight = _correlation(seen, expected, mask)
    if not weight.any():
        return 0.0
    correlation, weight = correlation[weight > 0], weight[weight > 0]
    order = np.argsort(-correlation)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(correlation[order[np.searchsorted(share, VISIBLE)]])


def _same_grid(gray: np.ndarray, view: View, homography: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame and catalogue image on a grid no finer than either, float32 (h, w), and where the product is on it and in
    the frame, uint8 (h, w)."""
    left, top = view.outline.min(axis=0)
    width, height = np.ptp(view.outline, axis=0)
    zoom = np.sqrt(cv2.contourArea(projected(view.corners, homography)) / cv2.contourArea(view.corners))
    scale = min(1.0, zoom, LONG_SIDE_PX / max(width, height))
    scale = max(scale, MIN_SIDE_PX / min(width, height))
    size = (round(width * scale), round(height * scale))
    to_view = np.array([[1 / scale, 0, left], [0, 1 / scale, top], [0, 0, 1]])
    to_frame = homography @ to_view
    polygon = np.round((view.outline - (left, top)) * scale).astype(np.int32)
    inside = cv2.warpPerspective(
        np.ones(gray.shape, np.uint8), to_frame, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    mask = cv2.fillPoly(np.zeros(size[::-1], np.uint8), [polygon], 1) & inside
    return _averaged(gray, to_frame, size, zoom / scale), _averaged(view.picture, to_view, size, 1 / scale), mask


def _averaged(pixels: np.ndarray, to_pixels: np.ndarray, size: tuple[int, int], pixels_a_cell: float) -> np.ndarray:
    fine = int(np.clip(round(pixels_a_cell), 1, 4))
    to_cells = np.array([[1 / fine, 0, 0.5 / fine - 0.5], [0, 1 / fine, 0.5 / fine - 0.5], [0, 0, 1]])
    warped = cv2.warpPerspective(
        pixels, to_pixels @ to_cells, (fine * size[0], fine * size[1]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    cells = cv2.resize(warped, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return cv2.GaussianBlur(cells, (0, 0), SLACK_PX)


def _correlation(seen: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local normalised cross-correlation, and its weight, 0 where there is nothing to compare: (h, w)."""
    side = max(MIN_WINDOW_PX, round(WINDOW * min(mask.shape)))
    inside = mask.astype(np.float32)

    def total(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (side, side), borderType=cv2.BORDER_CONSTANT)

    cover = total(inside)

    def mean(values: np.ndarray) -> np.ndarray:
        return total(values * inside) / np.maximum(cover, 1e-6)

    a, b = mean(seen), mean(expected)
    aa, bb, ab = mean(seen * seen) - a * a, mean(expected * expected) - b * b, mean(seen * expected) - a * b
    correlation = ab / np.sqrt(np.maximum(aa, 1) * np.maximum(bb, 1))
    says_something = (mask > 0) & (cover > MIN_COVER) & (bb > PLAIN_STD**2)
    return correlation, np.where(says_something, np.sqrt(np.maximum(bb, 0)), 0)
