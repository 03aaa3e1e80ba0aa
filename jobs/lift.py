"""Do the scores predict sales? python -m jobs.lift --scores DIR --sales S --videos V --output DIR"""

import dataclasses
from typing import Literal

from jobs.command import run_job


@dataclasses.dataclass(frozen=True)
class LiftConfig:
    scores: str
    """output folder of jobs.score (local or s3://); with --save-maps its negative controls are exact"""
    sales: str
    """table of sales: product_id, date, and revenue (that day) or revenue_30d (rolling 30-day sum); search_index and a
    currency where there are"""
    videos: str
    """table of videos: product_id and posted_at say what was treated when"""
    output: str
    """folder for lifts.parquet, stage2.parquet, verdict.json, report.html and tables/; earlier ones are replaced"""
    products: str | None = None
    """table of products: adds category and price to what is held constant"""
    placebo_scores: str | None = None
    """scores of the same videos by a model of random weights: a negative control"""
    rebuild: Literal["published", "search_weighted", "denton_cholette"] = "published"
    """how days are made from rolling 30-day sums, where a product has no daily revenue"""
    covariates: tuple[str, ...] | None = None
    """number columns of the sales table to hold constant in each lift; default: search_index where it has values"""
    controls: tuple[str, ...] | None = None
    """number columns of the videos or products table for the last column of stage 2; default: followers, duration_s and
    price where there are"""
    min_days: int = 14
    """days with sales that a post needs before and after it"""
    max_gap_days: int = 7
    """the longest gap in a product's sales that carries the last value on; products with longer ones are left out"""
    draws: int = 1000
    """of the permutations of lifts and of the bootstrap of both stages"""
    seed: int = 0
    """of these, the folds and the negative controls"""
    dry_run: bool = False
    """check the tables, say what would be compared with what, write nothing and stop"""


def main(config: LiftConfig) -> int:
    from jobs.steps import lift

    return lift.main(config)


if __name__ == "__main__":
    run_job(LiftConfig, main, __doc__ or "")
