"""Score a catalogue: python -m jobs.score --videos V --products P --model M --output DIR"""

import dataclasses

from catalog.sampling import SamplingConfig
from jobs.command import run_job
from scoring.settings import MapConfig, Order, ProductConfig, VideoLimits
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
    """let an autoscaling cluster grow to so many decoding actors, a core each, and use nodes that join late; default:
    what it has now"""
    gpu_share: float = 1.0
    """of a GPU that one actor takes, such as 0.5: two share a GPU that one alone does not keep busy"""
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
    order: Order = "table"
    """what is scored first, since results can be read while the job runs: newest by posted_at, largest-reach by views
    (where not known by followers), random by --order-seed"""
    order_seed: int = 0
    """of --order random"""
    limit: int | None = None
    """only the first so many videos in that order, for a trial"""
    dry_run: bool = False
    """print the plan and the resources, write nothing and stop"""
    costs: str | None = None
    """run.json of an earlier job, or the JSON of jobs.plan: --dry-run says by it how many cores keep a GPU busy"""


def main(config: ScoreConfig) -> int:
    from jobs.steps import score

    return score.main(config)


if __name__ == "__main__":
    run_job(ScoreConfig, main, __doc__ or "")
