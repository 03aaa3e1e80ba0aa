"""The tables of a made-up world: videos, products, sales and truth, as Parquet files."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.world.config import WorldConfig, WorldPaths
from catalog.world.packaging import CATEGORIES, Photo, draw_packaging, photograph, word
from catalog.world.panel import draw_counts, draw_sales, first_videos, followers_of, true_lifts
from catalog.world.render import VideoTruth, video_name
from catalog.world.script import Stream, VideoScript, stream

FIRST_DAY = date(2025, 1, 6)
CONTROL_STREAM = 500_000
FLOATS, FLAGS = pa.list_(pa.float64()), pa.list_(pa.bool_())
VIDEOS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("video_uri", pa.string(), nullable=False),
        ("product_id", pa.string()),
        pa.field("creator_id", pa.string(), nullable=False),
        pa.field("posted_at", pa.timestamp("us", "UTC"), nullable=False),
        *((name, pa.int64()) for name in ("likes", "comments", "shares", "views", "followers")),
        ("category", pa.string()),
        ("duration_s", pa.float64()),
    ]
)
PRODUCTS = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("image_uris", pa.list_(pa.string()), nullable=False),
        ("image_outlines", pa.list_(FLOATS)),
        ("title", pa.string()),
        ("category", pa.string()),
        ("price", pa.float64()),
    ]
)
SALES = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("date", pa.date32(), nullable=False),
        ("revenue", pa.float64()),
        ("search_index", pa.float64()),
    ]
)
TRUTH = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("pe_true", pa.float64()),
        ("seconds", pa.int32()),
        ("product_visible", FLAGS),
        ("product_share", FLOATS),
        ("element_share", FLOATS),
        ("distractor_share", FLOATS),
        ("element_weight", FLOATS),
        ("occluded", FLAGS),
        ("product_quads", pa.list_(FLOATS)),
        ("engagement_signal", pa.float64()),
        ("lift_true", pa.float64()),
    ]
)


def product_name(index: int) -> str:
    return f"p{index:06d}"


def control_name(index: int) -> str:
    return f"c{index:06d}"


def controls_for(videos: int) -> int:
    """How many products without a video a world of `videos` videos has."""
    return max(10, videos // 2)


def category_of(seed: int, product: int) -> str:
    return str(stream(seed, Stream.FAMILY, 50_000_000 + product).choice(CATEGORIES))


def write(rows: list[dict], schema: pa.Schema, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def write_videos(
    paths: WorldPaths,
    config: WorldConfig,
    seed: int,
    scripts: Sequence[VideoScript],
    truths: Sequence[VideoTruth],
) -> None:
    midnight = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC)
    rows = []
    for script, truth in zip(scripts, truths, strict=True):
        name, followers = video_name(script.index), followers_of(seed, script.creator)
        counts = draw_counts(config, seed, script, followers, truth.engagement_signal)
        rows.append(
            {
                "video_id": name,
                "video_uri": f"videos/{name}.mp4",
                "product_id": None if script.product is None else product_name(script.product),
                "creator_id": f"creator{script.creator:05d}",
                "posted_at": midnight + timedelta(seconds=script.posted_at_s),
                "likes": counts.likes,
                "comments": counts.comments,
                "shares": counts.shares,
                "views": counts.views,
                "followers": followers,
                "category": "vlog" if script.product is None else category_of(seed, script.product),
                "duration_s": script.frames / config.fps,
            }
        )
    write(rows, VIDEOS, paths.videos)


def write_products(paths: WorldPaths, seed: int, scripts: Sequence[VideoScript]) -> None:
    """The advertised products and the controls, each with one or two catalogue photos."""
    (paths.folder / "products").mkdir(exist_ok=True)
    advertised = sorted({script.product for script in scripts if script.product is not None})
    named = [(product_name(index), index, False) for index in advertised]
    named += [(control_name(index), index, True) for index in range(controls_for(len(scripts)))]
    rows = []
    for name, index, control in named:
        rng = stream(seed, Stream.FAMILY, (70_000_000 if control else 60_000_000) + index)
        packaging = draw_packaging(seed, index, control=control)
        photos = [photograph(packaging, rng) for _ in range(1 + int(rng.random() < 0.15))]
        rows.append(
            {
                "product_id": name,
                "image_uris": [write_photo(paths.folder, f"{name}_{k}", photo) for k, photo in enumerate(photos)],
                "image_outlines": [photo.outline for photo in photos] if rng.random() < 0.5 else None,
                "title": f"{word(rng, 2).title()} {word(rng, 3)}",
                "category": category_of(seed, CONTROL_STREAM * control + index),
                "price": round(float(rng.lognormal(3, 0.6)), 2),
            }
        )
    write(rows, PRODUCTS, paths.products)


def write_photo(folder: Path, name: str, photo: Photo) -> str:
    uri = f"products/{name}{photo.suffix}"
    order = cv2.COLOR_RGBA2BGRA if photo.pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    if not cv2.imwrite(str(folder / uri), cv2.cvtColor(photo.pixels, order)):
        raise OSError(f"{folder / uri} could not be written; check the space and the rights of the folder")
    return uri


def write_sales(
    path: Path,
    config: WorldConfig,
    seed: int,
    scripts: Sequence[VideoScript],
    truths: Sequence[VideoTruth],
    *,
    effect: bool,
) -> dict[int, float]:
    """Write the panel; returns the planted lift of every product's first video, by video index."""
    firsts = first_videos(scripts)
    indices = [script.index for script in firsts.values()]
    pe = np.array([truths[index].pe_true for index in indices])
    lifts = dict(zip(indices, true_lifts(config, seed, indices, pe, effect=effect).tolist(), strict=True))
    panel = {
        product_name(product): draw_sales(
            config, seed, product, lift=lifts[script.index], post_day=int(script.posted_at_s // 86_400)
        )
        for product, script in sorted(firsts.items())
    }
    for index in range(controls_for(len(scripts))):
        panel[control_name(index)] = draw_sales(config, seed, CONTROL_STREAM + index)
    days = [FIRST_DAY + timedelta(days=day) for day in range(config.sales_days)]
    rows = [
        {"product_id": name, "date": day, "revenue": revenue, "search_index": interest}
        for name, sales in panel.items()
        for day, revenue, interest in zip(days, sales.revenue.tolist(), sales.search_index.tolist(), strict=True)
    ]
    write(rows, SALES, path)
    return lifts


def write_truth(paths: WorldPaths, truths: Sequence[VideoTruth], lifts: dict[int, float]) -> None:
    rows = [
        {
            "video_id": video_name(truth.index),
            "pe_true": truth.pe_true,
            "seconds": len(truth.product_visible),
            "product_visible": truth.product_visible,
            "product_share": truth.product_share,
            "element_share": truth.element_share,
            "distractor_share": truth.distractor_share,
            "element_weight": truth.element_weight,
            "occluded": truth.occluded,
            "product_quads": truth.product_quads,
            "engagement_signal": truth.engagement_signal,
            "lift_true": lifts.get(truth.index),
        }
        for truth in truths
    ]
    write(rows, TRUTH, paths.truth)
