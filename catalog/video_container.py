"""Opening an untrusted video file: its streams, its limits and its timeline, before any frame is decoded."""

import io
import math
import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
from av.error import FFmpegError

from catalog.errors import ErrorCode, Stage, VideoError

Source = str | os.PathLike[str] | BinaryIO | io.RawIOBase

# Playlists (hls, concat, dash) could make FFmpeg read other files; images and text are no videos.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,"
    "ogg,asf,mxf,nut,rm,dv,gif,yuv4mpegpipe,mp3,wav,flac,aac,aiff,amr"
)
# A file that starts like this and cannot be opened was a video once: it is cut off, not something else.
MAGIC_AT = {4: (b"ftyp", b"moov", b"mdat", b"free", b"wide"), 0: (b"\x1aE\xdf\xa3", b"RIFF", b"FLV")}
ENDS_EARLY_S = 0.5


@dataclass(frozen=True)
class Limits:
    """What is sampled and what is refused; see `catalog.video.iter_frames`."""

    fps: float = 1.0
    max_seconds: float = 60.0
    max_duration_s: float = 600.0
    max_pixels: int = 8192 * 4096

    def __post_init__(self) -> None:
        if not (self.fps > 0 and self.max_seconds > 0):
            raise ValueError(f"fps and max_seconds must be above 0, got {self.fps} and {self.max_seconds}")


@dataclass(frozen=True)
class Timeline:
    """When the video's frames are shown, and which of them are samples.

    `shown`: times of the packets in ticks of `time_base` since the container's start, sorted. `needs[k]`: the
    earliest tick that sample k may have; `planned[k]`: the tick in `shown` that meets it. `reordered`: the
    packets' times can be attached to decoded frames; otherwise frame n is shown at `shown[n]`.
    """

    shown: list[int]
    needs: list[int]
    planned: list[int]
    origin: int
    time_base: Fraction
    reordered: bool


def fail(code: ErrorCode, source: Source, problem: str) -> NoReturn:
    raise VideoError(code, f"{name_of(source)}: {problem}", Stage.DECODE)


def name_of(source: Source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", "<stream>"))


def _reason(error: FFmpegError) -> str:
    return (error.strerror or str(error)).rstrip(".")


@contextmanager
def open_video(source: Source, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """The container and its first real video stream, single-threaded, within the limits its headers tell."""
    file: Any = source
    if isinstance(source, str | os.PathLike):
        file = f"file:{os.fspath(source)}"  # a name such as "concat:..." stays a file's name
    else:
        source.seek(0)
    try:
        container = av.open(file, options={"format_whitelist": CONTAINERS})
    except FileNotFoundError:
        fail(ErrorCode.NOT_FOUND, source, "no such file")
    except PermissionError:
        fail(ErrorCode.FORBIDDEN, source, "may not be read; check the file's permissions")
    except MemoryError:  # FFmpeg's own is an FFmpegError too
        raise
    except (FFmpegError, UnicodeError) as error:
        _refuse_unreadable(source, error)
    with container:
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            held = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            fail(ErrorCode.NO_VIDEO_STREAM, source, f"holds no video stream (it holds: {held})")
        stream = streams[0]
        if stream.codec_context is None:
            fail(
                ErrorCode.NOT_A_VIDEO,
                source,
                "its video codec is unknown to this FFmpeg; convert it to H.264",
            )
        stream.codec_context.thread_count = 1
        duration = declared_duration_s(container, stream)
        if duration is not None and duration > limits.max_duration_s:
            fail(ErrorCode.TOO_LONG, source, f"lasts {duration:.1f} s, more than {limits.max_duration_s:g} s")
        check_pixels(source, stream.codec_context.width, stream.codec_context.height, limits)
        yield container, stream


def check_pixels(source: Source, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        fail(ErrorCode.TOO_LARGE, source, f"has {width}x{height} pixels, more than {limits.max_pixels}")


def _refuse_unreadable(source: Source, error: Exception) -> NoReturn:
    try:
        if isinstance(source, str | os.PathLike):
            with Path(source).open("rb") as stream:
                head = stream.read(12)
        else:
            source.seek(0)
            head = source.read(12)
    except OSError as unreadable:
        fail(ErrorCode.NOT_A_VIDEO, source, f"cannot be read ({unreadable.strerror})")
    if not head:
        fail(ErrorCode.NOT_A_VIDEO, source, "is empty (0 bytes); fetch it again")
    if any(head[at:].startswith(magic) for at, magics in MAGIC_AT.items() for magic in magics):
        fail(ErrorCode.TRUNCATED, source, "is cut off: its index is missing or broken; fetch it again")
    why = _reason(error) if isinstance(error, FFmpegError) else str(error)
    fail(ErrorCode.NOT_A_VIDEO, source, f"is no video that FFmpeg reads ({why})")


def declared_duration_s(container: Any, stream: Any) -> float | None:
    if container.duration is not None:
        return container.duration / av.time_base
    return None if stream.duration is None else float(stream.duration * stream.time_base)


def origin_ticks(container: Any, stream: Any) -> int:
    """The container's start in the stream's ticks: players show it as second 0."""
    if container.start_time is None:
        return stream.start_time or 0
    return round(Fraction(container.start_time, av.time_base) / stream.time_base)


def packets(container: Any, stream: Any, source: Source) -> Iterator[Any]:
    """The stream's packets, last the empty one that flushes a decoder; read errors become VideoError."""
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
        except MemoryError:
            raise
        except FFmpegError as error:
            fail(ErrorCode.TRUNCATED, source, f"cannot be read to its end ({_reason(error)})")
        if packet is None:
            return
        yield packet


def survey(source: Source, limits: Limits) -> Timeline:
    """Reads packets and decodes none: where the samples are, whether the file is cut or too long."""
    with open_video(source, limits) as (container, stream):
        tick: Fraction = stream.time_base
        origin = origin_ticks(container, stream)
        needs = _needs(limits, tick)
        undeclared = declared_duration_s(container, stream) is None
        shown: list[int] = []
        end = 0
        covers_last: int | None = None  # the earliest tick seen that serves the last sample
        complete = timed = in_decoding_order = True
        for packet in packets(container, stream, source):
            if packet.size == 0 or packet.is_discard:
                continue
            duration = packet.duration or 0
            time = packet.pts if packet.pts is not None else packet.dts
            timed = timed and packet.pts is not None
            shown_at = end if time is None else time - origin
            in_decoding_order = in_decoding_order and (not shown or shown_at > shown[-1])
            shown.append(shown_at)
            end = max(end, shown_at + duration)
            if undeclared and shown_at * tick > limits.max_duration_s:
                fail(ErrorCode.TOO_LONG, source, f"lasts more than {limits.max_duration_s:g} s")
            if shown_at >= needs[-1] and (covers_last is None or shown_at < covers_last):
                covers_last = shown_at
            decoded_at = shown_at if packet.dts is None else packet.dts - origin
            if covers_last is not None and decoded_at >= covers_last and not undeclared:
                complete = False  # no later packet can be shown earlier
                break
        if not shown:
            fail(ErrorCode.TRUNCATED, source, "its video stream holds no frame; fetch it again")
        if complete:
            _check_end(source, container, stream, float(end * tick), limits)
        # AVI stores no presentation times; where frames are reordered, times that never step back are wrong.
        reordered = (
            timed and container.format.name != "avi" and not (in_decoding_order and stream.codec_context.has_b_frames)
        )
    shown.sort()
    places = [0] + [bisect_left(shown, need) for need in needs[1:]]
    planned = [shown[place] for place in places if place < len(shown)]
    return Timeline(shown, needs[: len(planned)], planned, origin, tick, reordered)


def _needs(limits: Limits, tick: Fraction) -> list[int]:
    """needs[k] = the smallest tick that is not before k / fps by more than half a tick; exact arithmetic."""
    fps = Fraction(limits.fps).limit_denominator(100_000)
    count = math.ceil(Fraction(limits.max_seconds).limit_denominator(100_000) * fps)
    return [math.ceil(k / (fps * tick) - Fraction(1, 2)) for k in range(count)]


def _check_end(source: Source, container: Any, stream: Any, end_s: float, limits: Limits) -> None:
    """Refuses a file whose frames stop well before the end that it declares (within the sampled seconds)."""
    origin_s = float(origin_ticks(container, stream) * stream.time_base)
    if container.format.name == "avi" and stream.frames:
        # The header's length, in ticks; FFmpeg shrinks the duration to the size of a file that was cut.
        declared = float(stream.frames * stream.time_base)
    elif stream.duration is not None:
        declared = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - origin_s
    elif container.duration is not None:
        declared = container.duration / av.time_base
    else:
        return
    if end_s >= min(declared, limits.max_seconds) - ENDS_EARLY_S:
        return
    if stream.duration is None and _others_end_s(source, stream.index, limits) - origin_s >= declared - ENDS_EARLY_S:
        return  # only the sound is that long
    fail(ErrorCode.TRUNCATED, source, f"ends after {end_s:.1f} of {declared:.1f} s; fetch it again")


def _others_end_s(source: Source, video_index: int, limits: Limits) -> float:
    end = 0.0
    with open_video(source, limits) as (container, _):
        others = [s for s in container.streams if s.index != video_index]
        try:
            for packet in container.demux(others) if others else ():
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except FFmpegError:
            pass  # a broken soundtrack counts as far as it goes
    return end
