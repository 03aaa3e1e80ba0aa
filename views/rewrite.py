"""A video written anew, frame by frame: H.264 (yuv420p, index in front), upright, at the source's times, sound kept.

Kernel code: imports neither Ray nor MLflow. Run it in ``catalog.isolation`` on untrusted files.
"""

import dataclasses
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, VideoReformatter

from catalog.errors import ErrorCode
from catalog.video_container import Limits, fail, open_video, origin_ticks
from catalog.video_pyav import orientation, shrunk_size, upright

COPIED_SOUND = ("aac", "mp3")
"""What an MP4 file holds and every browser plays; other sound is encoded as AAC."""
SOUND_BIT_RATE = 128_000
MAX_AAC_HZ = 48_000
LIMITED_RANGE = 1
USUAL_RATE = Fraction(25)
PICTURE = {"preset": "ultrafast", "crf": "25", "x264-params": "cabac=1:deblock=0,0"}
"""Fast and, by the two steps that ultrafast leaves out, a quarter smaller (docs/decisions.md)."""
BT709, BT601 = 1, 6


@dataclasses.dataclass(frozen=True)
class Planes:
    """One picture as Y'CbCr, 4:2:0, limited range: views into one buffer of uint8."""

    buffer: np.ndarray
    """(3 * height / 2, width)"""

    @classmethod
    def empty(cls, width: int, height: int) -> "Planes":
        return cls(np.empty((height * 3 // 2, width), np.uint8))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), both even."""
        return self.buffer.shape[1], self.buffer.shape[0] * 2 // 3

    @property
    def luma(self) -> np.ndarray:
        """(height, width)"""
        return self.buffer[: self.size[1]]

    @property
    def chroma(self) -> np.ndarray:
        """(2, height / 2, width / 2): Cb, Cr"""
        width, height = self.size
        return self.buffer[height:].reshape(2, height // 2, width // 2)


Draw = Callable[[Planes, float, bool], Planes]
"""(picture, seconds since the start, whether its matrix is BT.709 rather than BT.601) -> what is shown instead"""


@dataclasses.dataclass(frozen=True)
class Written:
    """What a video became."""

    frames: int
    seconds: float
    """when the last frame is shown"""
    width: int
    height: int


def rewrite(
    source: Path, target: Path, limits: Limits, draw: Draw | None = None, short_side: int | None = None
) -> Written:
    """Write ``source`` as MP4 to ``target``, every frame as ``draw`` makes it.

    ``short_side``: pixels to which larger pictures are reduced. Frames that cannot be decoded are left out, as players
    do. Raises VideoError as ``catalog.video.iter_frames``, truncated only where there is no frame at all.
    """
    with (
        open_video(source, limits) as (reader, stream),
        av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as writer,
    ):
        picture = _PictureTrack(writer, reader, stream, draw, short_side)
        sound = _SoundTrack(writer, reader)
        waiting = []  # the first sound that is written closes the file's head, which needs the picture's size
        for packet in _packets(reader, [stream, *sound.streams]):
            if packet.stream.index != stream.index:
                waiting.append(packet)
                continue
            for frame in _decoded(packet):
                picture.add(frame)
            if picture.written is not None:
                sound.add(waiting)
                waiting = []
        if picture.written is None:
            fail(ErrorCode.TRUNCATED, source, "no frame could be decoded; fetch it again")
        sound.add(waiting)
        picture.close()
        sound.close()
        return picture.written


def _packets(reader: Any, streams: list[Any]) -> Iterator[Any]:
    """As far as the file can be read."""
    demuxed = reader.demux(streams)
    while True:
        try:
            packet = next(demuxed, None)
        except MemoryError:
            raise
        except FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _decoded(packet: Any) -> list[Any]:
    try:
        return packet.decode()
    except MemoryError:
        raise
    except FFmpegError:
        return []


class _PictureTrack:
    """Decoded frames in, H.264 out; opened by the first frame, whose size and colours hold for all."""

    def __init__(self, writer: Any, reader: Any, stream: Any, draw: Draw | None, short_side: int | None):
        self.writer, self.draw, self.short_side = writer, draw, short_side
        self.time_base: Fraction = stream.time_base
        self.origin = origin_ticks(reader, stream)
        self.rate = Fraction(stream.average_rate or USUAL_RATE)
        self.reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.written: Written | None = None
        self.last: int | None = None
        # made here, because a container's tracks must be known before its first packet
        self.track = writer.add_stream("libx264", rate=self.rate, options=PICTURE)
        self.track.time_base = self.track.codec_context.time_base = self.time_base

    def add(self, frame: Any) -> None:
        shown_at = self._shown_at(frame)
        if shown_at is None:
            return
        planes, is_709 = self._planes(frame)
        seconds = float(shown_at * self.time_base)
        if self.draw is not None:
            planes = self.draw(planes, seconds, is_709)
        if self.last is None:
            self._open(planes, is_709)
        shown = av.VideoFrame.from_ndarray(planes.buffer, format="yuv420p")
        shown.pts, shown.time_base = shown_at, self.time_base
        self.writer.mux(self.track.encode(shown))
        self.last = shown_at
        frames = self.written.frames + 1 if self.written else 1
        self.written = Written(frames, seconds, *planes.size)

    def close(self) -> None:
        self.writer.mux(self.track.encode(None))

    def _shown_at(self, frame: Any) -> int | None:
        """Ticks since the start; None for a frame that would step back."""
        if frame.pts is not None:
            shown_at = frame.pts - self.origin
            return shown_at if self.last is None or shown_at > self.last else None
        return 0 if self.last is None else self.last + max(1, round(1 / (self.rate * self.time_base)))

    def _planes(self, frame: Any) -> tuple[Planes, bool]:
        if self.size is None:
            width, height = shrunk_size(frame.width, frame.height, self.short_side)
            self.size = (max(width & ~1, 2), max(height & ~1, 2))
        matrix = int(frame.colorspace)
        width, height = self.size
        stored = self.reformatter.reformat(
            frame, width, height, "yuv420p", dst_color_range=ColorRange.MPEG, threads=1
        ).to_ndarray()
        planes = Planes(stored)
        if any(orientation(frame)):
            turned = Planes.empty(*((height, width) if orientation(frame)[0] else (width, height)))
            turned.luma[:] = upright(planes.luma, frame)
            for to, plane in zip(turned.chroma, planes.chroma, strict=True):
                to[:] = upright(plane, frame)
            planes = turned
        return planes, matrix == BT709

    def _open(self, planes: Planes, is_709: bool) -> None:
        context = self.track.codec_context
        self.track.width, self.track.height = planes.size
        self.track.pix_fmt = "yuv420p"
        context.thread_count, context.color_range = 1, LIMITED_RANGE
        context.colorspace = BT709 if is_709 else BT601


class _SoundTrack:
    """The first soundtrack: packets as they are where MP4 and browsers take them, else as AAC."""

    def __init__(self, writer: Any, reader: Any):
        self.writer = writer
        self.streams = [s for s in reader.streams.audio if s.codec_context is not None][:1]
        if not self.streams:
            return
        (stream,) = self.streams
        start = Fraction(reader.start_time or 0, av.time_base)
        self.origin = round(start / stream.time_base)
        self.is_copied = stream.codec_context.codec.canonical_name in COPIED_SOUND
        if self.is_copied:
            self.track = writer.add_stream_from_template(stream)
        else:
            self.track = writer.add_stream("aac", rate=min(stream.codec_context.sample_rate, MAX_AAC_HZ))
            self.track.bit_rate = SOUND_BIT_RATE

    def add(self, packets: list[Any]) -> None:
        for packet in packets:
            if not self.is_copied:
                for frame in _decoded(packet):
                    if frame.pts is not None:
                        frame.pts -= self.origin
                    self.writer.mux(self.track.encode(frame))
            elif packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - self.origin, packet.dts - self.origin
                packet.stream = self.track
                self.writer.mux(packet)

    def close(self) -> None:
        if self.streams and not self.is_copied:
            self.writer.mux(self.track.encode(None))
