"""A saved engagement map over time: E and the product's outlines at any moment of the video.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from scipy.optimize import linear_sum_assignment

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
    quads: Sequence[np.ndarray]
    """per sample the corners of every copy of the product, float (N, 4, 2), x and y in fractions of the upright frame,
    in the order of the sample before; N is 0 where it was not found"""
    samples_per_second: float

    @classmethod
    def of_row(cls, row: Mapping[str, Any], samples_per_second: float) -> "SavedMap":
        """row: of catalog.schemas.MAPS."""
        shape = (row["seconds"], row["height"], row["width"])
        return cls(
            np.frombuffer(row["e_uint8"], np.uint8).reshape(shape),
            in_step(quads_of(row["product_quads"], row["seconds"])),
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

    def quads_at(self, time_s: float) -> np.ndarray:
        """float (N, 4, 2): moved along lines between two samples that show as many copies of the product; else as in
        the nearer one."""
        if time_s >= self.end_s:
            return np.empty((0, 4, 2))
        before, after, share = self._between(time_s)
        first, second = self.quads[before], self.quads[after]
        if len(first) == len(second):
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


def quads_of(column: Sequence[Sequence[float] | None] | None, samples: int) -> list[np.ndarray]:
    """``product_quads`` of a row of catalog.schemas.SCORES or MAPS as float (N, 4, 2) a sample."""
    return [np.reshape(quads or (), (-1, 4, 2)).astype(float) for quads in column or [None] * samples]


def in_step(quads: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same, with the copies of a sample in the order of those of the sample before that lie nearest to them."""
    ordered = list(quads[:1])
    for second in quads[1:]:
        first = ordered[-1]
        if len(first) == len(second) > 1:
            apart = np.linalg.norm(first.mean(axis=1)[:, None] - second.mean(axis=1)[None], axis=2)
            second = second[linear_sum_assignment(apart)[1]]
        ordered.append(second)
    return ordered
