"""How good a model is on creators it has never seen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from training.models import ModelSpec

BOOTSTRAP_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures on the held-out videos and what they were computed from."""

    figures: dict[str, float]
    """eval/NAME, with eval/NAME_low and eval/NAME_high: the 95% bootstrap interval over videos"""
    video_ids: list[str]
    label: np.ndarray
    """(N,) log1p(target)"""
    prediction: np.ndarray
    """(N,) log1p(target)"""


def srcc(label: np.ndarray, prediction: np.ndarray) -> float:
    return float(np.nan_to_num(stats.spearmanr(label, prediction).statistic)) if np.ptp(prediction) > 0 else 0.0


def plcc(label: np.ndarray, prediction: np.ndarray) -> float:
    constant = np.ptp(label) == 0 or np.ptp(prediction) == 0
    return 0.0 if constant else float(np.corrcoef(label, prediction)[0, 1])


def nmse(label: np.ndarray, prediction: np.ndarray) -> float:
    """Mean squared error over the labels' variance; 1 is what their mean would reach."""
    variance = label.var()
    return float(((label - prediction) ** 2).mean() / variance) if variance > 0 else float("nan")


def mape(label: np.ndarray, prediction: np.ndarray) -> float:
    """Of the counts, not their logarithms; videos with a count of 0 cannot be in it."""
    count, predicted = np.expm1(label), np.expm1(prediction)
    some = count > 0
    return float((np.abs(count - predicted)[some] / count[some]).mean()) if some.any() else float("nan")


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "srcc": srcc,
    "plcc": plcc,
    "r2": lambda label, prediction: 1 - nmse(label, prediction),
    "nmse": nmse,
    "mae": lambda label, prediction: float(np.abs(label - prediction).mean()),
    "mape": mape,
}


def evaluate(
    predictions: list[dict[str, Any]], creators: dict[str, str | None], spec: ModelSpec, seed: int
) -> Evaluation:
    """predictions: video_id, label and prediction in the network's unit. Figures are in log1p(target)."""
    ids = [p["video_id"] for p in predictions]
    label, prediction = (
        np.array([p[key] for p in predictions]) * spec.target_std + spec.target_mean for key in ("label", "prediction")
    )
    figures = {}
    for name, figure in FIGURES.items():
        figures[f"eval/{name}"] = figure(label, prediction)
        interval = stats.bootstrap(
            (label, prediction),
            figure,
            paired=True,
            vectorized=False,
            n_resamples=BOOTSTRAP_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        figures |= {f"eval/{name}_low": float(interval.low), f"eval/{name}_high": float(interval.high)}
    figures["eval/within_creator_srcc"] = within_creator_srcc(label, prediction, [creators.get(i) for i in ids])
    return Evaluation(figures, ids, label, prediction)


def within_creator_srcc(label: np.ndarray, prediction: np.ndarray, creators: list[str | None]) -> float:
    """Mean over creators of the SRCC among their own videos, weighted by their number; creators with fewer than
    three videos say nothing. NaN where no creator has three."""
    values, weights = [], []
    for creator in sorted({c for c in creators if c is not None}):
        own = np.array([c == creator for c in creators])
        if own.sum() >= 3:
            values.append(srcc(label[own], prediction[own]))
            weights.append(own.sum())
    return float(np.average(values, weights=weights)) if values else float("nan")
