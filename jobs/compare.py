"""Compare two videos, or two scoring runs: python -m jobs.compare --scores DIR --creatives ID ID --output FILE.html"""

import dataclasses

from jobs.command import run_job
from scoring.settings import VideoLimits


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    scores: str
    """output folder of jobs.score (local or s3://)"""
    output: str
    """HTML file to write; an earlier one is replaced"""
    creatives: tuple[str, str] | None = None
    """two video_ids of the folder, side by side"""
    other: str | None = None
    """another output folder of jobs.score: which videos are scored otherwise there, such as by another model"""
    videos: str | None = None
    """table of videos that was scored, for --creatives; default: the one that jobs.score was given, where it can be
    read"""
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)


def main(config: CompareConfig) -> int:
    from jobs.steps import compare

    return compare.main(config)


if __name__ == "__main__":
    run_job(CompareConfig, main, __doc__ or "")
