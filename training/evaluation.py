"""How good a model is on creators it has never seen, beside what needs no video at all."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

MIN_VIDEOS_WITHIN = 3
"""of a creator, for the SRCC among his own"""
RESAMPLES, MIN_RESAMPLES = 1000, 200
RESAMPLED_VIDEOS = 10_000_000
"""Resamples times held-out videos, at most, down to MIN_RESAMPLES: what a minute or two can rank."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The videos that a model is judged on."""

    video_ids: list[str]
    creators: list[str | None]
    label: np.ndarray
    """(N,) log1p(target)"""

    @functools.cached_property
    def group(self) -> np.ndarray:
        """(N,) int, the creator's number; a video without a creator is a group of its own."""
        names = [creator if creator is not None else f"\0{i}" for i, creator in enumerate(self.creators)]
        return np.unique(np.array(names), return_inverse=True)[1]

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures on the held-out videos and what they were computed from."""

    figures: dict[str, float]
    """NAME, with NAME_low and NAME_high: the 95% bootstrap interval over creators, NaN where there is none"""
    held_out: HeldOut
    prediction: np.ndarray
    """(N,) log1p(target)"""
    resampled_srcc: np.ndarray
    """(resamples,); of the same resamples for every model with the same held-out videos and seed"""


def srcc(label: np.ndarray, prediction: np.ndarray) -> float:
    constant = np.ptp(label) == 0 or np.ptp(prediction) == 0
    return 0.0 if constant else float(stats.spearmanr(label, prediction).statistic)


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


def evaluate(held_out: HeldOut, prediction: np.ndarray, seed: int) -> Evaluation:
    """prediction: (N,) log1p(target). Intervals resample creators, whose videos are alike, not videos."""
    label, group, groups = held_out.label, held_out.group, held_out.groups
    videos = np.bincount(group)
    by_creator = np.split(np.argsort(group, kind="stable"), np.cumsum(videos)[:-1])
    own = [srcc(label[rows], prediction[rows]) if _ranked(label[rows]) else np.nan for rows in by_creator]
    within, known = np.nan_to_num(np.array(own)), ~np.isnan(own)

    def figures_of(times: np.ndarray) -> dict[str, float]:
        rows = np.repeat(np.arange(len(label)), times[group])
        weights = times * videos * known
        values = {name: figure(label[rows], prediction[rows]) for name, figure in FIGURES.items()}
        values["within_creator_srcc"] = float(np.average(within, weights=weights)) if weights.any() else float("nan")
        return values

    figures = figures_of(np.ones(groups, int))
    random = np.random.default_rng(seed)
    resamples = max(MIN_RESAMPLES, min(RESAMPLES, RESAMPLED_VIDEOS // len(label)))
    drawn = (np.bincount(random.integers(groups, size=groups), minlength=groups) for _ in range(resamples))
    resampled = [figures_of(times) for times in drawn] if groups > 1 else []
    values = {name: np.array([sample[name] for sample in resampled]) for name in figures}
    for name in list(figures):
        figures[f"{name}_low"], figures[f"{name}_high"] = _interval(values[name])
    return Evaluation(figures, held_out, prediction, values["srcc"])


def advantage(better: Evaluation, other: Evaluation) -> tuple[float, float, float]:
    """How much higher the first one's SRCC is on the same videos, with its interval: (difference, low, high)."""
    difference = better.figures["srcc"] - other.figures["srcc"]
    return difference, *_interval(better.resampled_srcc - other.resampled_srcc)


def calibration(evaluation: Evaluation, seed: int, groups: int = 10) -> pd.DataFrame:
    """Held-out videos in ``groups`` of like prediction, the lowest first: videos, predicted and true (means of
    log1p(target)), with the 95% interval of the latter over resampled creators."""
    label, prediction, creator = evaluation.held_out.label, evaluation.prediction, evaluation.held_out.group
    groups = min(groups, len(label))
    decile = np.empty(len(label), int)
    decile[np.argsort(prediction, kind="stable")] = np.arange(len(label)) * groups // len(label)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(MIN_RESAMPLES):
        times = np.bincount(random.integers(creator.max() + 1, size=creator.max() + 1), minlength=creator.max() + 1)
        weight = times[creator].astype(float)
        videos = np.bincount(decile, weight, minlength=groups)
        total = np.bincount(decile, weight * label, minlength=groups)
        drawn.append(np.divide(total, videos, out=np.full(groups, np.nan), where=videos > 0))
    low, high = np.nanquantile(np.array(drawn), (0.025, 0.975), axis=0)
    of = pd.DataFrame({"predicted": prediction, "true": label}).groupby(decile)
    return pd.concat([of.size().rename("videos"), of.mean()], axis=1).assign(true_low=low, true_high=high)


def _ranked(label: np.ndarray) -> bool:
    return len(label) >= MIN_VIDEOS_WITHIN and np.ptp(label) > 0


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the resamples that have a value; NaN where most have none."""
    some = values[np.isfinite(values)]
    if len(some) <= len(values) / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(some, (0.025, 0.975))
    return float(low), float(high)
