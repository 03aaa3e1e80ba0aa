"""Videos to clips for training. Runs in a supervised child process; imports neither Ray nor MLflow."""

from collections.abc import Callable

import cv2
import numpy as np

from catalog import storage
from catalog.sampling import SamplingConfig
from catalog.video import Frame, iter_frames
from catalog.video_pyav import shrunk_size
from training.near_copies import frame_hashes

FETCH_TIMEOUT_S = 120.0
SHORT_SIDE = 128
"""of a cached frame, pixels, at most; more for networks that see more. Its aspect ratio is the video's."""
MAX_ASPECT = 4.0
"""longer frames are squashed to it: a banner must not take the room of many videos"""


def make_decode(sampling: SamplingConfig, input_size: int) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """The function from a video's URI to its clip, uint8 (S, H, W, 3), a sampled second each, and ``frame_hashes``."""
    cv2.setNumThreads(1)

    def decode(video_uri: str) -> tuple[np.ndarray, np.ndarray]:
        with storage.fetch(video_uri, int(sampling.max_megabytes * 1e6), FETCH_TIMEOUT_S) as path:
            frames = iter_frames(
                path,
                fps=sampling.sample_fps,
                max_seconds=sampling.max_seconds,
                max_duration_s=sampling.max_duration,
                backend=sampling.decoder,
            )
            clip = []
            size: tuple[int, int] | None = None
            for frame in frames:
                size = size or cached_size(*frame.size, input_size)
                clip.append(frame.rgb(size))
        stacked = np.stack(clip)
        return stacked, frame_hashes(stacked)

    return decode


def short_side(input_size: int) -> int:
    return max(SHORT_SIDE, input_size)


def cached_size(width: int, height: int, input_size: int) -> tuple[int, int]:
    """(width, height) of a cached frame of such a video."""
    width, height = shrunk_size(width, height, short_side(input_size))
    return min(width, round(MAX_ASPECT * height)), min(height, round(MAX_ASPECT * width))


def squashed(clip: np.ndarray, size: int) -> np.ndarray:
    """A clip of ``cached_size``, uint8 (S, H, W, 3) -> (S, size, size, 3), what the networks see."""
    interpolation = cv2.INTER_AREA if min(clip.shape[1:3]) >= size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=interpolation) for frame in clip])


def network_input(frame: Frame, size: int) -> np.ndarray:
    """One frame as the networks see it, uint8 (size, size, 3): in scoring what it was in training."""
    return squashed(frame.rgb(cached_size(*frame.size, size))[None], size)[0]
