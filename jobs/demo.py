"""The main job on a small made-up world with known truth: python -m jobs.demo --workdir DIR"""

import dataclasses
from pathlib import Path

from jobs.command import run_job


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    workdir: Path = Path("demo")
    """folder for the world, the scores and the report"""
    videos: int = 192
    """how many videos to make up"""
    seconds: tuple[float, float] = (6.0, 10.0)
    """the shortest and the longest of them"""
    fps: int = 8
    """their frames a second"""
    architecture: str = "r3d_18_w16"
    """network to train; r3d_18, the default of jobs.train, takes some ten times longer"""
    epochs: int = 7
    """passes over the training videos"""
    seed: int = 0
    """of the world, the split and the training"""


def main(config: DemoConfig) -> int:
    from jobs.steps import demo

    return demo.main(config)


if __name__ == "__main__":
    run_job(DemoConfig, main, __doc__ or "")
