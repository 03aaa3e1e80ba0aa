"""Put a model's engagement maps to the test: python -m jobs.faithfulness --model M --videos V --output DIR"""

import dataclasses

from catalog.sampling import SamplingConfig
from jobs.command import run_job
from scoring.settings import FaithfulnessConfig, MapConfig, ProductConfig, VideoLimits
from tracking.names import CHAMPION, MODEL_NAME


@dataclasses.dataclass(frozen=True)
class ExaminationConfig:
    videos: str
    """table of videos; those that the model did not learn from say most"""
    output: str
    """folder for faithfulness.json, videos.parquet and report.html; earlier ones are replaced"""
    products: str | None = None
    """table of products: adds how much the ranking by PE depends on the model that makes the maps"""
    model: str = f"models:/{MODEL_NAME}@{CHAMPION}"
    """registered model or checkpoint file"""
    shuffled_model: str | None = None
    """the same network trained on shuffled labels; default: that of the model's own training run, where there is one"""
    other_models: tuple[str, ...] = ()
    """models that were trained alike, such as with other seeds: how much do maps and rankings agree?"""
    sample: int = 64
    """how many of the videos, drawn at random"""
    tests: FaithfulnessConfig = dataclasses.field(default_factory=FaithfulnessConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    maps: MapConfig = dataclasses.field(default_factory=MapConfig)
    product: ProductConfig = dataclasses.field(default_factory=ProductConfig)
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)
    max_failed_fraction: float = 0.5
    """exit with 3 where more than this share of the sample could not be examined"""
    dry_run: bool = False
    """print the plan and the resources, write nothing and stop"""


def main(config: ExaminationConfig) -> int:
    from jobs.steps import faithfulness

    return faithfulness.main(config)


if __name__ == "__main__":
    run_job(ExaminationConfig, main, __doc__ or "")
