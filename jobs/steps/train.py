"""What jobs.train does."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
from rich.table import Table

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
from tracking.names import (
    BASELINE_GAIN,
    BASELINE_GAIN_LOW,
    BEST_BASELINE,
    CHALLENGER,
    CHAMPION,
    CHAMPION_GAIN,
    COMPARED_WITH,
    MODEL_NAME,
    TRAINING,
)
from tracking.runs import Run, git_commit, open_run, ui_command
from training.baselines import baselines, metadata_features
from training.evaluation import Evaluation, HeldOut, advantage, evaluate
from training.models import EngagementModel, ModelSpec, load_checkpoint, load_pretrained
from training.networks import ARCHITECTURES
from training.plots import calibration, learning_curves
from training.run import Fitted, decode_clips, fit, forget, predict
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
            return _train(config, settings, spec, table, chosen, name, scaling, run, cluster, init_weights)


def _train(
    config: TrainConfig,
    settings: dict,
    spec: ModelSpec,
    videos: pd.DataFrame,
    chosen: Examples,
    name: str,
    scaling: ray.train.ScalingConfig,
    run: Run,
    cluster: Mapping[str, float],
    init_weights: bytes | None,
) -> int:
    run.params(settings)
    run.dictionary(settings, "config.json")
    run.table_input("videos", config.videos, videos, "training")
    with _progress("decoding", chosen.table.num_rows) as (progress, watch):

        def on_decoded(done: int) -> None:
            watch.alive()
            progress.update(done)

        clips, undecodable = decode_clips(
            chosen, config.sampling, spec.input_size, max(1, int(cluster["CPU"])), on_decoded
        )
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

        fitted = fit(
            clips, undecodable, spec, config.loop, config.split.seed,
            init_weights, scaling, storage.absolute(config.storage), name, on_report,
        )  # fmt: skip
        for epoch in fitted.epochs:  # a job killed between an epoch's checkpoint and its metrics left these out
            log_epoch(epoch)
    try:
        judged = _judge(config, fitted, chosen, videos, clips, spec, cluster)
        version = _publish(config, fitted, judged, run, chosen)
    except BaseException:
        shutil.rmtree(fitted.checkpoint.parent, ignore_errors=True)
        raise
    _print_judged(judged)
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


@dataclasses.dataclass(frozen=True)
class Judged:
    """The model beside what needs no video, on the same held-out videos."""

    model: Evaluation
    baselines: dict[str, Evaluation]
    best_baseline: str
    over_baseline: tuple[float, float, float]
    """of the model's SRCC over the best baseline's: difference, low, high"""
    champion: tuple[str, Evaluation] | None
    """the version that is champion now, on the same videos"""
    over_champion: tuple[float, float, float] | None


def _judge(
    config: TrainConfig,
    fitted: Fitted,
    chosen: Examples,
    videos: pd.DataFrame,
    clips: pa.Table,
    spec: ModelSpec,
    cluster: Mapping[str, float],
) -> Judged:
    seed, ours = config.split.seed, [name for name in chosen.table.column_names if name != "video_id"]
    rest = videos.drop(columns=ours, errors="ignore")
    table = chosen.table.to_pandas().merge(rest, on="video_id", validate="one_to_one")
    training = table[~table["held_out"] & ~table["video_id"].isin(list(fitted.undecodable))]
    judged_on = table[table["video_id"].isin(list(fitted.predictions))]
    creators = [None if pd.isna(creator) else str(creator) for creator in judged_on["creator_id"]]
    held_out = HeldOut(judged_on["video_id"].tolist(), creators, judged_on["label"].to_numpy(float))
    model = evaluate(held_out, np.array([fitted.predictions[video_id] for video_id in held_out.video_ids]), seed)
    others = {
        name: evaluate(held_out, prediction, seed)
        for name, prediction in baselines(training, judged_on, seed, config.unknown_at_posting).items()
    }
    features = metadata_features(training, len(training), config.unknown_at_posting).columns
    console.print(f"columns that the metadata baseline sees: {', '.join(features) or 'none'}")
    best = max(others, key=lambda name: others[name].figures["srcc"])
    over_baseline = advantage(model, others[best])
    champion = _champion(held_out, clips, spec, seed, cluster)
    over_champion = None if champion is None else advantage(model, champion[1])
    return Judged(model, others, best, over_baseline, champion, over_champion)


def _champion(
    held_out: HeldOut, clips: pa.Table, spec: ModelSpec, seed: int, cluster: Mapping[str, float]
) -> tuple[str, Evaluation] | None:
    """The present champion on the same videos, where it predicts the same count from the same kind of clip."""
    version = registry.version_with(CHAMPION)
    if version is None:
        return None
    try:
        checkpoint = registry.load(f"models:/{MODEL_NAME}/{version}").checkpoint
        its = load_checkpoint(checkpoint).spec
        for name in ("target", "input_size", "sample_fps"):
            if getattr(its, name) != getattr(spec, name):
                raise Refused(f"its {name} is {getattr(its, name)}")
        judged_on = clips.filter(pc.is_in(clips["video_id"], pa.array(held_out.video_ids)))
        with StallWatch(3600):
            predicted = predict(judged_on, checkpoint, int(cluster["CPU"]), int(cluster.get("GPU", 0)))
        prediction = np.array([predicted[video_id] for video_id in held_out.video_ids])
    except Exception as error:  # whatever it is, the model that has just been trained must be kept
        why = f"{'' if isinstance(error, Refused) else type(error).__name__ + ': '}{error}"
        console.print(f"the present champion, version {version}, cannot be compared with: {why}")
        return None
    return version, evaluate(held_out, prediction, seed)


def _print_judged(judged: Judged) -> None:
    held_out = judged.model.held_out
    table = Table(title=f"{len(held_out.video_ids)} held-out videos of {held_out.groups} creators")
    for column in ("", "SRCC", "95%", "PLCC", "R2", "MAE"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"the model": judged.model} | judged.baselines
    if judged.champion is not None:
        rows[f"champion, version {judged.champion[0]}"] = judged.champion[1]
    for name, evaluation in rows.items():
        f = evaluation.figures
        interval = _interval(f["srcc_low"], f["srcc_high"])
        table.add_row(name, f"{f['srcc']:.3f}", interval, f"{f['plcc']:.3f}", f"{f['r2']:.3f}", f"{f['mae']:.3f}")
    console.print()
    console.print(table)
    difference, low, high = judged.over_baseline
    console.print(
        f"SRCC over the best baseline ({judged.best_baseline}): {difference:+.3f} (95% {_interval(low, high)}); "
        "intervals resample creators"
    )
    if judged.over_champion is not None:
        gain, gain_low, gain_high = judged.over_champion
        console.print(
            f"SRCC over the champion: {gain:+.3f} (95% {_interval(gain_low, gain_high)}); it may have learned "
            "from some of these videos, which flatters it"
        )
    if not low > 0:
        console.print(
            "warning: that the model predicts better than what needs no video cannot be told from chance here, so "
            "its maps and scores may mean nothing"
        )


def _interval(low: float, high: float) -> str:
    return "unknown of one creator" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _publish(config: TrainConfig, fitted: Fitted, judged: Judged, run: Run, chosen: Examples) -> str | None:
    run.metrics({f"eval/{k}": v for k, v in judged.model.figures.items() if v == v})
    for name, baseline in judged.baselines.items():
        run.metrics({f"baseline_{name}/{k}": v for k, v in baseline.figures.items() if v == v})
    difference, low, high = judged.over_baseline
    gain = {
        "eval/srcc_over_baseline": difference,
        "eval/srcc_over_baseline_low": low,
        "eval/srcc_over_baseline_high": high,
    }
    run.metrics({k: v for k, v in gain.items() if v == v})
    run.metrics({"videos/all": chosen.table.num_rows, "videos/failed": len(fitted.undecodable)})
    run.dictionary(fitted.undecodable, "undecodable_videos.json")
    run.figure(learning_curves(fitted.epochs), "plots/learning_curves.png")
    run.figure(calibration(judged.model, config.target), "plots/held_out_predictions.png")
    tags = {"target": config.target, "split": "creator", "git_commit": git_commit()}
    tags |= {"srcc": f"{judged.model.figures['srcc']:.4f}", BEST_BASELINE: judged.best_baseline}
    tags |= {BASELINE_GAIN: f"{difference:.4f}", BASELINE_GAIN_LOW: f"{low:.4f}"}
    if judged.champion is not None and judged.over_champion is not None:
        tags |= {COMPARED_WITH: judged.champion[0], CHAMPION_GAIN: f"{judged.over_champion[0]:.4f}"}
        run.metrics({"eval/srcc_over_champion": judged.over_champion[0]})
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
    beside_it = ("storage", "name", "dry_run", "cpus_per_worker", "unknown_at_posting")
    how = {k: v for k, v in settings.items() if k not in beside_it}
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
