"""What the figures of examined videos say together: whether a model's engagement maps can be trusted.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

SHUFFLED = "shuffled"
"""figure: Spearman of E with that of a model trained on shuffled labels"""
UNRELATED = 0.2
"""Spearman with the map of a model without learned weights: below this E is about what was learned (|rho|)."""
ROUNDING = 1e-3
"""standard deviations of the target: a prediction that moves by less has not moved"""
RESAMPLES = 2000
MIN_VIDEOS = 3
"""for an interval, and for a ranking"""

Interval = dict[str, float | None]


def summed_up(found: Sequence[Mapping[str, float]], others: Sequence[str] = ()) -> dict[str, Any]:
    """Means with 95% over resampled videos; what run.json and faithfulness.json hold.

    found: the figures of each video, as of ``scoring.faithfulness.Examiner``. others: names of its other models.

    videos: how many. curves: ``deletion`` or ``insertion``/INFILL/ORDER -> mean, low and high at every level, in
    standard deviations of the target. gains: by how much E's order is better than another (area between the curves,
    above 0 is better). randomised, shuffled, models, stability: Spearman of E with another map; ``_inside`` the frame;
    ``pe_ranking``: Spearman of the videos' PE scores by E and by the other model's.
    """
    every = pd.DataFrame([dict(figures) for figures in found])
    curves = _curves(every)
    return {
        "videos": len(found),
        "curves": {
            name: {side: [point[side] for point in map(interval, curve.T)] for side in ("mean", "low", "high")}
            for name, curve in curves.items()
        },
        "gains": _gains(curves),
        "randomised": _intervals(every, "randomised/"),
        "randomised_inside": _intervals(every, "randomised_inside/"),
        "shuffled": interval(every[SHUFFLED]) if SHUFFLED in every else None,
        "shuffled_inside": interval(every[f"{SHUFFLED}_inside"]) if SHUFFLED in every else None,
        "stability": _intervals(every, "stability/"),
        "models": [
            {
                "uri": uri,
                "maps": interval(every[f"model/{i}"]),
                "maps_inside": interval(every[f"model_inside/{i}"]),
                "pe_ranking": _ranking(every, f"pe/{i}"),
            }
            for i, uri in enumerate(others)
            if f"model/{i}" in every
        ],
    }


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One test of the maps, in words."""

    claim: str
    outcome: Literal["passed", "failed", "undecided"]
    """by the whole interval; undecided where it reaches across the limit, or where there is none"""
    figure: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.claim}: {self.figure}"


def verdicts(evidence: Mapping[str, Any]) -> list[Verdict]:
    """What can be said of evidence as of ``summed_up``; what was not tested, or only on videos that show nothing, is
    not there."""
    said = {
        "deletion": "taking out what E marks moves the prediction further than taking out {}",
        "insertion": "putting back what E marks restores the prediction sooner than putting back {}",
    }
    others = {"random": "random parts", "centre": "the middle of the picture"}
    found = [
        Verdict(
            f"{said[gain['what']].format(others[gain['over']])} ({gain['infill']})",
            _outcome(gain, 0, np.inf),
            f"gain {in_words(gain)}",
        )
        for gain in evidence["gains"]
        if gain["mean"] is not None
    ]
    for stage, alike in list(evidence["randomised_inside"].items())[-1:]:
        if alike["mean"] is not None:
            claim = "with all weights drawn anew E is another map, so it is about what was learned"
            figure = (
                f"Spearman {in_words(alike)} inside the frame, asked to lie within ±{UNRELATED} with its whole "
                f"interval; with the border {in_words(evidence['randomised'][stage])}"
            )
            found.append(Verdict(claim, _outcome(alike, -UNRELATED, UNRELATED), figure))
    return found


def _outcome(value: Interval, above: float, below: float) -> Literal["passed", "failed", "undecided"]:
    low, high = value["low"], value["high"]
    if low is None or high is None:
        return "undecided"
    if above < low and high < below:
        return "passed"
    return "failed" if high <= above or below <= low else "undecided"


def in_words(value: Mapping[str, Any]) -> str:
    """An interval as text."""
    low, high = value["low"], value["high"]
    if value["mean"] is None:
        return "unknown"
    return f"{value['mean']:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def interval(values: Any) -> Interval:
    """The mean and its 95% bootstrap interval; no interval of fewer than ``MIN_VIDEOS``."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    low = high = None
    if len(known) >= MIN_VIDEOS:
        drawn = stats.bootstrap((known,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
        low, high = map(float, drawn.confidence_interval)
    return {"mean": float(known.mean()) if len(known) else None, "low": low, "high": high}


def _intervals(every: pd.DataFrame, prefix: str) -> dict[str, Interval]:
    names = [str(name) for name in every.columns if str(name).startswith(prefix)]
    return {name.removeprefix(prefix): interval(every[name]) for name in names}


def _curves(every: pd.DataFrame) -> dict[str, np.ndarray]:
    """Name -> (videos, levels)."""
    levels: dict[str, list[str]] = {}
    for name in map(str, every.columns):
        if name.startswith(("deletion/", "insertion/")):
            levels.setdefault(name.rpartition("/")[0], []).append(name)
    return {name: every[columns].to_numpy(float) for name, columns in levels.items()}


def _gains(curves: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Without the videos whose prediction nothing moves, such as black ones."""
    found = []
    for name, curve in curves.items():
        what, infill, over = name.split("/")
        if over != "E":
            by_e = curves[f"{what}/{infill}/E"]
            further = by_e.mean(axis=1) - curve.mean(axis=1)
            gain = np.where(np.hstack([by_e, curve]).max(axis=1) > ROUNDING, further, np.nan)
            gain = gain if what == "deletion" else -gain
            found.append({"what": what, "infill": infill, "over": over, **interval(gain)})
    return found


def _ranking(every: pd.DataFrame, other: str) -> Interval | None:
    """Spearman of the PE scores by two models, and its interval."""
    if not {"pe/own", other} <= set(every.columns):
        return None
    own, theirs = every[["pe/own", other]].dropna().to_numpy().T
    if len(own) < MIN_VIDEOS or np.ptp(own) == 0 or np.ptp(theirs) == 0:
        return None

    def spearman(a: np.ndarray, b: np.ndarray) -> float:
        return stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0

    drawn = stats.bootstrap((own, theirs), spearman, paired=True, vectorized=False, n_resamples=RESAMPLES,
                            method="percentile", rng=0)  # fmt: skip
    low, high = map(float, drawn.confidence_interval)
    return {"mean": float(spearman(own, theirs)), "low": low, "high": high}
