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
MIN_SPREAD = 0.05
"""of the photo's colours: with less it is as good as grey"""
MIN_SPREAD_SEEN = 0.15
"""of the frame's, as a share of the photo's: with less the footage is as good as grey"""
SAME_PATTERN = 0.6
UNTURNED = 0.15


def recoloured(colours: np.ndarray, view: View, homography: np.ndarray, frame_size: tuple[float, float]) -> bool:
    """Does the frame show the photo's colours turned into others?

    Chromaticities as complex numbers: their correlation's size says whether the frame has the photo's pattern of
    colours at all, its angle by how much hues are turned. Both sides are taken less their medians, so that light of
    another colour changes nothing. Only a pattern that is there and turned, in the whole or a half, while no part has
    it unturned, is another product: what lies on a product or shines through it has no such pattern, and a product
    whose colours cannot be seen is not refused. colours: uint8 (h, w, 3) RGB, the frame at any size and squashed to any
    shape. homography: (3, 3) from the view's pixels to those of a frame of ``frame_size`` (width, height).
    """
    if view.colours is None:
        return False
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
    parts = np.zeros((5, GRID_PX, GRID_PX), bool)
    parts[0] = parts[1, : GRID_PX // 2] = parts[2, GRID_PX // 2 :] = True
    parts[3, :, : GRID_PX // 2] = parts[4, :, GRID_PX // 2 :] = True
    correlations = [_correlation(seen[part], expected[part]) for part in parts & shown if part.sum() >= MIN_CELLS]
    known = np.array([c for c in correlations if c is not None])
    return bool(known.size) and np.abs(known).max() >= SAME_PATTERN and known.real.max() < UNTURNED


def _correlation(seen: np.ndarray, expected: np.ndarray) -> complex | None:
    """Of complex chromaticities (N,) less their medians; None where one side is as good as grey."""
    seen, expected = (side - np.median(side.real) - 1j * np.median(side.imag) for side in (seen, expected))
    spread_seen, spread = (float(np.sqrt((np.abs(side) ** 2).mean())) for side in (seen, expected))
    if spread < MIN_SPREAD or spread_seen < MIN_SPREAD_SEEN * spread:
        return None
    return complex((seen * expected.conj()).mean() / (spread_seen * spread))


def _on_grid(pixels: np.ndarray, to_pixels: np.ndarray) -> np.ndarray:
    return cv2.warpPerspective(pixels, to_pixels, (GRID_PX, GRID_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _chromaticity(rgb: np.ndarray) -> np.ndarray:
    """complex (h, w): logarithms of red, green and blue along three axes 120 degrees apart, so that grey is 0."""
    logs = np.log(cv2.GaussianBlur(rgb, (0, 0), SLACK_PX).astype(np.float32) + DARK)
    return logs @ np.exp(2j * np.pi / 3 * np.arange(3))
