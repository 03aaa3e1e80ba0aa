"""What jobs.train --sweep does: tries settings with Ray Tune, then goes on with the best."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.tune
from ray.tune.experiment import Trial
from rich.table import Table

from catalog import storage
from catalog.errors import Broken, Refused
from jobs.command import DONE, StallWatch, console, parse, ray_cluster, read_flags, resolved
from jobs.steps.train import adjusted, check_folders, decoded, trained
from jobs.steps.train_plan import (
    SWEEP_EXAMPLE,
    Begun,
    Plan,
    as_begun,
    begun_run,
    check,
    digest_of,
    held,
    how,
    remember_run,
    tags_of,
)
from jobs.steps.workers import nodes_of_cluster, scaled
from jobs.train import TrainConfig
from tracking.names import TRAINING_RUNS
from tracking.runs import Run, open_run
from training.clips import Clips
from training.run import FITTED, Diverged, fit, forget, in_thread, run_folder
from training.settings import LoopConfig

SWEPT = ("architecture", *(field.name for field in dataclasses.fields(LoopConfig)))
MAX_TRIALS = 64
STALL_S = 3600.0
ATTEMPT_BYTES = 512 * 2**20
"""What an attempt itself takes, beside its workers: Ray Tune wants it to ask for something."""

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One combination of settings."""

    settings: Settings
    plan: Plan

    @property
    def title(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())

    def with_plan(self, **changes: Any) -> "Attempt":
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, **changes))


def main(plan: Plan) -> int:
    config = plan.config
    attempts = attempts_of(plan)
    begun = begun_run(config.storage, plan.name, plan.digest)
    console.print(f"sweep {plan.name}: {len(attempts)} combinations")
    for attempt in attempts:
        console.print(f"  {attempt.title}")
    with ray_cluster():
        check_folders(config)
        scaling = scaled(config, nodes_of_cluster)
        cluster = ray.cluster_resources()
        if config.dry_run:
            return DONE
        tags, resume_id = tags_of(plan) | {"sweep": "parent"}, begun and begun.mlflow_run
        with held(plan), open_run(TRAINING_RUNS, plan.title, tags, resume_id) as parent:
            remember_run(plan, Begun(plan.digest, parent.run_id, begun and begun.undecodable))
            parent.params(how(plan.settings))
            clips = as_begun(plan, decoded(plan, cluster))
            examples, _ = adjusted(plan, clips)
            judged_on = {"data_digest": digest_of(examples)}
            parent.tags(judged_on)
            attempts = [a.with_plan(**judged_on) for a in attempts]
            bundle: Mapping[str, float] = scaling.resources_per_worker or {}  # pyright: ignore[reportAssignmentType]
            at_once = int(min(cluster[kind] // (config.workers * amount) for kind, amount in bundle.items()))
            epochs = _tried(attempts, clips, examples, scaling, max(1, at_once), parent)
            scores = [_score(attempt, epochs[i]) for i, attempt in enumerate(attempts)]
            best = int(np.argmax(scores))
            if scores[best] == -np.inf:
                raise Broken("no combination could be trained; see above")
            _print(attempts, epochs, scores)
            rows = [a.settings | {"epochs_run": len(e), "val/srcc": s}
                    for a, e, s in zip(attempts, epochs, scores, strict=True)]  # fmt: skip
            parent.text(pd.DataFrame(rows).to_csv(index=False), "sweep.csv")
            parent.metrics({"sweep/best_val_srcc": scores[best]})
            parent.tags({"best": attempts[best].title})
            console.print(f"going on with {attempts[best].title}")
            chosen = attempts[best].plan
            tags = tags_of(chosen) | {"sweep": "best"}
            title = f"{plan.title} best"
            earlier = (parent.children() or {}).get(title)
            with open_run(TRAINING_RUNS, title, tags, earlier, parent) as run:
                outcome = trained(chosen, scaling, run, cluster)
            if outcome.version is not None:
                forget(storage.absolute(config.storage), plan.name)
            return outcome.exit_code


def attempts_of(plan: Plan) -> list[Attempt]:
    """All combinations of the sweep file's values. Raises Refused."""
    config, path = plan.config, plan.config.sweep
    assert path is not None
    if not config.split.validation_fraction:
        raise Refused("--sweep chooses by videos that then cannot judge the model; give --validation-fraction, such as "
                      "0.15, so that it has videos of its own")  # fmt: skip
    lists: dict[str, list[Any]] = {}
    for name, values in read_flags(Path(path), "--sweep", SWEEP_EXAMPLE).items():
        field = name.replace("-", "_")
        if field not in SWEPT:
            raise Refused(f"--sweep {path}: {name} cannot be swept: models of other data cannot be compared; "
                          f"choose of {', '.join(n.replace('_', '-') for n in SWEPT)}")  # fmt: skip
        if not isinstance(values, list) or not values:
            raise Refused(f"--sweep {path}: {name} is {values!r}, expected a list of values, such as [1, 2]")
        typed = (_typed(config, path, name, value) for value in values)
        lists[field] = list(dict.fromkeys(typed))  # 0.001 and 1e-3, which YAML takes for text, are one
    if not lists:
        raise Refused(f"--sweep {path} names no flag; expected such as {SWEEP_EXAMPLE}")
    combinations = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    if len(combinations) > MAX_TRIALS:
        raise Refused(f"--sweep {path} makes {len(combinations)} combinations, at most {MAX_TRIALS} are tried")
    return [Attempt(settings, _plan_with(plan, settings)) for settings in combinations]


def _typed(config: TrainConfig, path: str, name: str, value: Any) -> Any:
    field = name.replace("-", "_")
    try:
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            parsed = parse(TrainConfig, ["--videos", config.videos, f"--{name}", str(value)], "")
    except SystemExit as error:
        raise Refused(f"--sweep {path}: {name} cannot be {value!r}; see python -m jobs.train --help") from error
    return resolved(parsed)[field]


def _plan_with(plan: Plan, settings: Settings) -> Plan:
    loop = dataclasses.replace(plan.config.loop, **{k: v for k, v in settings.items() if k != "architecture"})
    architecture = settings.get("architecture", plan.config.architecture)
    config = dataclasses.replace(plan.config, architecture=architecture, loop=loop, sweep=None)
    spec = dataclasses.replace(plan.spec, architecture=architecture)
    check(config, spec)
    return dataclasses.replace(plan, config=config, settings=resolved(config), spec=spec)


def _tried(
    attempts: list[Attempt], clips: Clips, examples: pd.DataFrame, scaling: Any, at_once: int, parent: Run
) -> list[list[dict[str, float]]]:
    """The metrics of every attempt's epochs, by Ray Tune."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other way it prints tables in spite of verbose=0
    judged_on = examples[list(FITTED)]
    trainable = ray.tune.with_parameters(_trial, attempts=attempts, clips=clips, examples=judged_on, scaling=scaling)
    with StallWatch(STALL_S) as watch:
        follower = Follower(attempts, parent, watch.alive)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"memory": ATTEMPT_BYTES}),  # its workers ask for CPUs themselves
            param_space={"number": ray.tune.grid_search(list(range(len(attempts))))},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=run_folder(storage.absolute(attempts[0].plan.config.storage), attempts[0].plan.name),
                callbacks=[follower],
                verbose=0,
            ),
        )
        with contextlib.closing(follower):
            results = in_thread(tuner.fit)
    for number in range(len(results)):
        result = results[number]
        if result.error is not None:
            console.print(f"{attempts[number].title} broke: {str(result.error).splitlines()[-1]}")
            follower.epochs[number] = {}
    return [[epochs[i] for i in sorted(epochs)] for _, epochs in sorted(follower.epochs.items())]


def _trial(
    settings: dict[str, Any], attempts: list[Attempt], clips: Clips, examples: pd.DataFrame, scaling: Any
) -> None:
    plan = attempts[settings["number"]].plan
    told: set[int] = set()

    def on_report(report: dict[str, Any]) -> None:
        if report.get("epoch") not in told:
            if "epoch" in report:
                told.add(report["epoch"])
            ray.tune.report(report)

    try:
        fitted = fit(
            clips, examples, plan.spec, plan.config.loop, plan.config.split.seed,
            plan.init_weights, scaling, storage.absolute(plan.config.storage), plan.name, on_report,
        )  # fmt: skip
    except Diverged as error:
        ray.tune.report({"diverged": str(error)})
        return
    for epoch in fitted.epochs:  # of an earlier attempt of this job
        on_report(epoch)


class Follower(ray.tune.Callback):
    """Keeps every attempt's epochs and shows them in MLflow, each attempt as a run below its parent."""

    def __init__(self, attempts: list[Attempt], parent: Run, alive: Callable[[], None]):
        self.attempts, self.parent, self.alive = attempts, parent, alive
        self.epochs: dict[int, dict[int, dict[str, float]]] = {}
        """attempt -> epoch -> figures"""
        self._open: dict[int, tuple[contextlib.ExitStack, Run]] = {}
        self._logged: dict[int, set[int]] = {}
        self._earlier = parent.children() or {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune keeps callbacks on disk to restore a sweep by, which this job does by its checkpoints."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["number"]
        attempt, stack = self.attempts[number], contextlib.ExitStack()
        tags = tags_of(attempt.plan) | {"sweep": "attempt"}
        earlier = self._earlier.get(attempt.title)
        run = stack.enter_context(open_run(TRAINING_RUNS, attempt.title, tags, earlier, self.parent))
        run.params(how(attempt.plan.settings))
        self.epochs[number], self._open[number] = {}, (stack, run)
        self._logged[number] = run.steps("val/srcc") or set()
        console.print(f"trying {attempt.title}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        self.alive()
        if "diverged" in result:
            console.print(f"  {self.attempts[number].title}: {result['diverged']}")
            self._open[number][1].tags({"stopped": result["diverged"]})
            self.epochs[number] = {}
        if "epoch" not in result or "diverged" in result:
            return
        figures = {name: result[name] for name in ("train/loss", "val/loss", "val/srcc", "learning_rate")}
        self.epochs[number][result["epoch"]] = figures
        if result["epoch"] not in self._logged[number]:
            self._open[number][1].metrics(figures, step=result["epoch"])
        console.print(
            f"  {self.attempts[number].title}: epoch {result['epoch'] + 1}, val/srcc {figures['val/srcc']:.3f}"
        )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._open.pop(trial.config["number"])[0].close()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._give_up(trial.config["number"], "FAILED")

    def close(self) -> None:
        """The job was stopped."""
        for number in list(self._open):
            self._give_up(number, "KILLED")

    def _give_up(self, number: int, status: str) -> None:
        stack, run = self._open.pop(number)
        stack.pop_all()  # which would say that it has finished
        run.finish(status)


def _score(attempt: Attempt, epochs: list[dict[str, float]]) -> float:
    """SRCC on the validation videos of the epoch that would be kept; -inf of an attempt that diverged or broke."""
    if not epochs:
        return -np.inf
    ranks = [epoch["val/srcc"] for epoch in epochs]
    return max(ranks) if attempt.plan.config.loop.patience else ranks[-1]


def _print(attempts: list[Attempt], epochs: list[list[dict[str, float]]], scores: list[float]) -> None:
    table = Table(title="SRCC on the validation videos")
    for column in ("settings", "epochs", "SRCC", "val/loss"):
        table.add_column(column)
    for i in np.argsort(scores)[::-1]:
        loss = f"{epochs[i][-1]['val/loss']:.3f}" if epochs[i] else "none"
        table.add_row(attempts[i].title, str(len(epochs[i])), f"{scores[i]:.3f}", loss)
    console.print()
    console.print(table)
