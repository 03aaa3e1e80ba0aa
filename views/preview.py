"""A video made fit to be embedded in a page, and pictures of its moments.

Kernel code: imports neither Ray nor MLflow. Run it in ``catalog.isolation`` on untrusted files.
"""

import dataclasses
import tempfile
from pathlib import Path

import cv2
import numpy as np

from catalog import storage
from catalog.errors import ErrorCode, Stage, VideoError
from catalog.video import iter_frames, probe
from catalog.video_container import Limits
from views.maps import SavedMap
from views.rewrite import rewrite

FETCH_TIMEOUT_S = 300.0
AS_IT_IS_BYTES = 8_000_000
"""larger files are embedded as a smaller copy"""
PREVIEW_SHORT_SIDE = 480
MAX_EMBEDDED_BYTES = 64_000_000
PLAYED_EVERYWHERE = ("h264", "yuv420p", ".mp4")
THUMBNAIL_HEIGHT = 240
JPEG_QUALITY = 80


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """What to show of a video: its frame at a moment, with its map over it where there is one."""

    video_uri: str
    at_s: float
    saved: SavedMap | None


class Previewer:
    """For a child process: a video's URI -> MP4 bytes; a ``Thumbnail`` -> JPEG bytes. Raises VideoError."""

    def __init__(self, max_duration_s: float, max_bytes: int):
        cv2.setNumThreads(1)
        self.limits, self.max_bytes = Limits(max_duration_s=max_duration_s), max_bytes

    def __call__(self, wanted: str | Thumbnail) -> bytes:
        uri = wanted if isinstance(wanted, str) else wanted.video_uri
        with storage.fetch(uri, self.max_bytes, FETCH_TIMEOUT_S) as path:
            return self._film(path) if isinstance(wanted, str) else self._picture(path, wanted)

    def _film(self, path: Path) -> bytes:
        info = probe(path, self.limits.max_duration_s)
        if (
            path.stat().st_size <= AS_IT_IS_BYTES
            and (info.codec, info.pixel_format, path.suffix.lower()) == PLAYED_EVERYWHERE
        ):
            return path.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "preview.mp4"
            rewrite(path, target, self.limits, short_side=PREVIEW_SHORT_SIDE)
            if target.stat().st_size > MAX_EMBEDDED_BYTES:
                raise VideoError(ErrorCode.TOO_LARGE, f"{path.name} is too long to be embedded in a page", Stage.DECODE)
            return target.read_bytes()

    def _picture(self, path: Path, wanted: Thumbnail) -> bytes:
        every_s = wanted.at_s or 1.0  # so the last sample is the first frame at or after at_s
        samples = iter_frames(path, 1 / every_s, wanted.at_s + 1e-3, self.limits.max_duration_s)
        (*_, picture) = (frame.rgb(_thumbnail_size(*frame.size)) for frame in samples)
        if wanted.saved is not None:
            picture = with_heat(picture, wanted.saved, wanted.at_s)
        _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return jpeg.tobytes()


def _thumbnail_size(width: int, height: int) -> tuple[int, int]:
    return max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT


def with_heat(picture: np.ndarray, saved: SavedMap, at_s: float) -> np.ndarray:
    """uint8 RGB (H, W, 3) in grey with E as heat over it and the product's outlines."""
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    levels = saved.levels_at(at_s)
    if levels is not None:
        size = (picture.shape[1], picture.shape[0])
        fine = cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        rgb, cover = saved.colours()
        share = 0.8 * cover[fine][..., None]
        grey = np.round(grey * (1 - share) + rgb[fine] * share).astype(np.uint8)
    for quad in saved.quads_at(at_s):
        corners = np.round(quad * (picture.shape[1], picture.shape[0])).astype(np.int32)
        for thickness, value in ((4, 0), (2, 255)):
            cv2.polylines(grey, [corners], True, (value, value, value), thickness, cv2.LINE_AA)
    return grey
