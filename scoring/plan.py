"""What a scoring job has to do, and whether it can: every check at its door."""

import dataclasses
import hashlib
import json
import logging
import math
import random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog import storage
from catalog.errors import Refused, check_positive
from catalog.sampling import SamplingConfig, check_sampling
from catalog.schemas import Status
from catalog.tables import check_references, read_products, read_videos
from scoring.attribution import METHODS
from scoring.fingerprints import Images
from scoring.order import ordered
from scoring.output import OutputFolder
from scoring.saliency import check_model
from scoring.settings import MapConfig, Order, ProductConfig, VideoLimits
from scoring.since import unchanged
from tracking.registry import StoredModel
from training.models import ModelSpec, load_checkpoint

log = logging.getLogger(__name__)

SCORES_VERSION = 4
"""raised when the same config would give other scores: older folders are then not gone on with"""
MIN_WINDOW = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a scoring job that is known before work starts."""

    videos: pa.Table
    """the rows still to be scored, in the order of work: video_id, video_uri, product_id"""
    all_ids: pa.Array
    """every video_id that must have a row at the end"""
    images: Images
    finished: int
    failed: int
    """finished rows whose status is failed"""
    output: OutputFolder
    rows: pa.Table
    """what the output holds already, as ``OutputFolder.check`` returned it"""
    retried: frozenset[str]
    """failed videos that are scored again"""
    config: dict[str, Any]
    """what config.json will hold"""
    config_hash: str
    input_size: int
    """the model's height and width, pixels: E's grid"""
    sample: frozenset[str] = frozenset()
    """ids of the videos whose maps are examined in brief"""
    evidence: dict[str, Any] | None = None
    """what an earlier run into this folder found out about the maps"""
    since: OutputFolder | None = None
    """the earlier run that rows are carried over from"""
    carried: pa.Table | None = None
    """these rows: video_id, part"""


def plan_scoring(
    videos_uri: str,
    products_uri: str | None,
    output_uri: str,
    model: StoredModel,
    sampling: SamplingConfig,
    product: ProductConfig,
    maps: MapConfig,
    resolved_config: dict[str, Any],
    limits: VideoLimits,
    limit: int | None,
    retry_failed: bool,
    faithfulness_videos: int,
    order: Order = "table",
    order_seed: int = 0,
    since_uri: str | None = None,
) -> Plan:
    """Check all that can be checked and find out what is left to do; writes nothing. Raises Refused."""
    check_settings(sampling, product, maps, limits)
    if limit is not None and limit < 1:
        raise Refused(f"--limit is {limit}, expected at least 1")
    if faithfulness_videos < 0:
        raise Refused(f"--faithfulness-videos is {faithfulness_videos}, expected at least 0")
    spec = explainable(model, sampling)
    videos, images = catalogue_of(videos_uri, products_uri)
    videos = ordered(videos, order, order_seed, videos_uri)
    depends = {
        "model": model.digest[:16],
        **{f"maps_{field}": value for field, value in dataclasses.asdict(maps).items()},
        **dataclasses.asdict(sampling),
        **{f"product_{field}": value for field, value in dataclasses.asdict(product).items()},
        "scores_version": SCORES_VERSION,
    }
    config_hash = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    digests = {
        product_id: hashlib.sha256(repr(given).encode()).hexdigest()[:16] for product_id, given in images.items()
    }
    config = resolved_config | {"scores_depend_on": depends, "product_images": digests}
    output = OutputFolder(storage.absolute(output_uri))
    rows = output.check(config, config_hash, videos, retry_failed)
    if limit is not None:
        videos = videos.slice(0, limit)
    ids = videos["video_id"]
    there = rows.filter(pc.is_in(rows["video_id"], ids.combine_chunks()))
    failed = there.filter(pc.equal(there["status"], Status.FAILED))["video_id"]
    retried = frozenset(failed.to_pylist() if retry_failed else ())
    finished = set(there["video_id"].to_pylist()) - retried
    left = videos.filter(pc.invert(pc.is_in(ids, pa.array(sorted(finished), pa.string()))))
    since, carried = None if since_uri is None else OutputFolder(storage.absolute(since_uri)), None
    if since is not None:
        if since == output:
            raise Refused("--since and --output are the same folder; give a new --output")
        carried = unchanged(since, config, config_hash, left, images, retry_failed)
        left = left.filter(pc.invert(pc.is_in(left["video_id"], carried["video_id"].combine_chunks())))
    summary = output.summary() or {}
    return Plan(
        videos=left.select(["video_id", "video_uri", "product_id"]).combine_chunks(),
        all_ids=ids.combine_chunks(),
        images=images,
        finished=len(finished),
        failed=0 if retry_failed else len(failed),
        output=output,
        rows=rows,
        retried=retried,
        config=config,
        config_hash=config_hash,
        input_size=spec.input_size,
        sample=sampled(left["video_id"].to_pylist(), faithfulness_videos),
        evidence=summary.get("faithfulness"),
        since=since,
        carried=carried,
    )


def explainable(model: StoredModel, sampling: SamplingConfig) -> ModelSpec:
    """What the model takes. Raises Refused where its maps could mean nothing (``check_model``)."""
    network = load_checkpoint(model.checkpoint)
    try:
        check_model(network.eval())
    except ValueError as error:
        raise Refused(f"--model {model.uri}: {error}") from error
    if network.spec.sample_fps != sampling.sample_fps:
        log.warning(
            "warning: the model was trained on %g frames a second and is shown %g; --sample-fps %g would match it",
            network.spec.sample_fps, sampling.sample_fps, network.spec.sample_fps,
        )  # fmt: skip
    return network.spec


def catalogue_of(videos_uri: str, products_uri: str | None) -> tuple[pa.Table, Images]:
    """The videos and their products' photos, checked against one another. Raises Refused."""
    videos = read_videos(videos_uri)
    products = None if products_uri is None else read_products(products_uri)
    if products is None:
        with_product = videos.num_rows - videos["product_id"].null_count
        if with_product:
            raise Refused(
                f"{videos_uri}: {with_product} videos have a product_id, but --products is not given; "
                "give the products table, or leave the column product_id empty to score engagement alone"
            )
        return videos, {}
    check_references(videos, products, videos_uri, products_uri or "")
    return videos, images_of(products)


def sampled(video_ids: list[str], at_most: int, seed: int = 0) -> frozenset[str]:
    """A few videos at random, one in ten at most, so that examining them stays cheap beside scoring."""
    few = min(at_most, -(-len(video_ids) // 10))
    return frozenset(random.Random(seed).sample(sorted(video_ids), few))


def remaining(plan: Plan) -> Plan:
    """What is left of the plan once it was begun and some of it was written."""
    rows = plan.output.rows()
    left = plan.videos.filter(pc.invert(pc.is_in(plan.videos["video_id"], rows["video_id"].combine_chunks())))
    return dataclasses.replace(plan, videos=left.combine_chunks(), rows=rows, retried=frozenset(), carried=None)


def check_settings(sampling: SamplingConfig, product: ProductConfig, maps: MapConfig, limits: VideoLimits) -> None:
    """Raises Refused for a setting that makes no sense."""
    if maps.method not in METHODS:
        raise Refused(f"--method {maps.method}: there is no such method; choose one of {', '.join(METHODS)}")
    for flag, blur in (("--smooth-pixels", maps.smooth_pixels), ("--smooth-seconds", maps.smooth_seconds)):
        if not 0 <= blur < math.inf:
            raise Refused(f"{flag} is {blur}, expected a number of at least 0")
    if maps.map_samples < 1:
        raise Refused(f"--map-samples is {maps.map_samples}, expected at least 1")
    if not 0 <= maps.map_seed < 2**32:
        raise Refused(f"--map-seed is {maps.map_seed}, expected at least 0 and below 2^32")
    if maps.window_frames < MIN_WINDOW:
        raise Refused(f"--window-frames is {maps.window_frames}, expected at least {MIN_WINDOW}")
    check_positive(
        {
            "--map-noise": maps.map_noise,
            "--working-short-side": product.working_short_side,
            "--coarse-short-side": product.coarse_short_side,
            "--video-timeout": limits.video_timeout,
            "--video-memory-mb": limits.video_memory_mb,
        }
    )
    check_sampling(sampling)
    if not 0 < product.match_ratio <= 1:
        raise Refused(f"--match-ratio is {product.match_ratio}, expected a number above 0 and at most 1")
    if product.min_inliers < 4:
        raise Refused(f"--min-inliers is {product.min_inliers}, a homography needs at least 4")
    if not 0 <= product.min_probability <= 1:
        raise Refused(f"--min-probability is {product.min_probability}, expected a number from 0 to 1")


def images_of(products: pa.Table) -> Images:
    outlines = products["image_outlines"].to_pylist() if "image_outlines" in products.column_names else None
    rows = zip(products["product_id"].to_pylist(), products["image_uris"].to_pylist(), strict=True)
    return {
        product_id: (
            tuple(uris),
            None
            if outlines is None or outlines[i] is None
            else tuple(None if o is None else tuple(o) for o in outlines[i]),
        )
        for i, (product_id, uris) in enumerate(rows)
    }
