"""Exact frames at the sampled seconds with PyAV, decoding only what those frames need."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from catalog.errors import ErrorCode
from catalog.video_container import Limits, Source, Timeline, check_pixels, fail, open_video, packets, survey

DISPLAY_MATRIX = "DISPLAYMATRIX"


class _NotAsPlanned(Exception):
    """Decoded frames are not those that the packets announced; `ordered`: nor are their times."""

    def __init__(self, ordered: bool):
        self.ordered = ordered


@dataclass(frozen=True)
class PyAvFrame:
    """One decoded frame; it converts on request, so a frame that only SIFT looks at never becomes RGB."""

    time: float
    frame: VideoFrame
    reformatter: VideoReformatter

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.frame.width, self.frame.height
        return (height, width) if orientation(self.frame)[0] else (width, height)

    def rgb(self, size: tuple[int, int] | None = None) -> np.ndarray:
        width, height = size or (None, None)
        if size and orientation(self.frame)[0]:
            width, height = height, width
        picture = self.reformatter.reformat(
            self.frame,
            width,
            height,
            "rgb24",
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.AREA if size else Interpolation.BILINEAR,
            threads=1,
        )
        return upright(picture.to_ndarray(), self.frame)

    def gray(self, short_side: int | None = None) -> np.ndarray:
        width, height = shrunk_size(self.frame.width, self.frame.height, short_side)
        picture = self.reformatter.reformat(
            self.frame,
            width,
            height,
            "gray",
            # The same matrix on both sides: luma as stored, only its range is stretched.
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.AREA,
            threads=1,
        )
        return upright(picture.to_ndarray(), self.frame)


def shrunk_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) with the shorter side at most `short_side`, the aspect ratio kept."""
    if short_side is None or short_side >= min(width, height):
        return width, height
    scale = short_side / min(width, height)
    return round(width * scale), round(height * scale)


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, flip left-right, flip up-down), in this order, from FFmpeg's display matrix."""
    side_data: Any = frame.side_data
    for data in side_data:
        if data.type.name == DISPLAY_MATRIX:
            a, b, _, c, d = np.frombuffer(bytes(data)[:20], np.int32).tolist()
            if abs(b) > abs(a):
                return True, c < 0, b < 0
            return False, a < 0, d < 0
    return False, False, False


def upright(picture: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """A picture or a plane of the frame, (H, W) or (H, W, C), as a player shows it."""
    transpose, flip_x, flip_y = orientation(frame)
    if transpose:
        picture = picture.swapaxes(0, 1)
    if flip_x:
        picture = picture[:, ::-1]
    if flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def rotation_degrees(frame: VideoFrame) -> int:
    """Clockwise turn that makes the stored picture upright: 0, 90, 180 or 270."""
    return round(-frame.rotation / 90) * 90 % 360


def iter_frames(source: Source, limits: Limits) -> Iterator[PyAvFrame]:
    """The sampled frames in order; errors and rules as `catalog.video.iter_frames` says."""
    timeline = survey(source, limits)
    skip, ordered = timeline.reordered, not timeline.reordered
    given = 0
    while True:
        try:
            for frame in _decode(source, limits, timeline, skip=skip, ordered=ordered, start=given):
                given += 1
                yield frame
            return
        except _NotAsPlanned as surprise:
            skip, ordered = False, surprise.ordered


def _decode(
    source: Source, limits: Limits, timeline: Timeline, *, skip: bool, ordered: bool, start: int
) -> Iterator[PyAvFrame]:
    reformatter = VideoReformatter()
    wanted = set(timeline.planned)
    k, decoded, last = 0, 0, None
    with open_video(source, limits) as (container, stream):
        for packet in packets(container, stream, source):
            if skip:
                # A frame that no other frame refers to is decoded only where it is a sample.
                is_sample = packet.pts is None or packet.pts - timeline.origin in wanted
                stream.codec_context.skip_frame = "DEFAULT" if is_sample else "NONREF"
            for frame in _decoded(source, packet, timeline):
                if ordered:
                    shown_at = timeline.shown[min(decoded, len(timeline.shown) - 1)]
                elif frame.pts is None or (last is not None and frame.pts - timeline.origin <= last):
                    raise _NotAsPlanned(ordered=True)
                else:
                    shown_at = last = frame.pts - timeline.origin
                decoded += 1
                if k > 0 and shown_at < timeline.needs[k]:
                    continue
                if skip and shown_at != timeline.planned[k]:
                    raise _NotAsPlanned(ordered=False)
                check_pixels(source, frame.width, frame.height, limits)
                seconds = float(shown_at * timeline.time_base)
                if frame.is_corrupt:
                    fail(ErrorCode.TRUNCATED, source, f"its frame at {seconds:.2f} s is damaged")
                while k < len(timeline.needs) and (k == 0 or shown_at >= timeline.needs[k]):
                    if k >= start:
                        yield PyAvFrame(seconds, frame, reformatter)
                    k += 1
                if k == len(timeline.needs):
                    return
    if skip:
        raise _NotAsPlanned(ordered=False)
    # The last packet of some files holds no picture; more than one sample short means lost frames.
    if k == 0 or k < len(timeline.needs) - 1:
        fail(ErrorCode.TRUNCATED, source, f"only {k} of {len(timeline.needs)} sampled frames could be decoded")


def _decoded(source: Source, packet: Any, timeline: Timeline) -> list[VideoFrame]:
    try:
        return packet.decode()
    except FFmpegError as error:
        at = packet.pts if packet.pts is not None else packet.dts
        where = "its end" if at is None else f"{float((at - timeline.origin) * timeline.time_base):.2f} s"
        reason = (error.strerror or str(error)).rstrip(".")
        if isinstance(error, MemoryError):
            raise MemoryError(f"decoding at {where}: {reason}") from error
        fail(ErrorCode.TRUNCATED, source, f"cannot be decoded at {where} ({reason}); fetch it again")
