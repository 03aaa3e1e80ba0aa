"""Which frames of a video are looked at: the settings that training and scoring share."""

import dataclasses

from catalog.video import Backend


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
