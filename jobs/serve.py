"""Look at scores in the browser, every video's page on demand: python -m jobs.serve --scores DIR"""

import dataclasses

from jobs.command import run_job
from scoring.settings import VideoLimits


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    scores: str
    """output folder of jobs.score (local or s3://); nothing is written there"""
    videos: str | None = None
    """table of videos that was scored; default: the one that jobs.score was given, where it can be read"""
    products: str | None = None
    """table of products that was scored; default: as --videos"""
    port: int = 8000
    """on 127.0.0.1: the pages are for this machine only"""
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)


def main(config: ServeConfig) -> int:
    from jobs.steps import serve

    return serve.main(config)


if __name__ == "__main__":
    run_job(ServeConfig, main, __doc__ or "")
