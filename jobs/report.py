"""Show scores of a catalogue or a video as one HTML page: python -m jobs.report --scores DIR --output FILE.html"""

import dataclasses

from jobs.command import run_job
from scoring.settings import VideoLimits


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    scores: str
    """output folder of jobs.score (local or s3://)"""
    output: str
    """HTML file to write; an earlier one is replaced"""
    videos: str | None = None
    """table of videos that was scored; adds title, creator_id and posted_at where it has them, and the videos
    themselves; default: the one that jobs.score was given, where it can be read"""
    products: str | None = None
    """table of products that was scored; adds titles and categories; default: as --videos"""
    video: str | None = None
    """the page of this one video (its video_id): the film with attention and product over it, its chart, what to try"""
    pages: int = 0
    """also make the pages of so many videos with the highest PE and of as many with the lowest, in a folder beside
    FILE, and link to them"""
    figures: str | None = None
    """folder for figures for papers, PNG and SVG: mean E, P and PE over time and, with saved maps, over space"""
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)


def main(config: ReportConfig) -> int:
    from jobs.steps import report

    return report.main(config)


if __name__ == "__main__":
    run_job(ReportConfig, main, __doc__ or "")
