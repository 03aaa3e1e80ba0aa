"""What jobs.train does."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import ray
import ray.train

from catalog import storage
from catalog.errors import Refused
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
from jobs.steps.folders import check_shared
from jobs.steps.judge import judge, print_judged, publish
from jobs.steps.train_plan import (
    SHOWN,
    Begun,
    Plan,
    as_begun,
    begun_run,
    cache_of,
    digest_of,
    held,
    how,
    prepared,
    remember_run,
    tags_of,
)
from jobs.steps.workers import nodes_of_cluster, scaled
from jobs.train import TrainConfig
from tracking.names import CHALLENGER, MODEL_NAME, SHUFFLED, TRAINING_RUNS
from tracking.runs import Run, open_run, table_name, ui_command
from training.clips import Clips, cached_clips
from training.near_copies import near_copies
from training.run import Diverged, Fitted, check_enough, fit, forget
from training.splits import HELD_OUT, LEFT_OUT, TRAINING, VALIDATION
from training.targets import (
    DURATION,
    Adjustment,
    columns_to_residualize,
    fit_adjustment,
    unit_of,
)

SMALLEST_SPREAD = 1e-6


def main(config: TrainConfig) -> int:
    settings = resolved(config)
    print_config(settings)
    plan = prepared(config, settings)
    if config.sweep is not None:
        from jobs.steps import sweep

        return sweep.main(plan)
    begun = begun_run(config.storage, plan.name, plan.digest)
    with ray_cluster():
        check_folders(config)
        scaling = scaled(config, nodes_of_cluster)
        console.print(f"run {plan.name}: {config.workers} workers, {scaling.resources_per_worker} each")
        if config.dry_run:
            return DONE
        with held(plan), open_run(TRAINING_RUNS, plan.title, tags_of(plan), begun and begun.mlflow_run) as run:
            remember_run(plan, Begun(plan.digest, run.run_id, begun and begun.undecodable))
            return trained(plan, scaling, run, ray.cluster_resources()).exit_code


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
    clips = as_begun(plan, decoded(plan, cluster))
    decoding = {"clips/reused": float(clips.reused), "clips/seconds": time.monotonic() - since}
    examples, adjustment = adjusted(plan, clips)
    plan = dataclasses.replace(plan, data_digest=digest_of(examples))
    run.tags({"data_digest": plan.data_digest})
    facts = _facts(examples, clips, adjustment)
    for file, text in facts.items():
        run.text(text, file)
    fitted = fitted_model(plan, clips, examples, scaling, run)
    shuffled = _shuffled_control(plan, clips, examples, scaling) if config.shuffled_control else None
    folders = [made.checkpoint.parent for made in (fitted, shuffled) if made is not None]
    try:
        if shuffled is not None:
            run.artifact(shuffled.checkpoint, SHUFFLED)
        judged = judge(config, fitted, shuffled, examples, clips, plan.spec, cluster)
        print_judged(judged, unit_of(config.targets))
        seconds = time.monotonic() - begun
        version, of_judging = publish(plan, fitted, judged, adjustment, examples, clips, run, seconds)
        run.metrics(_counts(plan, examples, clips) | decoding)  # below the figures that one chooses by
        if version is None:
            _keep(plan, fitted, facts | of_judging)
        else:
            _say_where(plan, version)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    tried = len(clips.table) + len(clips.undecodable)
    too_many = len(clips.undecodable) > config.max_failed_fraction * tried
    return Outcome(TOO_MANY_FAILED if too_many else DONE, version)


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
            if run is None or epoch["epoch"] in logged:
                return
            if run.metrics({k: v for k, v in epoch.items() if k != "epoch"}, step=epoch["epoch"]):
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
        if run is not None:
            run.ask_again()
        for epoch in fitted.epochs:  # a job killed between an epoch's checkpoint and its metrics left these out
            log_epoch(epoch)
    if len(fitted.epochs) < config.loop.epochs:
        console.print(f"ended after {len(fitted.epochs)} epochs, the last {config.loop.patience} of them no better")
    return fitted


def _shuffled_control(
    plan: Plan, clips: Clips, examples: pd.DataFrame, scaling: ray.train.ScalingConfig
) -> Fitted | None:
    """The same network on the same clips with the training labels dealt out anew: what it reaches is chance. None
    where it diverged, which is no fault of the model's."""
    shuffled = examples.copy()
    training = np.flatnonzero(examples["side"] == TRAINING)
    dealt = np.random.default_rng(plan.config.split.seed).permutation(training)
    shuffled.loc[training, "label"] = examples["label"].to_numpy()[dealt]
    try:
        return fitted_model(plan, clips, shuffled, scaling, None, "with shuffled labels")
    except Diverged as error:
        console.print(f"the model is judged without the control of shuffled labels: with them, {error}")
        return None


def _counts(plan: Plan, examples: pd.DataFrame, clips: Clips) -> dict[str, float]:
    sizes = {f"videos/{side}": float((examples["side"] == side).sum()) for side in (TRAINING, VALIDATION, HELD_OUT)}
    failed = {"videos/all": float(len(plan.examples)), "videos/failed": float(len(clips.undecodable))}
    shared = {f"overlap/{what.replace(' ', '_')}": float(count) for what, count in plan.overlaps.items()}
    return sizes | failed | shared | {"videos/suspicious": float((examples["suspicious"] != "").sum())}


def _facts(examples: pd.DataFrame, clips: Clips, adjustment: Adjustment) -> dict[str, str]:
    """Name -> content of the files that say what was learned from."""
    facts = {
        "undecodable_videos.json": json.dumps(clips.undecodable, indent=2),
        "data/split.csv": examples[["video_id", "side", "label", "weight"]].to_csv(index=False),
        "data/target.json": json.dumps(adjustment.to_dict(), indent=2),
    }
    suspicious = examples.loc[examples["suspicious"] != "", ["video_id", "weight", "suspicious"]]
    return facts | ({"data/suspicious_counts.csv": suspicious.to_csv(index=False)} if len(suspicious) else {})


def _keep(plan: Plan, fitted: Fitted, facts: dict[str, str]) -> None:
    """Beside the checkpoints, what MLflow did not take."""
    folder = f"{storage.absolute(plan.config.storage)}/unregistered/{plan.name}"
    for file, text in facts.items():
        storage.write_bytes_atomically(f"{folder}/{file}", text.encode())
    storage.write_bytes_atomically(f"{folder}/{fitted.checkpoint.name}", fitted.checkpoint.read_bytes())
    console.print(
        f"the model could not be registered; its checkpoint, model card and figures are in {folder}\n"
        "when the tracking server answers again, the same command registers it without training again"
    )


def _say_where(plan: Plan, version: str) -> None:
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


def check_folders(config: TrainConfig) -> None:
    check_shared(config.storage, "--storage")
    check_shared(cache_of(config), "--clip-cache")
