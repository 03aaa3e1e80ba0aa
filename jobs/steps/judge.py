"""How jobs.train judges a model, says so and publishes it."""

import dataclasses
import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from catalog.errors import Refused
from jobs.command import StallWatch, console
from jobs.steps.train_plan import Plan
from jobs.train import TrainConfig
from tracking import registry
from tracking.names import (
    BASELINE_GAIN,
    BASELINE_GAIN_LOW,
    BEST_BASELINE,
    CHAMPION,
    CHAMPION_GAIN,
    COMPARED_WITH,
    MODEL_NAME,
    SHUFFLED,
)
from tracking.runs import Run, git_commit
from training.baselines import baselines, metadata_features
from training.clips import Clips, clip_of, dataset
from training.evaluation import Evaluation, HeldOut, advantage, calibration, evaluate
from training.models import ModelSpec, load_checkpoint
from training.plots import calibration_plot, comparison, held_out_predictions, learning_curves
from training.run import Fitted, predict
from training.splits import HELD_OUT, TRAINING
from training.targets import Adjustment, unit_of
from views.model_card import model_card

BASELINE_METRICS = ("srcc", "srcc_low", "srcc_high")
"""The table ``figures.csv`` has all: as metrics they would bury the model's own."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """The model beside what needs no video, on the same held-out videos."""

    model: Evaluation
    baselines: dict[str, Evaluation]
    """and the same network on shuffled labels"""
    best_baseline: str
    over_baseline: tuple[float, float, float]
    """of the model's SRCC over the best baseline's: difference, low, high"""
    features: list[str]
    """columns that the metadata baseline sees"""
    champion: tuple[str, Evaluation] | None
    """the version that is champion now, on the same videos"""
    over_champion: tuple[float, float, float] | None

    def rows(self) -> dict[str, Evaluation]:
        champion = {f"champion, version {self.champion[0]}": self.champion[1]} if self.champion else {}
        return {"the model": self.model} | self.baselines | champion


def judge(
    config: TrainConfig,
    fitted: Fitted,
    shuffled: Fitted | None,
    examples: pd.DataFrame,
    clips: Clips,
    spec: ModelSpec,
    cluster: Mapping[str, float],
) -> Judged:
    """examples: the videos that decoded, with ``side`` and the ``label`` that was learned."""
    seed = config.split.seed
    training, judged_on = (examples[examples["side"] == side] for side in (TRAINING, HELD_OUT))
    for made in (fitted, *([shuffled] if shuffled is not None else [])):
        # a run that went on predicted what had decoded when it began
        judged_on = judged_on[judged_on["video_id"].isin(list(made.predictions))]
    creators = [None if pd.isna(creator) else str(creator) for creator in judged_on["creator_id"]]
    held_out = HeldOut(judged_on["video_id"].tolist(), creators, judged_on["label"].to_numpy(float))
    predictions = baselines(training, judged_on, seed, config.unknown_at_posting)
    if shuffled is not None:
        predictions[SHUFFLED] = np.array([shuffled.predictions[video_id] for video_id in held_out.video_ids])
    model = evaluate(held_out, np.array([fitted.predictions[video_id] for video_id in held_out.video_ids]), seed)
    others = {name: evaluate(held_out, prediction, seed) for name, prediction in predictions.items()}
    features = metadata_features(training, len(training), config.unknown_at_posting).columns.tolist()
    best = max(others, key=lambda name: others[name].figures["srcc"])
    over_baseline = advantage(model, others[best])
    champion = _champion(held_out, judged_on, clips, spec, seed, cluster)
    over_champion = None if champion is None else advantage(model, champion[1])
    return Judged(model, others, best, over_baseline, features, champion, over_champion)


def _champion(
    held_out: HeldOut,
    judged_on: pd.DataFrame,
    clips: Clips,
    spec: ModelSpec,
    seed: int,
    cluster: Mapping[str, float],
) -> tuple[str, Evaluation] | None:
    """The present champion on the same videos, where it predicts the same target from the same kind of clip."""
    try:
        version = registry.version_with(CHAMPION)
    except Refused as error:
        console.print(f"whether there is a champion to compare with cannot be told: {error}")
        return None
    if version is None:
        return None
    try:
        checkpoint = registry.load(f"models:/{MODEL_NAME}/{version}").checkpoint
        its = load_checkpoint(checkpoint).spec
        for name in ("target", "residualized_on", "input_size", "sample_fps"):
            if getattr(its, name) != getattr(spec, name):
                raise Refused(f"its {name} is {getattr(its, name) or 'nothing'}")
        with StallWatch(3600) as watch:
            rows = dataset(clips, judged_on[["video_id", "label", "weight"]], spec.input_size)
            predicted = predict(rows, checkpoint, int(cluster["CPU"]), int(cluster.get("GPU", 0)), watch.alive)
        prediction = np.array([predicted[video_id] for video_id in held_out.video_ids])
    except Exception as error:  # whatever it is, the model that has just been trained must be kept
        why = f"{'' if isinstance(error, Refused) else type(error).__name__ + ': '}{error}"
        console.print(f"the present champion, version {version}, cannot be compared with: {why}")
        return None
    return version, evaluate(held_out, prediction, seed)


def print_judged(judged: Judged, unit: str) -> None:
    held_out = judged.model.held_out
    console.print(f"columns that the metadata baseline sees: {', '.join(judged.features) or 'none'}")
    videos = f"{len(held_out.video_ids)} held-out videos of {held_out.groups} creators"
    # fits into a job log's 80 columns
    table = Table(title=f"{videos}, {unit}; within: SRCC within creators", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "SRCC", "95%", "within", "PLCC", "R2", "MAE"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, evaluation in judged.rows().items():
        f = evaluation.figures
        values = (f[key] for key in ("within_creator_srcc", "plcc", "r2", "mae"))
        shown = ("" if math.isnan(value) else f"{value:.2f}" for value in values)
        table.add_row(name, f"{f['srcc']:.3f}", _interval(f["srcc_low"], f["srcc_high"]), *shown)
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
    return "unknown" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def publish(
    plan: Plan,
    fitted: Fitted,
    judged: Judged,
    adjustment: Adjustment,
    examples: pd.DataFrame,
    clips: Clips,
    run: Run,
    seconds: float,
) -> tuple[str | None, dict[str, str]]:
    """Log figures, plots and the model card, and register the model; returns its version, None where that failed, and
    name -> content of the files."""
    run.ask_again()
    difference, low, high = judged.over_baseline
    figures = {f"eval/{k}": v for k, v in judged.model.figures.items()}
    for name, baseline in judged.baselines.items():
        figures |= {f"baseline/{name}/{k}": v for k, v in baseline.figures.items() if k in BASELINE_METRICS}
    figures |= {
        "eval/srcc_over_baseline": difference,
        "eval/srcc_over_baseline_low": low,
        "eval/srcc_over_baseline_high": high,
        "epochs": float(len(fitted.epochs)),
        "seconds": seconds,
    }
    run.metrics({k: v for k, v in figures.items() if v == v})
    unit, held_out = unit_of(plan.config.targets), judged.model.held_out
    deciles = calibration(judged.model, plan.config.split.seed)
    all_figures = pd.DataFrame({name: evaluation.figures for name, evaluation in judged.rows().items()}).T
    rows = {"video_id": held_out.video_ids, "creator_id": held_out.creators, "label": held_out.label}
    predictions = {name: evaluation.prediction for name, evaluation in judged.rows().items()}
    facts = {
        "figures.csv": all_figures.round(4).to_csv(index_label="model"),
        "calibration.csv": deciles.to_csv(),
        registry.HELD_OUT_PREDICTIONS: pd.DataFrame(rows | predictions).to_csv(index=False),
    }
    run.figure(comparison(judged.rows()), "plots/srcc.png")
    run.figure(learning_curves(fitted.epochs), "plots/learning_curves.png")
    run.figure(held_out_predictions(judged.model, unit), "plots/held_out_predictions.png")
    run.figure(calibration_plot(deciles, unit), "plots/calibration.png")
    tags = version_tags(plan, judged)
    card = model_card(
        settings=plan.settings,
        unit=unit,
        counts={str(side): count for side, count in examples["side"].value_counts().items()},
        overlaps=plan.overlaps,
        undecodable=len(clips.undecodable),
        suspicious=int((examples["suspicious"] != "").sum()),
        adjustment=adjustment.to_dict(),
        evaluations={name: evaluation.figures for name, evaluation in judged.rows().items()},
        creators=held_out.groups,
        best_baseline=judged.best_baseline,
        over_baseline=judged.over_baseline,
        features=judged.features,
        epochs=len(fitted.epochs),
        tags=tags,
    )
    facts["model_card.md"] = card
    for file, text in facts.items():
        run.text(text, file)
    run.description(card)
    (fitted.checkpoint.parent / "target.json").write_text(json.dumps(adjustment.to_dict()))
    first = examples[examples["side"] == HELD_OUT].head(1)[["video_id", "label", "weight"]]
    example = clip_of(dataset(clips, first, plan.spec.input_size).take(1)[0])[None]
    version = registry.register(run, fitted.checkpoint, example, unit, tags, card)
    if version is not None:
        run.tags({"registered_version": version})
    return version, facts


def version_tags(plan: Plan, judged: Judged) -> dict[str, str]:
    difference, low, _ = judged.over_baseline
    figures = judged.model.figures
    tags = {
        "target": plan.config.targets.target,
        "residualized_on": plan.spec.residualized_on or "nothing",
        "architecture": plan.config.architecture,
        "split": f"{plan.config.split.split}, seed {plan.config.split.seed}",
        "data_digest": plan.data_digest,
        "eval_srcc": f"{figures['srcc']:.3f} (95% {_interval(figures['srcc_low'], figures['srcc_high'])})",
        "held_out_videos": str(len(judged.model.held_out.video_ids)),
        "git_commit": git_commit(),
        BEST_BASELINE: judged.best_baseline,
        BASELINE_GAIN: f"{difference:.3f}",
        BASELINE_GAIN_LOW: f"{low:.6g}",
    } | registry.library_versions()
    if judged.champion is not None and judged.over_champion is not None:
        tags[COMPARED_WITH], tags[CHAMPION_GAIN] = judged.champion[0], f"{judged.over_champion[0]:.6g}"
    return tags
