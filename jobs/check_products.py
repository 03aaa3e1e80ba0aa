"""Which product images can be looked for in videos: python -m jobs.check_products --products P --output R.parquet"""

import dataclasses

from jobs.command import run_job


@dataclasses.dataclass(frozen=True)
class CheckProductsConfig:
    products: str
    """table of products: product_id, image_uris, and image_outlines where it has them"""
    output: str
    """.parquet file to write, a row an image: localisable, features, problem; an earlier one is replaced"""
    product_cache: str | None = None
    """folder that keeps the features for jobs.score --product-cache"""
    image_timeout: float = 120.0
    """seconds of wall time for one product's images"""
    max_unlocalisable_fraction: float = 1.0
    """exit with 3 where more than this share of the products has no image that can be looked for"""


def main(config: CheckProductsConfig) -> int:
    from jobs.steps import check_products

    return check_products.main(config)


if __name__ == "__main__":
    run_job(CheckProductsConfig, main, __doc__ or "")
