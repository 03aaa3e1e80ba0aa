"""One scoring job from tables to run.json: check at the door, resume, run the graph, tally, verify."""

import collections
import dataclasses
import datetime
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from catalog import storage
from catalog.errors import Broken, ErrorCode, Refused, check_positive
from catalog.sampling import SamplingConfig, check_sampling
from catalog.schemas import Status
from catalog.tables import check_references, read_products, read_videos
from scoring.attempts import MAX_TRIES, Attempts
from scoring.attribution import METHODS
from scoring.costs import Pace
from scoring.evidence import summed_up
from scoring.fingerprints import Images
from scoring.graph import EXAMINATION_CORE_S, NOT_WRITTEN, Resources, build_graph
from scoring.order import ordered
from scoring.output import OutputFolder
from scoring.rows import STAGES, Provenance
from scoring.saliency import check_model
from scoring.settings import MapConfig, Order, ProductConfig, VideoLimits
from scoring.since import unchanged
from tracking.registry import StoredModel
from tracking.runs import git_commit
from training.models import ModelSpec, load_checkpoint

log = logging.getLogger(__name__)

SCORES_VERSION = 4
"""raised when the same config would give other scores: older folders are then not gone on with"""
MIN_WINDOW = 8
QUARANTINED_AT_LEAST, QUARANTINED_SHARE = 20, 0.02
"""more quarantined videos than this end the job"""


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


class LostRowsError(Exception):
    """The output's ids are not the input's: never expected, never hidden."""


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


class Tally:
    """What came out so far, by status, error code and stage."""

    def __init__(self):
        self.done = 0
        self.statuses: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}
        self.core_seconds = dict.fromkeys(STAGES, 0.0)
        self.fetch_seconds = 0.0
        """wall time for which videos' bytes were waited for"""
        self.gpu_seconds = 0.0
        self.pace = Pace()
        self.figures: list[dict[str, float]] = []
        """of the examined videos"""
        self.examination_core_seconds = 0.0
        self.rejections: collections.Counter[str] = collections.Counter()
        """why the product was not found, of frames and views of products"""
        self.video_minutes = 0.0
        self.started = time.monotonic()

    def add(self, rows: list[dict[str, Any]], sample_fps: float) -> None:
        for row in rows:
            self.done += 1
            self.statuses[row["status"]] += 1
            if row["error_code"]:
                self.errors[row["error_code"]] += 1
                self.examples.setdefault(row["error_code"], f"{row['video_id']}: {row['error_message']}")
            self.video_minutes += (row["seconds"] or 0) / sample_fps / 60
            for stage in STAGES:
                self.core_seconds[stage] += row["core_s"][stage] or 0.0
            self.fetch_seconds += row["fetch_s"]
            self.gpu_seconds += row["gpu_s"]
            self.rejections.update(dict(row["rejections"] or ()))
            if row["figures"]:
                figures = dict(row["figures"])
                self.examination_core_seconds += figures.pop(EXAMINATION_CORE_S)
                self.figures.append(figures)
        spent = sum(self.core_seconds.values())
        self.pace.add(self.wall_seconds, videos=self.done, video_minutes=self.video_minutes, core_seconds=spent)

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self.started

    def summary(self, cores: float) -> dict[str, Any]:
        """Figures for run.json, the console and MLflow. A minute of video is a minute that was looked at.
        cores: of the cluster, their mean over the run."""
        minutes = self.video_minutes
        kernel = sum(self.core_seconds.values())

        def a_minute(seconds: float) -> float | None:
            return seconds / minutes if minutes else None

        return {
            "videos": {status.value: self.statuses[status] for status in Status},
            "errors": dict(self.errors),
            "error_examples": self.examples,
            "product_rejections": dict(self.rejections.most_common()),
            "video_minutes": minutes,
            "videos_per_hour": 3600 * self.done / self.wall_seconds,
            "wall_seconds": self.wall_seconds,
            "core_seconds_per_video_minute": a_minute(kernel),
            "core_seconds_per_video_minute_by_stage": {s: a_minute(spent) for s, spent in self.core_seconds.items()},
            "fetch_seconds_per_video_minute": a_minute(self.fetch_seconds),
            "gpu_seconds_per_video_minute": a_minute(self.gpu_seconds),
            "core_seconds": self.core_seconds,
            "gpu_seconds": self.gpu_seconds,
            "cores": cores,
            "efficiency": kernel / (cores * self.wall_seconds) if self.done else None,
            "pace": self.pace.points,
        }


def begin(plan: Plan) -> None:
    """Make the output fit to go on in: without rows that are there twice or tried again, with those carried over."""
    plan.output.begin(plan.config, plan.config_hash, plan.rows, plan.retried)
    if plan.since is not None and plan.carried is not None:
        plan.output.carry(plan.since, plan.carried)


def run_scoring(
    plan: Plan,
    model: StoredModel,
    provenance: Provenance,
    sampling: SamplingConfig,
    product: ProductConfig,
    maps: MapConfig,
    limits: VideoLimits,
    save_maps: bool,
    resources: Resources,
    on_progress: Callable[[Tally], None],
    product_cache: str | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Score what the plan leaves to do, after ``begin``. ``tally``: of what this job has done before."""
    tally = Tally() if tally is None else tally
    before = tally.done
    attempts = Attempts(plan.output.uri).resumed(plan.videos["video_id"].to_pylist(), plan.retried)
    if plan.videos.num_rows:
        graph = build_graph(
            plan.videos,
            plan.images,
            model.checkpoint,
            plan.input_size,
            sampling,
            product,
            maps,
            limits,
            plan.output,
            provenance,
            resources,
            save_maps,
            plan.sample,
            product_cache,
            attempts,
        )
        for rows in _tally_rows(graph, plan.output.uri):
            tally.add(rows, sampling.sample_fps)
            on_progress(tally)
            check_quarantine(tally, plan.videos.num_rows)
        if tally.done - before < plan.videos.num_rows and attempts.asked_to_stop():
            raise KeyboardInterrupt
    return tally


def remaining(plan: Plan) -> Plan:
    """What is left of the plan once it was begun and some of it was written."""
    rows = plan.output.rows()
    left = plan.videos.filter(pc.invert(pc.is_in(plan.videos["video_id"], rows["video_id"].combine_chunks())))
    return dataclasses.replace(plan, videos=left.combine_chunks(), rows=rows, retried=frozenset(), carried=None)


def check_quarantine(tally: Tally, videos: int) -> None:
    """Raises Broken where so many videos killed their processes that it must be the nodes' fault."""
    quarantined = tally.errors[ErrorCode.QUARANTINED]
    if quarantined > max(QUARANTINED_AT_LEAST, QUARANTINED_SHARE * videos):
        raise Broken(
            f"{quarantined} of {tally.done} videos were quarantined, because the processes that worked on them died "
            f"{MAX_TRIES} times each: rather the nodes' fault than the videos'; look for memory, the GPU's driver and "
            "the nodes' logs (ray status, ray logs), then run the same command again with --retry-failed"
        )


def verify(plan: Plan) -> pa.Table:
    """The output's rows (see ``OutputFolder.rows``), every input id once and nothing twice; else LostRowsError.

    Rows that workers of a killed job still wrote after this one had begun are cut to one.
    """
    rows = plan.output.rows()
    if doubled_rows(rows):
        plan.output.repair(rows)
        rows = plan.output.rows()
    lost = plan.all_ids.filter(pc.invert(pc.is_in(plan.all_ids, rows["video_id"].combine_chunks())))
    doubled = doubled_rows(rows)
    if len(lost) or doubled:
        raise LostRowsError(
            f"{plan.output.uri}: {len(lost)} videos have no row (such as {lost[:3].to_pylist()}), {doubled} rows are "
            "there twice; run the same command again, it repairs the folder and scores what is missing"
        )
    return rows


def doubled_rows(rows: pa.Table) -> int:
    return rows.num_rows - pc.count_distinct(rows["video_id"]).as_py()


def mend(plan: Plan, summary: dict[str, Any]) -> dict[str, Any]:
    """Of a finished folder that a worker of a job long gone wrote to since: cut its rows to one a video, and count
    them anew in run.json. Returns what it says."""
    summary = summary | _counts(verify(plan))
    plan.output.finish(summary)
    return summary


def _counts(rows: pa.Table) -> dict[str, Any]:
    statuses = collections.Counter(rows["status"].to_pylist())
    return {
        "rows": rows.num_rows,
        "videos": {status.value: statuses[status] for status in Status},
        "errors": dict(collections.Counter(rows["error_code"].drop_null().to_pylist())),
    }


def finish(
    plan: Plan, rows: pa.Table, tally: Tally, provenance: Provenance, config: dict[str, Any], cores: float
) -> dict[str, Any]:
    """Write run.json, the last file of a run; returns what it says. Rows by status and error code are those of
    the whole folder, costs are those of this run."""
    summary = {
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed_from": plan.finished,
        "carried_over": 0 if plan.carried is None else plan.carried.num_rows,
        **tally.summary(cores),
        **_counts(rows),
        "faithfulness": _evidence(plan, tally),
        "provenance": dataclasses.asdict(provenance),
        "code_version": git_commit(),
        "config": config,
    }
    Attempts(plan.output.uri).forget()
    plan.output.finish(summary)
    return summary


def _evidence(plan: Plan, tally: Tally) -> dict[str, Any] | None:
    """Of the larger sample, this run's or an earlier one's."""
    if plan.evidence is not None and plan.evidence["videos"] > len(tally.figures):
        return plan.evidence
    if not tally.figures:
        return None
    return summed_up(tally.figures) | {"core_seconds": tally.examination_core_seconds}


def _tally_rows(graph: ray.data.Dataset, output_uri: str) -> Iterator[list[dict[str, Any]]]:
    batches: Iterable[Any] = graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        for trouble in batch[NOT_WRITTEN].drop_null().to_pylist():
            raise Broken(f"{output_uri} cannot be written: {trouble}; the same command goes on once that is mended")
        yield batch.to_pylist()


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
