"""What jobs.score does."""

import collections
import contextlib
import errno
import os
import signal
import textwrap
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from catalog import storage
from catalog.errors import Broken, Refused
from catalog.lock import FolderLock
from catalog.schemas import Status
from jobs.command import (
    DONE,
    TOO_MANY_FAILED,
    CapacityWatch,
    NodesLostError,
    ProgressLog,
    StallWatch,
    console,
    print_config,
    ray_cluster,
    resolved,
)
from jobs.score import ScoreConfig
from jobs.steps.folders import check_shared
from jobs.steps.score_record import Course, params_of, record, tags_of, title_of
from scoring.attempts import Attempts
from scoring.costs import MeanCores, StageCosts, hourly
from scoring.evidence import verdicts
from scoring.fingerprints import Images
from scoring.graph import Resources, rows_a_block
from scoring.output import OutputFolder
from scoring.plan import Plan, plan_scoring, remaining
from scoring.rows import STAGES, Provenance
from scoring.run import begin, doubled_rows, finish, mend, run_scoring, verify
from scoring.tally import Tally
from tracking import registry
from tracking.names import SCORING_RUNS
from tracking.runs import Run, git_commit, open_run

SHOWN_ERRORS, SHOWN_CHARACTERS = 2, 160
"""of the closing summary, which fits on a screen of 80 columns"""
NO_COSTS = (
    "CPU cores per GPU: not known without costs; jobs.plan measures them on a sample, and --costs takes its JSON or an "
    "earlier run.json"
)
EXAMINATION_S = 600.0
"""that examining a video's map may take"""
STOP_S = 60.0
NODE_LOST_S = 60.0
"""after which a lost node is not waited for any more"""
FULL = (errno.ENOSPC, errno.EDQUOT)


def main(config: ScoreConfig) -> int:
    settings = resolved(config)
    print_config(settings)
    if not 0 < config.gpu_share <= 1:
        raise Refused(f"--gpu-share is {config.gpu_share:g}, expected a number above 0 and at most 1")
    model = registry.load(config.model)
    plan = plan_scoring(
        config.videos, config.products, config.output, model, config.sampling, config.product, config.maps,
        settings, config.limits, config.limit, config.retry_failed, config.faithfulness_videos, config.order,
        config.order_seed, config.since,
    )  # fmt: skip
    if (cache := _cache_of(config)) is not None:
        storage.check_writable(cache)
    console.print(
        f"model {model.uri} (version {model.version}); {len(plan.all_ids)} videos, {plan.finished} finished before, "
        f"{plan.videos.num_rows} to score; output {plan.output.uri}"
    )
    warn_of_shared_images(plan.images)
    if plan.carried is not None:
        console.print(f"{plan.carried.num_rows} videos are as they were in {config.since}: their rows are carried over")
    if plan.failed:
        console.print(f"{plan.failed} of the finished videos failed; --retry-failed tries them again")
    summary = plan.output.summary()
    if not (plan.videos.num_rows or plan.carried) and summary is not None and not config.dry_run:
        if doubled_rows(plan.rows):
            with _alone(plan):
                summary = mend(plan, summary)
        console.print(f"nothing is left to do; summary: {plan.output.uri}/run.json")
        return _exit_code(config, summary)
    costs = StageCosts.read(config.costs) if config.costs else StageCosts.of(summary or {})
    with contextlib.nullcontext() if config.dry_run else _alone(plan), ray_cluster() as cluster:
        check_shared(plan.output.uri, "--output")
        cpus, gpus = cluster["CPU"], cluster.get("GPU", 0)
        resources = Resources.of_cluster(cpus, gpus, config.max_prepare_actors, config.gpu_share)
        _print_resources(plan, resources, cluster)
        if config.dry_run:
            console.print(costs.advice() if costs else NO_COSTS)
            return DONE
        tags = tags_of(config.videos, model, plan.output.uri)
        with open_run(SCORING_RUNS, title_of(config.videos, model), tags) as run:
            return _score(config, plan, model, run, resources, cpus)


def warn_of_shared_images(images: Images) -> None:
    """Products that have an image file in common are all scored, each of them wherever that one is seen."""
    owners: dict[str, list[str]] = collections.defaultdict(list)
    for product_id, (uris, _) in images.items():
        for uri in dict.fromkeys(uris):
            owners[uri].append(product_id)
    shared = {uri: products for uri, products in owners.items() if len(products) > 1}
    if shared:
        uri, products = next(iter(shared.items()))
        names = textwrap.shorten(", ".join(products), SHOWN_CHARACTERS, placeholder=" ...")
        console.print(
            f"warning: {len(shared)} product images belong to several products, such as {uri} to {names}; nobody can "
            "tell their videos apart, and all are scored. jobs.check_products lists them, copies under other names too"
        )


def _of_what_is_left(config: ScoreConfig, lost: NodesLostError) -> Resources:
    cpus, gpus = lost.left.get("CPU", 0), lost.left.get("GPU", 0)
    console.print(f"nodes were lost and did not come back within {NODE_LOST_S:g} s; going on with what is left")
    if cpus <= 0:
        raise Broken("no node with a CPU is left; start some, then the same command goes on")
    return Resources.of_cluster(cpus, gpus, config.max_prepare_actors, config.gpu_share)


@contextlib.contextmanager
def _finishing_on_sigterm(plan: Plan) -> Iterator[None]:
    """SIGTERM (``ray job stop``) lets the videos in hand be finished, for STOP_S; a second one ends the job at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    limit = threading.Timer(STOP_S, os.kill, (os.getpid(), signal.SIGINT))
    limit.daemon = True

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        console.print(f"asked to stop: finishing the videos in hand, for at most {STOP_S:g} s")
        limit.start()
        threading.Thread(target=Attempts(plan.output.uri).ask_to_stop, daemon=True).start()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        limit.cancel()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _saying_what_is_full() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if getattr(cause, "errno", None) in FULL or type(cause).__name__ == "OutOfDiskError":
                raise Broken(f"a disk is full: {cause}; free space, then the same command goes on") from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise


@contextlib.contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """No other job writes to the output, nor has since the plan was made."""
    with FolderLock(plan.output.uri):
        plan.output.check_unchanged(plan.rows)
        yield


def _score(
    config: ScoreConfig, plan: Plan, model: registry.StoredModel, run: Run, resources: Resources, cpus: float
) -> int:
    run.params(params_of(config) | {"config_hash": plan.config_hash})
    provenance = Provenance(model.uri, model.version, run.run_id, plan.config_hash, git_commit())
    # a block is the smallest thing that can come out, so it is what must come out in time
    limit_s = 600 + config.limits.video_timeout * rows_a_block(plan.videos.num_rows, resources.prepare_actors)
    limit_s += EXAMINATION_S * len(plan.sample)
    tally, cores = Tally(), MeanCores(cpus)
    left, course, watch = plan, Course(run), StallWatch(limit_s)
    with _saying_what_is_full(), _finishing_on_sigterm(plan):
        begin(plan)  # under no watch: a large folder takes longer than a block, and needs no node
        progress = ProgressLog("scoring", plan.videos.num_rows)

        def on_progress(tally: Tally) -> None:
            watch.alive()
            failed = tally.statuses[Status.FAILED]
            progress.update(tally.done, f"{failed} failed" if failed else "")
            course.follow(tally, cores.mean)

        try:
            while True:
                try:
                    with watch, CapacityWatch(resources.needed, NODE_LOST_S, on_cores=cores.see):
                        run_scoring(
                            left, model, provenance, config.sampling, config.product, config.maps, config.limits,
                            config.save_maps, resources, on_progress, _cache_of(config), tally,
                        )  # fmt: skip
                    break
                except NodesLostError as lost:
                    resources = _of_what_is_left(config, lost)
                    left = remaining(left)
                    begin(left)
                    _print_resources(left, resources, lost.left)
        finally:
            progress.close()
    with _saying_what_is_full():
        summary = finish(plan, verify(plan), tally, provenance, resolved(config), cores.mean)
    course.follow(tally, cores.mean, at_end=True)
    run.metrics(_figures(summary), step=round(tally.wall_seconds))
    print_summary(plan.output, summary)
    record(run, config, model, plan.output.uri, summary)
    return _exit_code(config, summary)


def _cache_of(config: ScoreConfig) -> str | None:
    return None if config.product_cache is None else storage.absolute(config.product_cache)


def print_evidence(evidence: dict) -> None:
    for verdict in verdicts(evidence):
        console.print(str(verdict))


def _exit_code(config: ScoreConfig, summary: dict) -> int:
    failed = summary["videos"][Status.FAILED] / max(summary["rows"], 1)
    return TOO_MANY_FAILED if failed > config.max_failed_fraction else DONE


def _figures(summary: dict) -> dict[str, float]:
    figures = {f"videos/{status}": n for status, n in summary["videos"].items()}
    by_stage = summary["core_seconds_per_video_minute_by_stage"]
    figures |= {f"core_seconds_per_video_minute/{stage}": by_stage[stage] for stage in STAGES}
    figures |= {f"failed/{code}": n for code, n in summary["errors"].items()}
    totals = ("core_seconds_per_video_minute", "gpu_seconds_per_video_minute", "efficiency", "videos_per_hour")
    figures |= {k: summary[k] for k in totals}
    return {k: v for k, v in figures.items() if v is not None}


def _print_resources(plan: Plan, resources: Resources, cluster: Mapping[str, float]) -> None:
    share = resources.gpus_an_engage_actor
    engage = f"{share:g} GPU each" if share else f"{resources.cpus_an_actor:g} CPU each"
    console.print(
        f"cluster: {cluster.get('CPU', 0):g} CPUs, {cluster.get('GPU', 0):g} GPUs; PREPARE: "
        f"{resources.prepare_actors} actors, {resources.cpus_an_actor:g} CPU each; ENGAGE: "
        f"{resources.engage_actors} actors, {engage}; blocks of "
        f"{rows_a_block(plan.videos.num_rows, resources.prepare_actors)} videos"
    )


def print_summary(output: OutputFolder, summary: dict) -> None:
    counts = ", ".join(f"{n} {status}" for status, n in summary["videos"].items() if n)
    console.print(
        f"{summary['rows']} videos: {counts}; this run took {summary['wall_seconds']:.0f} s, "
        f"{summary['videos_per_hour']:,.0f} videos an hour"
    )
    if summary["core_seconds_per_video_minute"] is not None:
        stages = ", ".join(
            f"{stage} {value:.2f}" for stage, value in summary["core_seconds_per_video_minute_by_stage"].items()
        )
        console.print(
            f"cost: {summary['core_seconds_per_video_minute']:.2f} core-seconds a minute of video ({stages}); "
            f"{summary['video_minutes']:.1f} minutes of video; efficiency {summary['efficiency']:.2f}"
        )
        gpu = f"{summary['gpu_seconds_per_video_minute']:.2f} GPU-seconds and " if summary["gpu_seconds"] else ""
        waited = summary["fetch_seconds_per_video_minute"]
        console.print(f"and {gpu}{waited:.2f} s of waiting for storage a minute of video")
    if len(summary["pace"]) > 1:
        by_fifth = ", ".join(f"{rate:,.0f}" for rate in hourly(summary["pace"], summary["wall_seconds"]))
        console.print(f"pace by fifth of the run: {by_fifth} videos an hour")
    if summary["faithfulness"]:
        print_evidence(summary["faithfulness"])
    by_count = sorted(summary["errors"].items(), key=lambda error: (-error[1], error[0]))
    for code, n in by_count[:SHOWN_ERRORS]:
        example = summary["error_examples"].get(code)
        said = f"failed, {code}: {n}{f', such as {example}' if example else ''}"
        console.print(textwrap.shorten(said, SHOWN_CHARACTERS, placeholder=" ..."))
    if others := by_count[SHOWN_ERRORS:]:
        console.print(f"failed otherwise: {', '.join(f'{code} {n}' for code, n in others)}")
    console.print(f"scores: {output.uri}/scores    summary: {output.uri}/run.json")
    if summary["errors"]:
        console.print("to try the failed videos again, run the same command with --retry-failed")
