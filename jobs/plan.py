"""Estimate time, nodes and price of scoring a catalogue: python -m jobs.plan --videos V --products P --price-cpu X"""

import dataclasses

from catalog.sampling import SamplingConfig
from jobs.command import run_job
from scoring.settings import MapConfig, ProductConfig, VideoLimits
from tracking.names import CHAMPION, MODEL_NAME


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    videos: str
    """table of videos, as for jobs.score"""
    price_cpu: float
    """price of a core-hour, any currency"""
    price_gpu: float | None = None
    """price of a GPU-hour with the cores that come with it; needed where the cluster has GPUs"""
    products: str | None = None
    """table of products, as for jobs.score"""
    model: str = f"models:/{MODEL_NAME}@{CHAMPION}"
    """registered model or checkpoint file"""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    maps: MapConfig = dataclasses.field(default_factory=MapConfig)
    product: ProductConfig = dataclasses.field(default_factory=ProductConfig)
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)
    sample: int = 64
    """videos that are really scored, drawn at random; their scores are not kept"""
    sample_seed: int = 0
    """of the draw"""
    deadline_hours: float = 24.0
    """by when the whole catalogue shall be scored"""
    node_cpus: int = 16
    """cores of a CPU node"""
    efficiency: float = 0.88
    """kernel time over cores x wall time that the job will reach (docs/scale.md)"""
    gpu_share: float = 1.0
    """of a GPU that one actor takes, as for jobs.score"""
    output: str | None = None
    """JSON file to write; an earlier one is replaced"""


def main(config: PlanConfig) -> int:
    from jobs.steps import plan

    return plan.main(config)


if __name__ == "__main__":
    run_job(PlanConfig, main, __doc__ or "")
