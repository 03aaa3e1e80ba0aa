"""How good a model is on creators it has never seen, beside what needs no video at all."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

BOOTSTRAP_RESAMPLES = 1000
MIN_VIDEOS_WITHIN = 3
"""of a creator, for the SRCC among his own"""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The videos that a model is judged on."""

    video_ids: list[str]
    creators: list[str | None]
    label: np.ndarray
    """(N,) log1p(target)"""

    def groups(self) -> list[np.ndarray]:
        """The rows of every creator; a video without a creator is a group of its own."""
        names = [creator if creator is not None else f"\0{i}" for i, creator in enumerate(self.creators)]
        return [np.flatnonzero(np.array(names) == name) for name in sorted(set(names))]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures on the held-out videos and what they were computed from."""

    figures: dict[str, float]
    """NAME, with NAME_low and NAME_high: the 95% bootstrap interval over creators"""
    held_out: HeldOut
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


def evaluate(held_out: HeldOut, prediction: np.ndarray, seed: int) -> Evaluation:
    """prediction: (N,) log1p(target). Intervals resample creators, whose videos are alike, not videos."""
    groups = held_out.groups()

    def over_rows(figure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Sequence[int]], float]:
        def of(sample: Sequence[int]) -> float:
            rows = np.concatenate([groups[i] for i in sample])
            return figure(held_out.label[rows], prediction[rows])

        return of

    own = [srcc(held_out.label[g], prediction[g]) if len(g) >= MIN_VIDEOS_WITHIN else np.nan for g in groups]
    within, videos = np.array(own), np.array([len(g) for g in groups])

    def within_creator(sample: Sequence[int]) -> float:
        chosen = [i for i in sample if not np.isnan(within[i])]
        return float(np.average(within[chosen], weights=videos[chosen])) if chosen else float("nan")

    figures = {}
    for name, figure in (
        {k: over_rows(f) for k, f in FIGURES.items()} | {"within_creator_srcc": within_creator}
    ).items():
        low, high = _interval(figure, len(groups), seed)
        figures |= {name: figure(range(len(groups))), f"{name}_low": low, f"{name}_high": high}
    return Evaluation(figures, held_out, prediction)


def advantage(better: Evaluation, other: Evaluation, seed: int) -> tuple[float, float, float]:
    """How much higher the first one's SRCC is on the same videos, with its interval: (difference, low, high)."""
    groups, label = better.held_out.groups(), better.held_out.label

    def difference(sample: Sequence[int]) -> float:
        rows = np.concatenate([groups[i] for i in sample])
        return srcc(label[rows], better.prediction[rows]) - srcc(label[rows], other.prediction[rows])

    return difference(range(len(groups))), *_interval(difference, len(groups), seed)


def _interval(figure: Callable[[Sequence[int]], float], groups: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of a figure over resampled groups; NaN for fewer than two."""
    if groups < 2:
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # a figure that no resample changes
        interval = stats.bootstrap(
            (np.arange(groups),),
            figure,
            vectorized=False,
            n_resamples=BOOTSTRAP_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)
