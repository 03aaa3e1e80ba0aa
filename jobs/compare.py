"""Compare two scoring runs: python -m jobs.compare --a DIR --b DIR; or two videos of one"""

import dataclasses
from typing import Annotated

import tyro

from jobs.command import run_job
from scoring.settings import VideoLimits


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    scores: Annotated[str, tyro.conf.arg(aliases=("--a",))]
    """output folder of jobs.score (local or s3://)"""
    output: str = "compare.html"
    """HTML file to write; an earlier one is replaced"""
    creatives: tuple[str, str] | None = None
    """two video_ids of the folder, side by side"""
    other: Annotated[str | None, tyro.conf.arg(aliases=("--b",))] = None
    """another output folder of jobs.score: what moved between the two runs, such as by another model"""
    tables: str | None = None
    """with --other, a folder for the comparison's tables: drift.csv (each score), videos.parquet (every video in both),
    category.csv and creator_id.csv"""
    videos: str | None = None
    """table of videos that was scored, for --creatives and creators; default: the one that jobs.score was given, where
    it can be read"""
    products: str | None = None
    """table of products, for categories; default as for --videos"""
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)


def main(config: CompareConfig) -> int:
    from jobs.steps import compare

    return compare.main(config)


if __name__ == "__main__":
    run_job(CompareConfig, main, __doc__ or "")
