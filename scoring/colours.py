"""Are the product's colours those of its photo? Another flavour often has the same print in other colours.

Kernel code: numpy and OpenCV alone.
"""

import cv2
import numpy as np

from scoring.catalogue_image import View

GRID_PX = 24
SLACK_PX = 1.5
MIN_CELLS = 20
DARK = 10.0
"""grey levels, added so that the colour of dark pixels, which is noise, counts little"""
MIN_SPREAD = 0.04
"""of the photo's colours: with less it is as good as grey"""
MIN_SPREAD_SEEN = 0.15
"""of the frame's, as a share of the photo's: with less the footage is as good as grey"""


def colour_agreement(
    colours: np.ndarray, view: View, homography: np.ndarray, frame_size: tuple[float, float]
) -> float | None:
    """Correlation, -1 to 1, of the chromaticities of frame and photo over the product or the half of it that agrees
    best; None where either has no colours.

    Each side's own median is taken out first, so that light of another colour changes nothing.
    colours: uint8 (h, w, 3) RGB, the frame at any size and squashed to any shape. homography: (3, 3) from the view's
    pixels to those of a frame of ``frame_size`` (width, height).
    """
    if view.colours is None:
        return None
    low, extent = view.outline.min(axis=0), np.ptp(view.outline, axis=0)
    to_view = np.array([[extent[0] / GRID_PX, 0, low[0]], [0, extent[1] / GRID_PX, low[1]], [0, 0, 1]])
    to_photo = np.diag([*(np.array(view.colours.shape[1::-1]) / view.picture.shape[::-1]), 1]) @ to_view
    to_colours = np.diag([*(np.array(colours.shape[1::-1]) / frame_size), 1]) @ homography @ to_view
    polygon = np.round((view.outline - low) / extent * GRID_PX).astype(np.int32)
    shown = cv2.fillPoly(np.zeros((GRID_PX, GRID_PX), np.uint8), [polygon], 1) > 0
    shown &= _on_grid(np.ones(colours.shape[:2], np.uint8), to_colours) > 0
    seen = _chromaticity(_on_grid(colours, to_colours))
    expected = _chromaticity(_on_grid(view.colours, to_photo))
    # half of the product may be behind a hand
    halves = np.zeros((5, GRID_PX, GRID_PX), bool)
    halves[0] = halves[1, : GRID_PX // 2] = halves[2, GRID_PX // 2 :] = True
    halves[3, :, : GRID_PX // 2] = halves[4, :, GRID_PX // 2 :] = True
    correlations = [_correlation(seen[part], expected[part]) for part in halves & shown if part.sum() >= MIN_CELLS]
    return max((c for c in correlations if c is not None), default=None)


def _correlation(seen: np.ndarray, expected: np.ndarray) -> float | None:
    """Of chromaticities (N, 2) less their medians; None where one side is as good as grey."""
    seen, expected = seen - np.median(seen, axis=0), expected - np.median(expected, axis=0)
    spread_seen, spread = (float(np.sqrt((side**2).mean())) for side in (seen, expected))
    if spread < MIN_SPREAD or spread_seen < MIN_SPREAD_SEEN * spread:
        return None
    return float((seen * expected).mean() / (spread_seen * spread))


def _on_grid(pixels: np.ndarray, to_pixels: np.ndarray) -> np.ndarray:
    return cv2.warpPerspective(pixels, to_pixels, (GRID_PX, GRID_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _chromaticity(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 2): logarithms of red and blue over green."""
    red, green, blue = np.moveaxis(cv2.GaussianBlur(rgb, (0, 0), SLACK_PX).astype(np.float32) + DARK, 2, 0)
    return np.log(np.stack([red, blue], axis=2) / green[:, :, None])
