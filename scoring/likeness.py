"""Does the frame look like the catalogue image where the homography lays it?

Matches alone cannot tell packagings of one printed layout apart: they share a frame, a foot and a barcode. Kernel code:
numpy and OpenCV alone.
"""

import dataclasses

import cv2
import numpy as np

from scoring.catalogue_image import View
from scoring.pose import projected


@dataclasses.dataclass(frozen=True)
class Print:
    """What is compared: print of one coarseness."""

    grid_px: int
    """long side of the grid that both pictures are brought to"""
    slack_px: float
    """blur that forgives an outline off by so much, pixels of the grid"""
    width_px: float
    """shading, glare and what shines through change over more than this and are taken out"""
    window: float
    """side of the windows that are compared, of the product's shorter side"""
    lack: float
    """by which what the likeness lacks to 1 is multiplied: fine print agrees less, in products and look-alikes alike"""


COARSE_PRINT = Print(grid_px=128, slack_px=1.0, width_px=3.0, window=0.12, lack=1.0)
FINE_PRINT = Print(grid_px=192, slack_px=0.8, width_px=2.0, window=0.2, lack=0.4)
MIN_SIDE_PX = 16
MIN_WINDOW_PX = 9
PLAIN_STD = 1.4
"""grey levels: a window of the catalogue image with less says nothing"""
LEAST_VARIANCE = 0.5
MIN_COVER = 0.3
"""of a window, in product and frame"""
VISIBLE = 0.2
"""share of the print that must be in sight and agree"""
EVERY_CELLS = 2
"""only every other cell is asked, for windows overlap"""
BEYOND_DOUBT = 0.97
"""likeness of coarse print with which fine print is not asked"""
CALIBRATION = (2.62, 5.93)
MIN_UNLIKENESS = 0.005


def probability_of(like: float) -> float:
    """That it is the product and no look-alike, of a likeness: logistic in the logarithm of what it lacks to 1.

    Fitted on products and look-alikes of one layout by ``python -m benchmarks.product_map --calibrate``.
    """
    per_logarithm, constant = CALIBRATION
    return float(1 / (1 + np.exp(per_logarithm * np.log(max(1 - like, MIN_UNLIKENESS)) + constant)))


def likeness(gray: np.ndarray, view: View, homography: np.ndarray) -> float:
    """Normalised cross-correlation, -1 to 1, that at least a fifth of the print's windows reach; of coarse and fine
    print, whichever agrees better.

    A fifth and not all, because hands, labels and glare cover the rest; a true fifth agrees almost perfectly.
    gray: uint8 (H, W) frame. homography: (3, 3) from the view's pixels to the frame's.
    """
    coarse = _agreement(gray, view, homography, COARSE_PRINT)
    return coarse if coarse >= BEYOND_DOUBT else max(coarse, _agreement(gray, view, homography, FINE_PRINT))


def _agreement(gray: np.ndarray, view: View, homography: np.ndarray, of: Print) -> float:
    correlation, weight = (
        cells[::EVERY_CELLS, ::EVERY_CELLS]
        for cells in _correlation(*_same_grid(gray, view, homography, of), of.window)
    )
    if not weight.any():
        return 0.0
    correlation, weight = correlation[weight > 0], weight[weight > 0]
    order = np.argsort(-correlation)
    share = np.cumsum(weight[order]) / weight.sum()
    return 1 - of.lack * (1 - float(correlation[order[np.searchsorted(share, VISIBLE)]]))


def _same_grid(
    gray: np.ndarray, view: View, homography: np.ndarray, of: Print
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame and catalogue image on a grid no finer than either, float32 (h, w), and where the product is on it and in
    the frame, uint8 (h, w)."""
    down, across = view.picture.shape
    left, top = np.clip(np.floor(view.outline.min(axis=0)), 0, (across - 2, down - 2)).astype(int)
    right, bottom = np.clip(np.ceil(view.outline.max(axis=0)), (left + 2, top + 2), (across, down)).astype(int)
    width, height = right - left, bottom - top
    zoom = np.sqrt(cv2.contourArea(projected(view.corners, homography)) / cv2.contourArea(view.corners))
    scale = min(1.0, zoom, of.grid_px / max(width, height))
    scale = max(scale, MIN_SIDE_PX / min(width, height))
    size = (round(width * scale), round(height * scale))
    # a cell's middle, in the view's pixels, whose middles are whole numbers
    step_x, step_y = width / size[0], height / size[1]
    to_view = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5], [0, 0, 1]])
    to_frame = homography @ to_view
    polygon = np.round((view.outline - (left, top)) * scale).astype(np.int32)
    inside = cv2.warpPerspective(
        np.ones(gray.shape, np.uint8), to_frame, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    mask = cv2.bitwise_and(cv2.fillPoly(np.zeros(size[::-1], np.uint8), [polygon], 1), inside)
    expected = cv2.resize(view.picture[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    return _print(_averaged(gray, to_frame, size, zoom / scale), of), _print(expected, of), mask


def _averaged(pixels: np.ndarray, to_pixels: np.ndarray, size: tuple[int, int], pixels_a_cell: float) -> np.ndarray:
    fine = int(np.clip(round(pixels_a_cell), 1, 4))
    to_cells = np.array([[1 / fine, 0, 0.5 / fine - 0.5], [0, 1 / fine, 0.5 / fine - 0.5], [0, 0, 1]])
    warped = cv2.warpPerspective(
        pixels, to_pixels @ to_cells, (fine * size[0], fine * size[1]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    return cv2.resize(warped, size, interpolation=cv2.INTER_AREA)


def _print(cells: np.ndarray, of: Print) -> np.ndarray:
    cells = cv2.GaussianBlur(cells.astype(np.float32), (0, 0), of.slack_px)
    return cells - cv2.GaussianBlur(cells, (0, 0), of.width_px)


def _correlation(
    seen: np.ndarray, expected: np.ndarray, mask: np.ndarray, window: float
) -> tuple[np.ndarray, np.ndarray]:
    """Local normalised cross-correlation, and its weight, 0 where there is nothing to compare: (h, w)."""
    side = max(MIN_WINDOW_PX, round(window * min(mask.shape)))
    inside = mask.astype(np.float32)

    def total(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (side, side), borderType=cv2.BORDER_CONSTANT)

    cover = total(inside)

    def mean(values: np.ndarray) -> np.ndarray:
        return total(values * inside) / np.maximum(cover, 1e-6)

    a, b = mean(seen), mean(expected)
    aa, bb, ab = mean(seen * seen) - a * a, mean(expected * expected) - b * b, mean(seen * expected) - a * b
    correlation = ab / np.sqrt(np.maximum(aa, LEAST_VARIANCE) * np.maximum(bb, LEAST_VARIANCE))
    says_something = (mask > 0) & (cover > MIN_COVER) & (bb > PLAIN_STD**2)
    return correlation, np.where(says_something, np.sqrt(np.maximum(bb, 0)), 0)
