"""Show scores as one HTML page: python -m jobs.report --scores DIR --output FILE.html"""

import dataclasses

from jobs.command import run_job


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    scores: str
    """output folder of jobs.score (local or s3://)"""
    output: str
    """HTML file to write; an earlier one is replaced"""
    videos: str | None = None
    """table of videos that was scored; adds title, creator_id and posted_at where it has them"""


def main(config: ReportConfig) -> int:
    from jobs.steps import report

    return report.main(config)


if __name__ == "__main__":
    run_job(ReportConfig, main, __doc__ or "")
