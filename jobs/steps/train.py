"""What jobs.train does."""

import contextlib
import hashlib
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
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
    resolved,
)
from jobs.train import TrainConfig
from tracking import registry
from tracking.names import CHALLENGER, MODEL_NAME, TRAINING
from tracking.runs import Run, git_commit, open_run, ui_command
from training.models import EngagementModel, ModelSpec, load_pretrained
from training.networks import ARCHITECTURES
from training.plots import calibration, learning_curves
from training.run import Fitted, decode_clips, fit, forget
from training.targets import Examples, examples


def main(config: TrainConfig) -> int:
    settings = resolved(config)
    print_config(settings)
    spec = ModelSpec(config.architecture, config.input_size, config.target, sample_fps=config.sampling.sample_fps)
    init_weights = _check(config, spec)
    videos = read_videos(config.videos, required=("video_id", "video_uri", config.target))
    if config.products is not None:
        check_references(videos, read_products(config.products), config.videos, config.products)
    if config.limit is not None:
        videos = videos.slice(0, config.limit)
    chosen = examples(videos, config.videos, config.target, config.split)
    held_out = sum(chosen.table["held_out"].to_pylist())
    console.print(
        f"{chosen.table.num_rows} videos with {config.target} ({chosen.without_label} without), split by creator: "
        f"{chosen.table.num_rows - held_out} to train on, {held_out} held out"
    )
    for warning in chosen.warnings:
        console.print(f"warning: {warning}")
    digest = _digest(settings, chosen)
    name = config.name or f"train-{digest}"
    resume_id = _unfinished_run(config.storage, name, digest)
    with ray_cluster() as cluster:
        scaling = _scaling(config, cluster)
        console.print(f"run {name}: {config.workers} workers, {scaling.resources_per_worker} each")
        if config.dry_run:
            return DONE
        tags = {"target": config.target, "architecture": config.architecture, "split": "creator"}
        with open_run(TRAINING, name, tags, resume_id) as run:
            _remember_run(config.storage, name, digest, run)
            table = videos.to_pandas()
            return _train(config, settings, spec, table, chosen, name, scaling, run, cluster["CPU"], init_weights)


def _train(
    config: TrainConfig,
    settings: dict,
    spec: ModelSpec,
    videos: pd.DataFrame,
    chosen: Examples,
    name: str,
    scaling: ray.train.ScalingConfig,
    run: Run,
    cores: float,
    init_weights: bytes | None,
) -> int:
    run.params(settings)
    run.dictionary(settings, "config.json")
    run.table_input("videos", config.videos, videos, "training")
    with _progress("decoding", chosen.table.num_rows) as (progress, watch):

        def on_decoded(done: int) -> None:
            watch.alive()
            progress.update(done)

        clips, undecodable = decode_clips(chosen, config.sampling, spec.input_size, max(1, int(cores)), on_decoded)
    if undecodable:
        console.print(f"{len(undecodable)} of {chosen.table.num_rows} videos could not be decoded and are left out:")
        for video_id, reason in list(undecodable.items())[:5]:
            console.print(f"  {video_id}: {reason}")
    with _progress("training, epoch", config.loop.epochs) as (progress, watch):
        logged = run.steps("val/srcc") or set()

        def log_epoch(epoch: dict) -> None:
            if epoch["epoch"] not in logged:
                run.metrics({k: v for k, v in epoch.items() if k != "epoch"}, step=epoch["epoch"])
                logged.add(epoch["epoch"])

        done, latest = 0, ""

        def on_report(report: dict) -> None:
            nonlocal done, latest
            watch.alive()
            if "epoch" not in report:
                progress.update(done, f"step {report['step']} of {report['steps']}{', ' if latest else ''}{latest}")
                return
            log_epoch(report)
            done = report["epoch"] + 1
            latest = ", ".join(f"{k} {report[k]:.3f}" for k in ("train/loss", "val/loss", "val/srcc"))
            progress.update(done, latest)

        creators = dict(zip(chosen.table["video_id"].to_pylist(), chosen.table["creator_id"].to_pylist(), strict=True))
        fitted = fit(
            clips, undecodable, creators, spec, config.loop, config.split.seed,
            init_weights, scaling, storage.absolute(config.storage), name, on_report,
        )  # fmt: skip
        for epoch in fitted.epochs:  # a job killed between an epoch's checkpoint and its metrics left these out
            log_epoch(epoch)
    try:
        version = _publish(config, fitted, run, chosen)
    except BaseException:
        shutil.rmtree(fitted.checkpoint.parent, ignore_errors=True)
        raise
    figures = fitted.evaluation.figures
    console.print(
        f"\nheld-out creators: SRCC {figures['eval/srcc']:.3f} "
        f"(95% {figures['eval/srcc_low']:.3f} to {figures['eval/srcc_high']:.3f}), "
        f"PLCC {figures['eval/plcc']:.3f}, R2 {figures['eval/r2']:.3f}, {len(fitted.evaluation.label)} videos"
    )
    if version is None:
        kept = Path(f"{name}.pt").absolute()
        shutil.copy(fitted.checkpoint, kept)
        console.print(f"the model could not be registered; its checkpoint is {kept}")
    else:
        console.print(
            f"registered {MODEL_NAME} version {version}, alias {CHALLENGER}; to use it by default: "
            f"python -m jobs.promote --version {version}\nMLflow UI: {ui_command()}"
        )
        forget(storage.absolute(config.storage), name)
    shutil.rmtree(fitted.checkpoint.parent, ignore_errors=True)
    return TOO_MANY_FAILED if len(undecodable) > config.max_failed_fraction * chosen.table.num_rows else DONE


def _publish(config: TrainConfig, fitted: Fitted, run: Run, chosen: Examples) -> str | None:
    evaluation = fitted.evaluation
    run.metrics({k: v for k, v in evaluation.figures.items() if v == v})
    run.metrics({"videos/all": chosen.table.num_rows, "videos/failed": len(fitted.undecodable)})
    run.dictionary(fitted.undecodable, "undecodable_videos.json")
    run.figure(learning_curves(fitted.epochs), "plots/learning_curves.png")
    run.figure(calibration(evaluation, config.target), "plots/held_out_predictions.png")
    tags = {"target": config.target, "split": "creator", "git_commit": git_commit()}
    tags["srcc"] = f"{evaluation.figures['eval/srcc']:.4f}"
    return registry.register(run, fitted.checkpoint, fitted.example, tags)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[tuple[ProgressLog, StallWatch]]:
    progress = ProgressLog(what, total)
    try:
        with StallWatch(3600) as watch:
            yield progress, watch
    finally:
        progress.close()


def _check(config: TrainConfig, spec: ModelSpec) -> bytes | None:
    """Refused where the settings cannot be meant; returns the checkpoint to start from."""
    if config.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Refused(f"--architecture {config.architecture}: there is no such network; choose one of {known}")
    loop, smallest = config.loop, {"--seed": 0, "--max-shift": 0, "--input-noise": 0.0, "--weight-decay": 0.0}
    for flag, value in (("--epochs", loop.epochs), ("--batch-size", loop.batch_size), ("--workers", config.workers),
                        ("--input-size", config.input_size), ("--max-clip-frames", loop.max_clip_frames),
                        ("--limit", config.limit), ("--cpus-per-worker", config.cpus_per_worker),
                        ("--seed", config.split.seed), ("--max-shift", loop.max_shift),
                        ("--input-noise", loop.input_noise), ("--weight-decay", loop.weight_decay)):  # fmt: skip
        least = smallest.get(flag, 1)
        if value is not None and not least <= value < math.inf:
            raise Refused(f"{flag} is {value}, expected at least {least:g}")
    check_positive({"--learning-rate": loop.learning_rate})
    if loop.batch_size % config.workers:
        raise Refused(
            f"--batch-size {loop.batch_size} cannot be shared evenly by {config.workers} workers; give a multiple of it"
        )
    check_sampling(config.sampling)
    storage.check_writable(config.storage)
    if config.init_weights is None:
        return None
    try:
        weights = storage.read_bytes(config.init_weights)
    except OSError as error:
        raise Refused(f"--init-weights {config.init_weights} cannot be read: {storage.reason(error)}") from error
    load_pretrained(EngagementModel(spec).network, io.BytesIO(weights), config.init_weights)
    return weights


def _scaling(config: TrainConfig, cluster: Mapping[str, float]) -> ray.train.ScalingConfig:
    gpus, cores = int(cluster.get("GPU", 0)), int(cluster["CPU"])
    use_gpu = gpus >= config.workers
    cpus = config.cpus_per_worker or (min(4, cores) if use_gpu else max(1, cores // config.workers))
    if cpus * config.workers > cores:
        raise Refused(
            f"{config.workers} workers of {cpus} CPUs do not fit on this cluster's {cores} CPUs; "
            "lower --workers or --cpus-per-worker, or add nodes"
        )
    return ray.train.ScalingConfig(
        num_workers=config.workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
    )


def _digest(settings: dict, chosen: Examples) -> str:
    """Names a run by what it learns from and how, so that the same command finds it again."""
    how = {k: v for k, v in settings.items() if k not in ("storage", "name", "dry_run", "cpus_per_worker")}
    data = hashlib.sha256(str(chosen.table.drop_columns(["video_uri"]).to_pydict()).encode()).hexdigest()
    return hashlib.sha256((json.dumps(how, default=str, sort_keys=True) + data).encode()).hexdigest()[:10]


def _run_file(storage_uri: str, name: str) -> str:
    return f"{storage.absolute(storage_uri)}/{name}.json"


def _unfinished_run(storage_uri: str, name: str, digest: str) -> str | None:
    """The MLflow run to go on with: its file is there until the run is done. Raises Refused where the run of this
    name learns otherwise or from other videos: its weights may know the videos that are now held out."""
    try:
        begun = json.loads(storage.read_bytes(_run_file(storage_uri, name)))
    except (OSError, ValueError):
        return None
    if begun["digest"] != digest:
        raise Refused(
            f"--name {name} was begun with other settings or videos; give another --name, or remove "
            f"{storage_uri}/{name} and {storage_uri}/{name}.json to begin it anew"
        )
    return begun["mlflow_run"]


def _remember_run(storage_uri: str, name: str, digest: str, run: Run) -> None:
    begun = {"digest": digest, "mlflow_run": run.run_id}
    storage.write_bytes_atomically(_run_file(storage_uri, name), json.dumps(begun).encode())
