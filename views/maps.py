"""A saved engagement map over time: E and the product's quad at any moment of the video.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np

PALETTE = "inferno"
"""Perceptually uniform, its lightness rises all the way, so it is read without telling red from green (Smith & van der
Walt 2015)."""
TOP_PERCENTILE = 99.5
"""of a clip's E: the strongest colour; a single hot cell must not make all others pale"""


@dataclasses.dataclass(frozen=True)
class SavedMap:
    """E and P of one video as saved; sample k was taken at k / samples_per_second seconds."""

    levels: np.ndarray
    """uint8 (S, H, W): E scaled over the whole video, 0 its weakest spot, 255 its strongest"""
    quads: Sequence[np.ndarray | None]
    """per sample the product's corners, float (4, 2), x and y in fractions of the upright frame; None: not found"""
    samples_per_second: float

    @classmethod
    def of_row(cls, row: Mapping[str, Any], samples_per_second: float) -> "SavedMap":
        """row: of catalog.schemas.MAPS."""
        shape = (row["seconds"], row["height"], row["width"])
        quads = row["product_quads"] or [None] * row["seconds"]
        return cls(
            np.frombuffer(row["e_uint8"], np.uint8).reshape(shape),
            [None if quad is None else np.reshape(quad, (4, 2)).astype(float) for quad in quads],
            samples_per_second,
        )

    @property
    def end_s(self) -> float:
        """Until when the video was looked at, seconds."""
        return len(self.levels) / self.samples_per_second

    def _between(self, time_s: float) -> tuple[int, int, float]:
        """The samples before and after, and how far the moment is from the one to the other, 0 to 1."""
        place = min(max(time_s * self.samples_per_second, 0.0), len(self.levels) - 1.0)
        before = math.floor(place)
        return before, min(before + 1, len(self.levels) - 1), place - before

    def levels_at(self, time_s: float) -> np.ndarray | None:
        """uint8 (H, W), linear between samples; None where the video was not looked at any more."""
        if time_s >= self.end_s:
            return None
        before, after, share = self._between(time_s)
        return cv2.addWeighted(self.levels[before], 1 - share, self.levels[after], share, 0)

    def quad_at(self, time_s: float) -> np.ndarray | None:
        """float (4, 2): moved along a line between two samples that show the product; where only one of them does,
        as there in the half that is nearer to it."""
        if time_s >= self.end_s:
            return None
        before, after, share = self._between(time_s)
        first, second = self.quads[before], self.quads[after]
        if first is not None and second is not None:
            return (1 - share) * first + share * second
        return first if share < 0.5 else second

    def colours(self) -> tuple[np.ndarray, np.ndarray]:
        """The colour scale, one for the whole clip: (RGB uint8 (256, 3), cover float (256,) from 0 to 1) by level of E.

        Cover, how much of the picture the colour hides, rises as the square root: weak attention is seen too.
        """
        top = max(float(np.percentile(self.levels, TOP_PERCENTILE)), 1.0)
        strength = np.minimum(np.arange(256) / top, 1.0)
        rgb = np.asarray(matplotlib.colormaps[PALETTE](strength, bytes=True))[:, :3]
        return rgb, np.sqrt(strength)
