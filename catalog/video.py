"""Video in: frames at the sampled seconds, upright and in right colours, one at a time.

Time is what a player shows: second 0 is the container's start. Sample k is the first frame whose
presentation time is >= k / fps seconds (half a tick of the stream's time base is forgiven), for
k / fps < max_seconds; sample 0 is always the first frame. Where frames are further apart than 1 / fps, one
frame serves several samples. Colours follow the file's matrix and range tags (untagged: BT.601, limited
range, as FFmpeg and decord take it); HDR is not tone-mapped. Pixels are taken as square.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from catalog import video_pyav
from catalog.errors import ErrorCode
from catalog.sampling import Backend
from catalog.video_container import (
    Limits,
    Source,
    declared_duration_s,
    fail,
    open_video,
)

DEFAULTS = Limits()


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, from its headers and its first frame. Width and height in pixels, upright."""

    width: int
    height: int
    duration_s: float | None
    codec: str
    rotation_degrees: int
    """Clockwise turn that made the stored picture upright: 0, 90, 180 or 270."""
    frame_rate: float | None
    pixel_format: str


@dataclass(frozen=True)
class Headers:
    """What a video's headers declare; None where they do not."""

    duration_s: float | None
    codec: str
    frame_rate: float | None


class Frame(Protocol):
    """One sampled frame. Convert it before asking for the next one and drop it: memory stays constant."""

    @property
    def time(self) -> float:
        """Presentation time in seconds since the container's start."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        ...

    def rgb(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 (height, width, 3), upright; `size` = (width, height) squashes it there by area averaging."""
        ...

    def gray(self, short_side: int | None = None) -> np.ndarray:
        """uint8 (height, width), upright full-range luma, its shorter side at most `short_side` pixels."""
        ...


def read_headers(source: Source, max_duration_s: float = DEFAULTS.max_duration_s) -> Headers:
    """The headers of `source`, nothing decoded; raises VideoError as `iter_frames` does."""
    with open_video(source, Limits(max_duration_s=max_duration_s)) as (container, stream):
        return Headers(
            declared_duration_s(container, stream),
            stream.codec_context.codec.canonical_name,
            float(stream.average_rate) if stream.average_rate else None,
        )


def probe(
    source: Source, max_duration_s: float = DEFAULTS.max_duration_s, max_pixels: int = DEFAULTS.max_pixels
) -> VideoInfo:
    """Headers and the first frame of `source`; raises VideoError as `iter_frames` does."""
    first = next(video_pyav.iter_frames(source, Limits(1.0, 1.0, max_duration_s, max_pixels)), None)
    if first is None:
        fail(ErrorCode.TRUNCATED, source, "no frame could be decoded; fetch it again")
    headers = read_headers(source, max_duration_s)
    width, height = first.size
    return VideoInfo(
        width,
        height,
        headers.duration_s,
        headers.codec,
        video_pyav.rotation_degrees(first.frame),
        headers.frame_rate,
        first.frame.format.name,
    )


def iter_frames(
    source: Source,
    fps: float = DEFAULTS.fps,
    max_seconds: float = DEFAULTS.max_seconds,
    max_duration_s: float = DEFAULTS.max_duration_s,
    max_pixels: int = DEFAULTS.max_pixels,
    backend: Backend = "pyav",
) -> Iterator[Frame]:
    """The sampled frames of `source` (a local path, or a seekable binary file) in order, at least one.

    Raises VideoError (stage decode): not_found, forbidden, not_a_video (empty, text, an image),
    no_video_stream, too_long (by its declared duration, else by its packets), too_large (width * height >
    max_pixels), and truncated: the file ends more than half a second before the end it declares, or a packet
    that a sample needs cannot be decoded, both within the first `max_seconds`. Sound may be broken.
    It has no time limit of its own and a decoder may crash: run it in `catalog.isolation` on untrusted files.
    """
    limits = Limits(fps, max_seconds, max_duration_s, max_pixels)
    if backend == "pyav":
        return video_pyav.iter_frames(source, limits)
    if backend == "decord":
        from catalog import video_decord  # the optional one: it loads a second FFmpeg

        return video_decord.iter_frames(source, limits)
    raise ValueError(f'backend is {backend!r}, expected "pyav" or "decord"')


def sample_frames(
    source: Source,
    fps: float = DEFAULTS.fps,
    max_seconds: float = DEFAULTS.max_seconds,
    max_duration_s: float = DEFAULTS.max_duration_s,
    max_pixels: int = DEFAULTS.max_pixels,
    backend: Backend = "pyav",
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 (S, H, W, 3) upright RGB, times float64 (S,) seconds), rules and errors as `iter_frames`.

    `size` = (width, height) resizes every frame; without it frames have the size of the first one.
    """
    frames: list[np.ndarray] = []
    times: list[float] = []
    for frame in iter_frames(source, fps, max_seconds, max_duration_s, max_pixels, backend):
        picture = frame.rgb(size)
        if frames and picture.shape != frames[0].shape:  # the resolution changed within the stream
            picture = frame.rgb((frames[0].shape[1], frames[0].shape[0]))
        frames.append(picture)
        times.append(frame.time)
    return np.stack(frames), np.array(times, dtype=np.float64)
