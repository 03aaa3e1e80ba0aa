"""The whole study: the tables of a catalogue's scores and sales -> lifts, what predicts them, and a verdict.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from analysis.bootstrap import both_stages
from analysis.event_study import EventStudy, event_study
from analysis.negative_controls import RANDOM, mistaken_scores, negative_controls
from analysis.panel import Mended, Panel
from analysis.prediction import out_of_sample
from analysis.sample import Sample
from analysis.specifications import specification_curve
from analysis.stage_one import StageOne
from analysis.stage_two import influential, rivals, stage_two, vif
from analysis.staggered import average_lifts
from analysis.treatment import Treatment
from analysis.verdict import Evidence, Verdict, verdict

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was read and checked."""

    panel: Panel
    mended: Mended
    treated: Treatment
    rebuilt: Mapping[str, Panel]
    """the panel by other rebuilds; empty where days were given"""
    placebo: np.ndarray | None
    """(B,) pe_score of the same videos by a model of other weights; NaN where unknown"""
    draws: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Study:
    """All that a report tells."""

    inputs: Inputs
    stage_one: StageOne
    sample: Sample
    stage_two: pd.DataFrame
    events: EventStudy
    tables: dict[str, pd.DataFrame]
    """average_lift, twfe_weights, rivals, influential, vif, negative_controls, specification_curve, out_of_sample,
    importance"""
    verdict: Verdict


def study(inputs: Inputs, first_stage: StageOne, sample: Sample, maps: Iterable[tuple[str, np.ndarray]]) -> Study:
    """Everything after stage 1. maps: E of videos whose maps were saved, for the negative controls."""
    panel, treated = inputs.panel, inputs.treated
    second = pd.concat(
        [stage_two(sample, inputs.draws, inputs.seed), both_stages(panel, treated, sample, inputs.draws, inputs.seed)],
        ignore_index=True,
    )
    events = event_study(first_stage.weeks)
    mistaken = mistaken_scores(treated.videos, maps, inputs.seed)
    if inputs.placebo is not None:
        mistaken[RANDOM] = inputs.placebo
    averages, weights = average_lifts(panel, treated)
    mean = _mean_lift(sample.lift)
    averages = pd.concat([pd.DataFrame([mean], columns=averages.columns), averages], ignore_index=True)
    predicted, importance = out_of_sample(sample, inputs.seed)
    tables = {
        "average_lift": averages,
        "twfe_weights": weights,
        "rivals": rivals(sample, inputs.draws, inputs.seed),
        "influential": influential(sample),
        "vif": vif(sample),
        "negative_controls": negative_controls(sample, mistaken),
        "specification_curve": specification_curve(panel, treated, sample, inputs.rebuilt),
        "out_of_sample": predicted,
        "importance": importance,
    }
    judged = verdict(
        Evidence(
            second,
            (mean[1], mean[3], mean[4]),
            events,
            tables["rivals"],
            tables["negative_controls"],
            tables["specification_curve"],
            tables["influential"],
            predicted,
            f" {inputs.mended.currency}" if inputs.mended.currency else "",
        )
    )
    return Study(inputs, first_stage, sample, second, events, tables, judged)


def _mean_lift(lift: np.ndarray) -> tuple[str, float, float, float, float, float]:
    mean, se, df = lift.mean(), lift.std(ddof=1) / np.sqrt(len(lift)), len(lift) - 1
    reach = stats.t.ppf((1 + LEVEL) / 2, df) * se
    return (
        "mean of the lifts, as published",
        mean,
        se,
        mean - reach,
        mean + reach,
        float(2 * stats.t.sf(abs(mean / se), df)),
    )
