"""Videos to clips for training. Runs in a supervised child process; imports neither Ray nor MLflow."""

from collections.abc import Callable

import cv2
import numpy as np

from catalog import storage
from catalog.sampling import SamplingConfig
from catalog.video import iter_frames

FETCH_TIMEOUT_S = 120.0


def make_decode(sampling: SamplingConfig, input_size: int) -> Callable[[str], np.ndarray]:
    """The function from a video's URI to its clip, uint8 (S, size, size, 3), a sampled second each."""
    cv2.setNumThreads(1)

    def decode(video_uri: str) -> np.ndarray:
        with storage.fetch(video_uri, int(sampling.max_megabytes * 1e6), FETCH_TIMEOUT_S) as path:
            frames = iter_frames(
                path,
                fps=sampling.sample_fps,
                max_seconds=sampling.max_seconds,
                max_duration_s=sampling.max_duration,
                backend=sampling.decoder,
            )
            return np.stack([frame.rgb((input_size, input_size)) for frame in frames])

    return decode
