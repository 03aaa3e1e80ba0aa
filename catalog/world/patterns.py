"""The engaging element (a spinning pinwheel) and the distractor (expanding rings), equally striking."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from catalog.world.packaging import colour
from catalog.world.script import WEIGHT_RANGE, Pattern

SIDE_PX = 160
PHASES = 12
COVERAGE = 0.62
"""Share of a wheel's disc that its blades (or rings) cover; the rest is clear."""


@cache
def shape_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A wheel's colour number (0 or 1) and ink (float32 in [0, 1]), each (PHASES, SIDE_PX, SIDE_PX)."""
    axis = (np.arange(SIDE_PX, dtype=np.float32) + 0.5) * 2 / SIDE_PX - 1
    x, y = np.meshgrid(axis, axis)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if kind == "element":
        turns = 3 * (angle / (2 * np.pi) + 0.22 * radius)
    else:
        turns = 1.2 * np.maximum(abs(x), abs(y)) + 1.2 * radius
    along = 2 * np.mod(turns - np.arange(PHASES, dtype=np.float32)[:, None, None] / PHASES, 1.0)
    from_middle = np.abs(np.mod(along, 1.0) - 0.5)
    disc = np.clip((1 - radius) * SIDE_PX / 2, 0, 1)
    ink = np.clip((COVERAGE / 2 - from_middle) * SIDE_PX / 10 + 0.5, 0, 1) * disc
    return (along >= 1).astype(np.uint8), ink.astype(np.float32)


@dataclass(frozen=True)
class Wheel:
    """A wheel in one frame: centre and radius in px."""

    x: float
    y: float
    radius: float
    on_product: bool = False
    """It rides on the product and shows nowhere else while the product is there."""


class PatternPainter:
    """Paints one pattern of one shot; its look (opacity, saturation, speed) shows its planted weight."""

    def __init__(self, kind: str, pattern: Pattern, weight: float):
        low, high = WEIGHT_RANGE
        strength = (weight - low) / (high - low)
        saturation, self.opacity = 0.7 + 0.3 * strength, 0.66 + 0.28 * strength
        hues = (318, 48) if kind == "element" else (205, 140)
        palette = [colour(hue + pattern.hue_shift, saturation, 1.0) for hue in hues]
        self.palette = np.array(palette, np.uint8)
        self.which, self.ink = shape_of(kind)
        self.phase, self.turns_per_s = pattern.phase, 0.5 + 0.5 * strength

    def paint(
        self, frame: np.ndarray, wheel: Wheel, seconds: float, product: np.ndarray | None, mask: np.ndarray | None
    ) -> None:
        """Blend the wheel into `frame` (H, W, 3 uint8); set `mask` (H, W bool) where it shows.

        `product` is the packaging's outline (H, W bool), None while it is absent.
        """
        side = max(4, round(2 * wheel.radius))
        left, top = round(wheel.x - side / 2), round(wheel.y - side / 2)
        height, width = frame.shape[:2]
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
        if x0 >= x1 or y0 >= y1:
            return
        step = int((self.phase + self.turns_per_s * seconds) * PHASES) % PHASES
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        ink = cv2.resize(self.palette.take(self.which[step], axis=0), (side, side), interpolation=cv2.INTER_NEAREST)[
            part
        ]
        alpha = cv2.resize(self.ink[step], (side, side), interpolation=cv2.INTER_LINEAR)[part]
        if product is not None and wheel.on_product:
            alpha = alpha * product[y0:y1, x0:x1]
        blend(frame[y0:y1, x0:x1], ink, alpha * np.float32(self.opacity))
        if mask is not None:
            mask[y0:y1, x0:x1] |= alpha > 0.5


def blend(region: np.ndarray, ink: np.ndarray, alpha: np.ndarray) -> None:
    """region = alpha * ink + (1 - alpha) * region, in place; uint8 (H, W, 3) twice, float32 (H, W)."""
    region[:] = cv2.blendLinear(np.ascontiguousarray(ink), np.ascontiguousarray(region), alpha, 1 - alpha)
