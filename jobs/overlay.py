"""Draw attention, product and PE into videos: python -m jobs.overlay --scores DIR --output DIR"""

import dataclasses

from jobs.command import run_job
from scoring.settings import VideoLimits


@dataclasses.dataclass(frozen=True)
class OverlayConfig:
    scores: str
    """output folder of jobs.score --save-maps (local or s3://)"""
    output: str
    """folder for one MP4 a video and overlays.parquet, which says which file is whose; the same command again goes on
    where it ended"""
    videos: str | None = None
    """table of videos that was scored; default: the one that jobs.score was given"""
    video: tuple[str, ...] = ()
    """only the videos of these ids; default: all that were scored"""
    opacity: float = 0.8
    """how much of the picture the heat covers where attention is strongest, 0 to 1"""
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)
    max_failed_fraction: float = 0.5
    """exit with 3 where more than this share of the videos failed"""
    limit: int | None = None
    """only the first so many videos, for a trial"""
    dry_run: bool = False
    """print the plan, write nothing and stop"""


def main(config: OverlayConfig) -> int:
    from jobs.steps import overlay

    return overlay.main(config)


if __name__ == "__main__":
    run_job(OverlayConfig, main, __doc__ or "")
