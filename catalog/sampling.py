"""Which frames of a video are looked at: the settings that training and scoring share."""

import dataclasses
from typing import Literal

from catalog.errors import Refused, check_positive

Backend = Literal["pyav", "decord"]

MAX_SAMPLES = 100_000


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Which frames of a video are looked at, and which videos are too much."""

    sample_fps: float = 1.0
    """sampled frames a second of video"""
    max_seconds: float = 60.0
    """only the first so many seconds are looked at"""
    max_duration: float = 600.0
    """longer videos are not decoded: error too_long, seconds"""
    max_megabytes: float = 2048.0
    """larger files are not fetched: error too_large"""
    decoder: Backend = "pyav"
    """pyav (exact, maintained) or decord"""


def check_sampling(sampling: SamplingConfig) -> None:
    """Refused where the settings cannot be meant: nothing to look at, or more than memory holds."""
    check_positive(
        {
            "--sample-fps": sampling.sample_fps,
            "--max-seconds": sampling.max_seconds,
            "--max-duration": sampling.max_duration,
            "--max-megabytes": sampling.max_megabytes,
        }
    )
    samples = sampling.sample_fps * sampling.max_seconds
    if not 1 <= samples <= MAX_SAMPLES:
        raise Refused(
            f"--sample-fps {sampling.sample_fps:g} and --max-seconds {sampling.max_seconds:g} make {samples:g} frames "
            f"a video, expected 1 to {MAX_SAMPLES:,}"
        )
