"""Score a catalogue: python -m jobs.score --videos V --products P --model M --output DIR"""

import dataclasses

from catalog.sampling import SamplingConfig
from jobs.command import run_job
from scoring.settings import MapConfig, ProductConfig, VideoLimits
from tracking.names import CHAMPION, MODEL_NAME


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    videos: str
    """table of videos (.parquet, .csv, .jsonl; local or s3://): video_id, video_uri, product_id"""
    output: str
    """folder for scores/*.parquet and run.json; the same command again goes on where it ended"""
    products: str | None = None
    """table of products: product_id, image_uris; needed where videos have a product_id"""
    model: str = f"models:/{MODEL_NAME}@{CHAMPION}"
    """registered model or checkpoint file"""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    maps: MapConfig = dataclasses.field(default_factory=MapConfig)
    product: ProductConfig = dataclasses.field(default_factory=ProductConfig)
    limits: VideoLimits = dataclasses.field(default_factory=VideoLimits)
    max_prepare_actors: int | None = None
    """let an autoscaling cluster grow to so many decoding actors, a core each; default: what it has now"""
    product_cache: str | None = None
    """folder (a path that every node sees, or s3://) that keeps the features of product images between runs"""
    save_maps: bool = False
    """also write E as uint8 and the product's quads to DIR/maps/*.parquet"""
    since: str | None = None
    """folder of an earlier run with the same model and settings: rows of videos whose file, product and product images
    have not changed since are carried over, all others are scored"""
    retry_failed: bool = False
    """score again the rows whose status is failed"""
    faithfulness_videos: int = 8
    """videos, one in ten at most, on which it is measured how far the maps can be trusted (run.json, the report); each
    costs as much as some fifteen maps; 0: none. jobs.faithfulness does it at length"""
    max_failed_fraction: float = 0.5
    """exit with 3 where more than this share of all videos failed"""
    limit: int | None = None
    """only the first so many videos, for a trial"""
    dry_run: bool = False
    """print the plan and the resources, write nothing and stop"""


def main(config: ScoreConfig) -> int:
    from jobs.steps import score

    return score.main(config)


if __name__ == "__main__":
    run_job(ScoreConfig, main, __doc__ or "")
