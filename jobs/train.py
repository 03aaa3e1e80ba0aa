"""Train the engagement model: python -m jobs.train --videos V"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import ray.train

from catalog import storage
from catalog.errors import Refused
from catalog.sampling import SamplingConfig
from catalog.tables import check_references, read_products, read_videos
from jobs.command import DONE, ProgressLog, StallWatch, console, print_config, ray_cluster, resolved, run_job
from tracking import registry
from tracking.runs import LOCAL_STORE, TRAINING, Run, git_commit, open_run, ui_command
from training.loop import LoopConfig
from training.models import ARCHITECTURES, EngagementModel, ModelSpec, load_pretrained
from training.plots import calibration, learning_curves
from training.run import Fitted, decode_clips, fit, forget
from training.targets import Examples, SplitConfig, examples


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    videos: str
    """table of videos (.parquet, .csv, .jsonl; local or s3://): video_id, video_uri, creator_id and the target"""
    products: str | None = None
    """table of products; where given, every product_id of the videos must be in it"""
    target: Literal["shares", "likes", "comments", "views"] = "shares"
    """the count to predict, as log1p"""
    architecture: str = "r3d_18"
    """r3d_18, or r3d_18_w16 with a quarter of the channels for trials on CPUs"""
    init_weights: Path | None = None
    """checkpoint with torchvision's r3d_18 keys to start from, such as Kinetics-400's"""
    input_size: int = 112
    """height and width to which frames are squashed, pixels; also E's grid"""
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    workers: int = 1
    """Ray Train workers, a GPU each where the cluster has them"""
    cpus_per_worker: int | None = None
    """cores of a worker; default: all cores, shared evenly (with GPUs: 4)"""
    storage: str = str(LOCAL_STORE / "training")
    """folder for checkpoints until the run is done; on a cluster a shared one, such as s3://"""
    name: str | None = None
    """name of the run; default: from its settings, so that the same command goes on with a run that was cut off"""
    limit: int | None = None
    """only the first so many videos, for a trial"""
    dry_run: bool = False
    """print the plan and the resources, write nothing and stop"""


def main(config: TrainConfig) -> int:
    settings = resolved(config)
    print_config(settings)
    spec = ModelSpec(config.architecture, config.input_size, config.target, sample_fps=config.sampling.sample_fps)
    _check(config, spec)
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
    name = config.name or f"train-{_digest(settings, chosen)}"
    with ray_cluster() as cluster:
        scaling = _scaling(config, cluster)
        console.print(f"run {name}: {config.workers} workers, {scaling.resources_per_worker} each")
        if config.dry_run:
            return DONE
        resume_id = _unfinished_run(config.storage, name)
        tags = {"target": config.target, "architecture": config.architecture, "split": "creator"}
        with open_run(TRAINING, name, tags, resume_id) as run:
            _remember_run(config.storage, name, run)
            return _train(config, settings, spec, videos.to_pandas(), chosen, name, scaling, run, cluster["CPU"])


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
) -> int:
    run.params(settings)
    run.table_input("videos", config.videos, videos, "training")
    with _progress("decoding", chosen.table.num_rows) as (progress, watch):

        def on_decoded(done: int) -> None:
            watch.alive()
            progress.update(done)

        clips, undecodable = decode_clips(chosen, config.sampling, spec.input_size, max(1, int(cores)), on_decoded)
    for video_id, reason in list(undecodable.items())[:5]:
        console.print(f"left out: {video_id}: {reason}")
    with _progress("training, epoch", config.loop.epochs) as (progress, watch):
        logged = run.steps("val/srcc") or set()

        def log_epoch(epoch: dict) -> None:
            if epoch["epoch"] not in logged:
                run.metrics({k: v for k, v in epoch.items() if k != "epoch"}, step=epoch["epoch"])
                logged.add(epoch["epoch"])

        def on_epoch(epoch: dict) -> None:
            watch.alive()
            log_epoch(epoch)
            figures = ", ".join(f"{k} {epoch[k]:.3f}" for k in ("train/loss", "val/loss", "val/srcc"))
            progress.update(epoch["epoch"] + 1, figures)

        creators = dict(zip(chosen.table["video_id"].to_pylist(), chosen.table["creator_id"].to_pylist(), strict=True))
        fitted = fit(
            clips, undecodable, creators, spec, config.loop, config.split.seed,
            str(config.init_weights.absolute()) if config.init_weights else None,
            scaling, storage.absolute(config.storage), name, on_epoch,
        )  # fmt: skip
        for epoch in fitted.epochs:  # a job killed between an epoch's checkpoint and its metrics left these out
            log_epoch(epoch)
    try:
        version = _publish(config, fitted, run)
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
        kept = Path("model.pt").absolute()
        shutil.copy(fitted.checkpoint, kept)
        console.print(f"the model could not be registered; its checkpoint is {kept}")
    else:
        console.print(
            f"registered {registry.MODEL_NAME} version {version}, alias {registry.CHALLENGER}; to use it by default: "
            f"python -m jobs.promote --version {version}\nMLflow UI: {ui_command()}"
        )
        forget(storage.absolute(config.storage), name)
    shutil.rmtree(fitted.checkpoint.parent, ignore_errors=True)
    return DONE


def _publish(config: TrainConfig, fitted: Fitted, run: Run) -> str | None:
    evaluation = fitted.evaluation
    run.metrics({k: v for k, v in evaluation.figures.items() if v == v})
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


def _check(config: TrainConfig, spec: ModelSpec) -> None:
    if config.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Refused(f"--architecture {config.architecture}: there is no such network; choose one of {known}")
    for flag, value in (("--epochs", config.loop.epochs), ("--batch-size", config.loop.batch_size),
                        ("--workers", config.workers), ("--input-size", config.input_size)):  # fmt: skip
        if value < 1:
            raise Refused(f"{flag} is {value}, expected at least 1")
    if config.init_weights is not None:
        load_pretrained(EngagementModel(spec).network, config.init_weights)
    storage.check_writable(config.storage)


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
    how = {k: v for k, v in settings.items() if k not in ("storage", "name", "dry_run", "workers", "cpus_per_worker")}
    data = hashlib.sha256(str(chosen.table.drop_columns(["video_uri"]).to_pydict()).encode()).hexdigest()
    return hashlib.sha256((json.dumps(how, default=str, sort_keys=True) + data).encode()).hexdigest()[:10]


def _run_file(storage_uri: str, name: str) -> str:
    return f"{storage.absolute(storage_uri)}/{name}.mlflow-run"


def _unfinished_run(storage_uri: str, name: str) -> str | None:
    """The MLflow run to go on with: its file is there until the run is done."""
    try:
        if not storage.exists(f"{storage.absolute(storage_uri)}/{name}"):
            return None
        return storage.read_bytes(_run_file(storage_uri, name)).decode() or None
    except OSError:
        return None


def _remember_run(storage_uri: str, name: str, run: Run) -> None:
    if run.run_id is not None:
        storage.write_bytes_atomically(_run_file(storage_uri, name), run.run_id.encode())


if __name__ == "__main__":
    run_job(TrainConfig, main, __doc__ or "")
