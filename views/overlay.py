"""Drawn into a video's frames: E as heat over the picture in grey, the product's outline, a running bar of PE below.

The picture loses its colours, so that every colour that is seen means attention.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from catalog import storage
from catalog.video_container import Limits
from views.maps import SavedMap
from views.rewrite import Planes, Written, rewrite

FETCH_TIMEOUT_S = 300.0
# RGB of full range to Y'CbCr of limited range: ITU-R BT.601 and BT.709
TO_601 = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
TO_709 = np.array([[46.559, 156.629, 15.812], [-25.664, -86.336, 112.0], [112.0, -101.730, -10.270]]) / 255
OFFSET = np.array([16.0, 128.0, 128.0])
WHITE, BLACK, NEUTRAL = 235, 16, 128
BAR_SHARE = 0.05
"""height of the bar, share of the picture's longer side"""
MIN_BAR_PX = 28
DIM, LIT = 90, 200
SUBPIXEL_BITS = 4
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclasses.dataclass(frozen=True)
class OverlayRequest:
    """One video to draw on."""

    video_uri: str
    target: str
    """the local file that is written"""
    saved: SavedMap
    per_sample: Sequence[float]
    """the bar's values, one a sample: PE, or E where the video has no product"""
    bar_name: str
    """what the bar shows: PE or E"""


def make_drawer(opacity: float, max_duration_s: float, max_bytes: int):
    """For a child process: request -> ``Written``; raises VideoError."""
    cv2.setNumThreads(1)

    def drawn(request: OverlayRequest) -> Written:
        overlay = Overlay(request.saved, request.per_sample, request.bar_name, opacity)
        with storage.fetch(request.video_uri, max_bytes, FETCH_TIMEOUT_S) as path:
            return rewrite(path, Path(request.target), Limits(max_duration_s=max_duration_s), overlay)

    return drawn


class Overlay:
    """Draws on one video's pictures, each of which becomes taller by the bar.

    opacity: how much of the picture the heat hides where E is strongest, 0 to 1.
    """

    def __init__(self, saved: SavedMap, per_sample: Sequence[float], bar_name: str, opacity: float):
        self.saved, self.opacity = saved, opacity
        self.per_sample, self.bar_name = np.asarray(per_sample, float), bar_name
        self.heat: dict[bool, np.ndarray] = {}
        self.bar: _Bar | None = None

    def __call__(self, planes: Planes, seconds: float, is_709: bool) -> Planes:
        width, height = planes.size
        if self.bar is None or self.bar.width != width:
            self.bar = _Bar(self.per_sample, self.bar_name, width, bar_height(width, height), self.saved.end_s)
        shown = Planes.empty(width, height + self.bar.height)
        luma, chroma = shown.luma[:height], shown.chroma[:, : height // 2]
        levels = self.saved.levels_at(seconds)
        if levels is None:
            luma[:], chroma[:] = planes.luma, NEUTRAL
        else:
            self._add_heat(planes.luma, levels, is_709, luma, chroma)
        for quad in self.saved.quads_at(seconds):
            _draw_outline(luma, chroma, quad)
        shown.luma[height:] = self.bar.at(seconds)
        shown.chroma[:, height // 2 :] = NEUTRAL
        return shown

    def _add_heat(self, picture: np.ndarray, levels: np.ndarray, is_709: bool, luma: np.ndarray, chroma: np.ndarray):
        if is_709 not in self.heat:
            self.heat[is_709] = self._tables(TO_709 if is_709 else TO_601)
        kept, added, *coloured = self.heat[is_709]
        fine = cv2.resize(levels, picture.shape[::-1], interpolation=cv2.INTER_LINEAR)
        cv2.add(cv2.multiply(picture, cv2.LUT(fine, kept), scale=1 / 255), cv2.LUT(fine, added), dst=luma)
        half = cv2.resize(levels, chroma.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
        for plane, table in zip(chroma, coloured, strict=True):
            cv2.LUT(half, table, dst=plane)

    def _tables(self, to_yuv: np.ndarray) -> np.ndarray:
        """uint8 (4, 256), by level: what is kept of the grey picture (of 255), what is added to it, then Cb and Cr."""
        rgb, cover = self.saved.colours()
        cover = self.opacity * cover
        luma, *chroma = (rgb @ to_yuv.T + OFFSET).T
        coloured = [cover * plane + (1 - cover) * NEUTRAL for plane in chroma]
        return np.round(np.vstack([255 * (1 - cover), cover * luma, *coloured])).astype(np.uint8)


def bar_height(width: int, height: int) -> int:
    """Pixels, even."""
    return max(MIN_BAR_PX, round(BAR_SHARE * max(width, height))) & ~1


def _draw_outline(luma: np.ndarray, chroma: np.ndarray, quad: np.ndarray) -> None:
    """White on a black rim, which is seen on every ground."""
    thin = max(2, round(min(luma.shape) / 240))
    for plane, lines in ((luma, ((2 * thin + 2, BLACK), (thin, WHITE))), *((c, ((thin, NEUTRAL),)) for c in chroma)):
        size = np.array(plane.shape[::-1])
        corners = np.round((quad * size - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
        for thickness, value in lines:
            cv2.polylines(plane, [corners], True, value, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


class _Bar:
    """The values over the whole clip, linear between samples, lit as far as the video has run; in front that of now."""

    def __init__(self, values: np.ndarray, name: str, width: int, height: int, end_s: float):
        self.values, self.name, self.width, self.height, self.end_s = values, name, width, height, end_s
        self.text_scale = height / 44
        (text_width, self.text_height), _ = cv2.getTextSize(f"{name} 0.0000", FONT, self.text_scale, 1)
        self.start = min(text_width + height // 2, width // 2)
        places = (np.arange(width - self.start) + 0.5) / (width - self.start) * len(values)
        self.curve = self._value(places)
        self.dim, self.lit = self._drawn(DIM), self._drawn(LIT)

    def _value(self, place: np.ndarray | float) -> Any:
        return np.interp(place, np.arange(len(self.values)), self.values)

    def _drawn(self, ink: int) -> np.ndarray:
        pad = self.height // 8
        ground = self.height - pad
        heights = np.round(self.curve / (self.values.max() or 1) * (ground - pad))
        rows = np.arange(self.height)[:, None]
        filled = (rows >= ground - heights) & (rows <= ground)
        return np.where(filled, ink, BLACK).astype(np.uint8)

    def at(self, seconds: float) -> np.ndarray:
        """uint8 (height, width)"""
        progress = min(max(seconds / self.end_s, 0.0), 1.0)
        now = round(progress * (self.lit.shape[1] - 1))
        label = np.full((self.height, self.start), BLACK, np.uint8)
        text = f"{self.name} {self._value(progress * len(self.values)):.4f}"
        corner = (self.height // 5, (self.height + self.text_height) // 2)
        cv2.putText(label, text, corner, FONT, self.text_scale, WHITE, 1, cv2.LINE_AA)
        bar = np.hstack([label, self.lit[:, :now], self.dim[:, now:]])
        bar[:, self.start + now] = WHITE
        return bar
