"""The same samples through decord 0.6 (unmaintained), the optional backend; docs/decode.md has its limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import decord
import numpy as np

from catalog.errors import ErrorCode
from catalog.video_container import (
    Limits,
    Source,
    fail,
    name_of,
    open_video,
    origin_ticks,
    survey,
)
from catalog.video_pyav import shrunk_size


@dataclass(frozen=True)
class DecordFrame:
    """One frame as decord gives it: RGB, already turned upright by decord."""

    time: float
    picture: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.picture.shape[:2]
        return width, height

    def rgb(self, size: tuple[int, int] | None = None) -> np.ndarray:
        return cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA) if size else self.picture

    def gray(self, short_side: int | None = None) -> np.ndarray:
        height, width = self.picture.shape[:2]
        return cv2.cvtColor(self.rgb(shrunk_size(width, height, short_side)), cv2.COLOR_RGB2GRAY)


def iter_frames(source: Source, limits: Limits) -> Iterator[DecordFrame]:
    """Samples by decord's own frame times; the file is checked as for PyAV before decord sees it."""
    timeline = survey(source, limits)
    with open_video(source, limits) as (container, stream):
        # decord counts from the video stream's start, players from the container's.
        first = stream.start_time if stream.start_time is not None else timeline.origin
        shift_s = float((first - origin_ticks(container, stream)) * stream.time_base)
    reader, times = _open(source)
    times = times + shift_s
    half_tick_s = float(timeline.time_base) / 2 + 1e-5  # decord's times are float32
    picture, held = None, None
    for k in range(len(timeline.needs)):
        place = int(np.searchsorted(times, k / limits.fps - half_tick_s)) if k else 0
        if place == len(times):
            return
        if place != held:
            picture, held = _read(source, reader, place), place
        assert picture is not None
        yield DecordFrame(float(times[place]), picture)


def _open(source: Source) -> tuple[Any, np.ndarray]:
    if not isinstance(source, str):
        source = name_of(source) if hasattr(source, "__fspath__") else source
    try:
        reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    except (decord.DECORDError, RuntimeError) as error:
        fail(ErrorCode.INTERNAL, source, f"decord cannot read it ({_line(error)}); use the backend pyav")
    if len(times) == 0 or times[0] < -1 or np.any(np.diff(times) < 0):
        fail(ErrorCode.INTERNAL, source, "decord gives no usable frame times; use the backend pyav")
    return reader, times


def _read(source: Source, reader: Any, place: int) -> np.ndarray:
    try:
        return reader[place].asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        fail(ErrorCode.TRUNCATED, source, f"decord cannot decode frame {place} ({_line(error)})")


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
