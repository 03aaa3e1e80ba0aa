"""What jobs.train does."""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import ray
import ray.train

from catalog import storage
from catalog.errors import Refused, check_positive
from catalog.sampling import check_sampling
from catalog.tables import check_references, read_products, read_videos
from jobs.command import (
    DONE,
    TOO_MANY_FAILED,
    ProgressLog,
    StallWatch,
    console,
    print_config,
    ray_cluster,
    read_flags,
    resolved,
)
from jobs.steps.folders import check_shared
from jobs.steps.judge import judge, print_judged, publish
from jobs.steps.workers import nodes_of_cluster, scaled
from jobs.train import TrainConfig
from tracking.names import CHALLENGER, MODEL_NAME, SHUFFLED, TRAINING_RUNS
from tracking.runs import Run, open_run, table_name, ui_command
from training.clips import Clips, cached_clips
from training.models import EngagementModel, ModelSpec, load_pretrained
from training.near_copies import near_copies
from training.networks import ARCHITECTURES
from training.run import Fitted, check_enough, fit, forget, run_folder
from training.splits import HELD_OUT, LEFT_OUT, TRAINING, VALIDATION, overlaps, sides
from training.targets import (
    DURATION,
    Adjustment,
    columns_of,
    columns_to_residualize,
    fit_adjustment,
    labelled,
    unit_of,
)

SHOWN = 5
SMALLEST_SPREAD = 1e-6
STORED_BY_RAY_TRAIN = ("file", "s3", "gs", "gcs", "abfs", "abfss")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SWEEP_EXAMPLE = "learning-rate: [0.001, 0.003]"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a run needs, checked."""

    config: TrainConfig
    settings: dict
    spec: ModelSpec
    examples: pd.DataFrame
    """``training.targets.Examples.table`` with ``side``"""
    overlaps: dict[str, int]
    digest: str
    """of the settings and examples"""
    data_digest: str
    name: str
    """of the folder in --storage"""
    init_weights: bytes | None

    @property
    def title(self) -> str:
        """The run's name in MLflow."""
        return self.config.name or f"{self.spec.target} {self.spec.architecture} {self.digest[:6]}"


def main(config: TrainConfig) -> int:
    settings = resolved(config)
    print_config(settings)
    plan = prepared(config, settings)
    if config.sweep is not None:
        from jobs.steps import sweep

        return sweep.main(plan)
    resume_id = unfinished_run(config.storage, plan.name, plan.digest)
    with ray_cluster():
        check_folders(config)
        scaling = scaled(config, nodes_of_cluster)
        console.print(f"run {plan.name}: {config.workers} workers, {scaling.resources_per_worker} each")
        if config.dry_run:
            return DONE
        with open_run(TRAINING_RUNS, plan.title, tags_of(plan), resume_id) as run:
            remember_run(config.storage, plan.name, plan.digest, run)
            return trained(plan, scaling, run, ray.cluster_resources()).exit_code


def prepared(config: TrainConfig, settings: dict) -> Plan:
    """Everything is checked and read; nothing is written. Raises Refused."""
    target, residualized = config.targets.target, columns_to_residualize(config.targets)
    spec = ModelSpec(
        config.architecture, config.input_size, target,
        sample_fps=config.sampling.sample_fps, residualized_on=",".join(residualized),
    )  # fmt: skip
    init_weights = check(config, spec)
    videos = read_videos(config.videos, required=("video_id", "video_uri", *columns_of(target)))
    if config.products is not None:
        check_references(videos, read_products(config.products), config.videos, config.products)
    if config.limit is not None:
        videos = videos.slice(0, config.limit)
    chosen = labelled(videos, config.videos, config.targets)
    examples = chosen.table.assign(side=sides(chosen.table, config.videos, config.split))
    check_enough(examples, config.split.validation_fraction > 0, {})
    shared = overlaps(examples, examples["side"].to_numpy())
    for why, count in chosen.left_out.items():
        console.print(f"{count} of {videos.num_rows} videos are left out: {why}")
    sizes = examples["side"].value_counts().to_dict()
    console.print(
        f"{len(examples)} videos with {target}, split by {config.split.split}: {sizes.get(TRAINING, 0)} to train on, "
        + (f"{sizes[VALIDATION]} to choose the epoch by, " if VALIDATION in sizes else "")
        + f"{sizes.get(HELD_OUT, 0)} held out"
        + (f", {sizes[LEFT_OUT]} on neither side" if LEFT_OUT in sizes else "")
    )
    console.print("shared by both sides: " + ", ".join(f"{count} {what}" for what, count in shared.items()))
    odd = examples[examples["suspicious"] != ""]
    if len(odd):
        weight = config.targets.suspicious_weight
        console.print(f"{len(odd)} videos have counts that contradict one another and weigh {weight:g}, such as:")
        for video_id, reason in zip(odd["video_id"][:SHOWN], odd["suspicious"][:SHOWN], strict=True):
            console.print(f"  {video_id}: {reason}")
    for warning in chosen.warnings:
        console.print(f"warning: {warning}")
    columns = ["video_id", "creator_id", "label", "weight", "side"]
    data_digest = hashlib.sha256(examples[columns].to_csv(index=False).encode()).hexdigest()
    swept = {} if config.sweep is None else read_flags(Path(config.sweep), "--sweep", SWEEP_EXAMPLE)
    told = json.dumps(how(settings) | {"sweep": swept}, default=str, sort_keys=True)
    digest = hashlib.sha256((told + data_digest).encode())
    name = config.name or f"train-{digest.hexdigest()[:10]}"
    return Plan(config, settings, spec, examples, shared, digest.hexdigest()[:10], data_digest[:16], name, init_weights)


def tags_of(plan: Plan) -> dict[str, str]:
    config = plan.config
    return {
        "catalogue": table_name(config.videos),
        "target": config.targets.target,
        "residualized_on": plan.spec.residualized_on or "nothing",
        "architecture": config.architecture,
        "split": config.split.split,
        "data_digest": plan.data_digest,
    }


@dataclasses.dataclass(frozen=True)
class Outcome:
    exit_code: int
    version: str | None
    """as registered; None where that failed"""


def trained(plan: Plan, scaling: ray.train.ScalingConfig, run: Run, cluster: Mapping[str, float]) -> Outcome:
    """Decode, train, judge, register."""
    config = plan.config
    begun = time.monotonic()
    run.params(how(plan.settings))
    run.dictionary(plan.settings, "config.json")
    run.table_input(table_name(config.videos), config.videos, plan.examples, "training")
    since = time.monotonic()
    clips = decoded(plan, cluster)
    decoding = {"clips/reused": float(clips.reused), "clips/seconds": time.monotonic() - since}
    examples, adjustment = adjusted(plan, clips)
    _log_data(run, plan, examples, clips, adjustment)
    fitted = fitted_model(plan, clips, examples, scaling, run)
    shuffled = _shuffled_control(plan, clips, examples, scaling) if config.shuffled_control else None
    folders = [made.checkpoint.parent for made in (fitted, shuffled) if made is not None]
    try:
        if shuffled is not None:
            run.artifact(shuffled.checkpoint, SHUFFLED)
        judged = judge(config, fitted, shuffled, examples, clips, plan.spec, cluster)
        print_judged(judged, unit_of(config.targets))
        seconds = time.monotonic() - begun
        version = publish(plan, fitted, judged, adjustment, examples, clips, run, seconds)
        run.metrics(_counts(plan, examples, clips) | decoding)  # below the figures that one chooses by
        _say_where(plan, fitted, version)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    tried = len(clips.table) + len(clips.undecodable)
    too_many = len(clips.undecodable) > config.max_failed_fraction * tried
    return Outcome(TOO_MANY_FAILED if too_many else DONE, version)


def cache_of(config: TrainConfig) -> str:
    return config.clip_cache or f"{config.storage.rstrip('/')}/clips"


def decoded(plan: Plan, cluster: Mapping[str, float]) -> Clips:
    videos = plan.examples[plan.examples["side"] != LEFT_OUT]
    begun = time.monotonic()
    with _progress("decoding", len(videos)) as (progress, watch):

        def on_decoded(done: int) -> None:
            watch.alive()
            progress.update(done)

        cores = max(1, int(cluster["CPU"]))
        clips = cached_clips(
            videos, plan.config.sampling, plan.spec.input_size, cache_of(plan.config), cores, on_decoded
        )
    fresh = len(clips.table) - clips.reused
    console.print(
        f"{clips.reused} clips were in the cache, {fresh} were decoded in {time.monotonic() - begun:.0f} s: "
        f"{cache_of(plan.config)}"
    )
    if clips.undecodable:
        console.print(f"{len(clips.undecodable)} of {len(videos)} videos could not be decoded and are left out:")
        for video_id, reason in list(clips.undecodable.items())[:SHOWN]:
            console.print(f"  {video_id}: {reason}")
    return clips


def adjusted(plan: Plan, clips: Clips) -> tuple[pd.DataFrame, Adjustment]:
    """The examples that decoded, without copies across the split, with the labels that are learned."""
    config = plan.config
    examples = plan.examples.merge(clips.table[["video_id", "key", "seconds", "hashes"]], on="video_id")
    for judged, others in ((HELD_OUT, (TRAINING, VALIDATION)), (VALIDATION, (TRAINING,))):
        rows = examples.index[examples["side"].isin([judged, *others])]
        if (examples["side"] == judged).any():
            is_judged = (examples["side"][rows] == judged).to_numpy()
            key = examples["key"][rows]
            same_file = np.flatnonzero(~is_judged & key.isin(key[is_judged])).tolist()
            alike = [i for i, _ in near_copies(examples["hashes"][rows].tolist(), is_judged)]
            copies = sorted({*same_file, *alike})
            examples.loc[rows[copies], "side"] = LEFT_OUT
            if copies:
                ids = ", ".join(examples["video_id"][rows[copies[:SHOWN]]])
                console.print(f"{len(copies)} training videos show the same footage as {judged} ones and are left "
                              f"out, such as {ids}")  # fmt: skip
    examples = examples.drop(columns=["key", "hashes"])
    check_enough(examples, config.split.validation_fraction > 0, clips.undecodable)
    if DURATION not in examples:
        examples[DURATION] = examples["seconds"] / config.sampling.sample_fps
    training = (examples["side"] == TRAINING).to_numpy()
    adjustment = fit_adjustment(examples[training], config.targets, config.split.seed)
    label = np.where(training, adjustment.apply(examples, training=True), adjustment.apply(examples, training=False))
    examples["label"] = label
    if np.std(label[training]) < SMALLEST_SPREAD:
        raise Refused(
            f"nothing to learn: the targets of all training videos are {label[training][0]:g} after what --winsorize, "
            "--residualize and undecodable videos left"
        )
    residualizer = adjustment.residualizer
    if residualizer is not None:
        console.print(
            f"{', '.join(columns_to_residualize(config.targets))} explain {100 * residualizer.explained_share:.0f}% of "
            f"the training videos' variance of the target, which is taken out (ridge penalty "
            f"{residualizer.penalty:g})"
        )
    return examples, adjustment


def fitted_model(
    plan: Plan,
    clips: Clips,
    examples: pd.DataFrame,
    scaling: ray.train.ScalingConfig,
    run: Run | None,
    what: str = "training",
) -> Fitted:
    config = plan.config
    with _progress(f"{what}, epoch", config.loop.epochs) as (progress, watch):
        logged = (run.steps("val/srcc") if run is not None else None) or set()

        def log_epoch(epoch: dict) -> None:
            if run is not None and epoch["epoch"] not in logged:
                run.metrics({k: v for k, v in epoch.items() if k != "epoch"}, step=epoch["epoch"])
                logged.add(epoch["epoch"])

        done, latest = 0, ""

        def on_report(report: dict) -> None:
            nonlocal done, latest
            watch.alive()
            if "epoch" not in report:
                now = report.get("what") or f"step {report['step']} of {report['steps']}"
                progress.update(done, f"{now}{', ' if latest else ''}{latest}")
                return
            log_epoch(report)
            done = report["epoch"] + 1
            latest = ", ".join(f"{k} {report[k]:.3f}" for k in ("train/loss", "val/loss", "val/srcc"))
            progress.update(done, latest)

        fitted = fit(
            clips, examples, plan.spec, config.loop, config.split.seed,
            plan.init_weights, scaling, storage.absolute(config.storage), plan.name, on_report,
        )  # fmt: skip
        for epoch in fitted.epochs:  # a job killed between an epoch's checkpoint and its metrics left these out
            log_epoch(epoch)
    if len(fitted.epochs) < config.loop.epochs:
        console.print(f"ended after {len(fitted.epochs)} epochs, the last {config.loop.patience} of them no better")
    return fitted


def _shuffled_control(plan: Plan, clips: Clips, examples: pd.DataFrame, scaling: ray.train.ScalingConfig) -> Fitted:
    """The same network on the same clips with the training labels dealt out anew: what it reaches is chance."""
    shuffled = examples.copy()
    training = np.flatnonzero(examples["side"] == TRAINING)
    dealt = np.random.default_rng(plan.config.split.seed).permutation(training)
    shuffled.loc[training, "label"] = examples["label"].to_numpy()[dealt]
    return fitted_model(plan, clips, shuffled, scaling, None, "with shuffled labels")


def _counts(plan: Plan, examples: pd.DataFrame, clips: Clips) -> dict[str, float]:
    sizes = {f"videos/{side}": float((examples["side"] == side).sum()) for side in (TRAINING, VALIDATION, HELD_OUT)}
    failed = {"videos/all": float(len(plan.examples)), "videos/failed": float(len(clips.undecodable))}
    shared = {f"overlap/{what.replace(' ', '_')}": float(count) for what, count in plan.overlaps.items()}
    return sizes | failed | shared | {"videos/suspicious": float((examples["suspicious"] != "").sum())}


def _log_data(run: Run, plan: Plan, examples: pd.DataFrame, clips: Clips, adjustment: Adjustment) -> None:
    suspicious = examples[examples["suspicious"] != ""]
    run.dictionary(clips.undecodable, "undecodable_videos.json")
    run.text(examples[["video_id", "side", "label", "weight"]].to_csv(index=False), "data/split.csv")
    if len(suspicious):
        run.text(suspicious[["video_id", "weight", "suspicious"]].to_csv(index=False), "data/suspicious_counts.csv")
    run.dictionary(adjustment.to_dict(), "data/target.json")


def _say_where(plan: Plan, fitted: Fitted, version: str | None) -> None:
    if version is None:
        kept = f"{storage.absolute(plan.config.storage)}/{plan.name}.pt"
        storage.write_bytes_atomically(kept, fitted.checkpoint.read_bytes())
        console.print(f"the model could not be registered; its checkpoint is {kept}")
        return
    console.print(
        f"registered {MODEL_NAME} version {version}, alias {CHALLENGER}; to use it by default: "
        f"python -m jobs.promote --version {version}\nMLflow UI: {ui_command()}"
    )
    forget(storage.absolute(plan.config.storage), plan.name)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[tuple[ProgressLog, StallWatch]]:
    """A progress line, and an end of the job where for an hour nothing comes."""
    progress = ProgressLog(what, total)
    try:
        with StallWatch(3600) as watch:
            yield progress, watch
    finally:
        progress.close()


def check(config: TrainConfig, spec: ModelSpec) -> bytes | None:
    """Everything that can be told before work starts; returns the initial weights' bytes. Raises Refused."""
    loop, split = config.loop, config.split
    if spec.architecture not in ARCHITECTURES:
        raise Refused(f"--architecture {spec.architecture}: there is no such network; "
                      f"choose one of {', '.join(ARCHITECTURES)}")  # fmt: skip
    if not 0 <= split.seed < 2**32:
        raise Refused(f"--seed is {split.seed}, expected at least 0 and below 2^32")
    if config.name is not None and not NAME.fullmatch(config.name):
        raise Refused(f"--name {config.name!r} is to name a folder: give letters, digits, '.', '_' and '-', "
                      "the first a letter or digit")  # fmt: skip
    at_least = {
        "--workers": (config.workers, 1),
        "--epochs": (loop.epochs, 1),
        "--batch-size": (loop.batch_size, 1),
        "--max-clip-frames": (loop.max_clip_frames, 1),
        "--input-size": (config.input_size, 32),
        "--weight-decay": (loop.weight_decay, 0),
        "--input-noise": (loop.input_noise, 0),
        "--max-shift": (loop.max_shift, 0),
        "--frozen-epochs": (loop.frozen_epochs, 0),
        "--backbone-rate": (loop.backbone_rate, 0),
        "--patience": (loop.patience, 0),
        "--wait-for-workers": (config.wait_for_workers, 0),
        "--limit": (1 if config.limit is None else config.limit, 1),
        "--cpus-per-worker": (1 if config.cpus_per_worker is None else config.cpus_per_worker, 1),
    }
    for flag, (value, least) in at_least.items():
        if not value >= least:
            raise Refused(f"{flag} is {value}, expected at least {least:g}")
    check_positive({"--learning-rate": loop.learning_rate})
    if loop.batch_size % config.workers:
        raise Refused(
            f"--batch-size {loop.batch_size} cannot be shared evenly by {config.workers} workers; give a multiple of it"
        )
    if loop.patience and not split.validation_fraction:
        raise Refused("--patience chooses an epoch by videos that then cannot judge it; give --validation-fraction, "
                      "such as 0.15, so that it has videos of its own")  # fmt: skip
    if loop.frozen_epochs and config.init_weights is None:
        raise Refused("--frozen-epochs keeps a backbone as it is; without --init-weights it knows nothing yet")
    check_sampling(config.sampling)
    if storage.scheme_of(config.storage) not in STORED_BY_RAY_TRAIN:
        raise Refused(f"--storage {config.storage}: Ray Train keeps checkpoints in local folders, s3://, gs:// and "
                      "abfs://; give one of these")  # fmt: skip
    storage.check_writable(config.storage)
    storage.check_writable(cache_of(config))
    if config.init_weights is None:
        return None
    try:
        weights = storage.read_bytes(config.init_weights)
    except OSError as error:
        raise Refused(f"--init-weights {config.init_weights} cannot be read: {storage.reason(error)}") from error
    load_pretrained(EngagementModel(spec).network, io.BytesIO(weights), config.init_weights)
    return weights


def check_folders(config: TrainConfig) -> None:
    check_shared(config.storage, "--storage")
    check_shared(cache_of(config), "--clip-cache")


def how(settings: dict) -> dict:
    """The settings that decide what a run comes to; the others may differ when it goes on."""
    beside_it = ("storage", "name", "dry_run", "cpus_per_worker", "unknown_at_posting", "clip_cache", "sweep",
                 "wait_for_workers", "shuffled_control")  # fmt: skip
    return {k: v for k, v in settings.items() if k not in beside_it}


def _run_file(storage_uri: str, name: str) -> str:
    return f"{run_folder(storage.absolute(storage_uri), name)}.json"


def unfinished_run(storage_uri: str, name: str, digest: str) -> str | None:
    """The MLflow run to go on with: its file is there until the run is done. Raises Refused where the run of this
    name learns otherwise or from other videos: its weights may know the videos that are now held out."""
    try:
        begun = json.loads(storage.read_bytes(_run_file(storage_uri, name)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = storage.reason(error) if isinstance(error, OSError) else "it is broken"
        raise Refused(f"{_run_file(storage_uri, name)} cannot be read ({reason}), so whether --name {name} was begun "
                      "with the same settings cannot be told; try again or give another --name") from error  # fmt: skip
    if begun["digest"] != digest:
        raise Refused(
            f"--name {name} was begun with other settings or videos; give another --name, or remove "
            f"{run_folder(storage_uri, name)} and {run_folder(storage_uri, name)}.json to begin it anew"
        )
    return begun["mlflow_run"]


def remember_run(storage_uri: str, name: str, digest: str, run: Run) -> None:
    begun = {"digest": digest, "mlflow_run": run.run_id}
    storage.write_bytes_atomically(_run_file(storage_uri, name), json.dumps(begun).encode())
