"""What a study supports, in words for people who buy ads.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
import math
from typing import Any

import pandas as pd
from scipy import stats

from analysis.event_study import EventStudy
from analysis.sample import Sample
from analysis.stage_two import RECOMMENDED, row_of

LEVEL, POWER = 0.95, 0.8
Z = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
"""An effect of Z standard errors is found in eight of ten studies."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """verdict.json. slope: revenue a day between the lowest and the highest PE of the panel."""

    slope: float
    ci_low: float
    ci_high: float
    supported: bool
    """the whole interval lies above 0"""
    text: str
    doubts: list[str]
    """what speaks against it, or against trusting the study"""
    estimator: str
    n: int
    p: float
    smallest_detectable: float
    """the slope that a study of this size and noise finds with a probability of 0.8"""
    n_needed: int | None
    """lifts that it takes to find a slope as large as the estimate with that probability; None where it is 0"""


def verdict(
    sample: Sample,
    stage_two: pd.DataFrame,
    average: tuple[float, float, float],
    events: EventStudy,
    rivals: pd.DataFrame,
    controls: pd.DataFrame,
    curve: pd.DataFrame,
    influential: pd.DataFrame,
    prediction: pd.DataFrame,
    unit: str,
) -> Verdict:
    """average: the mean lift with its interval. unit: of revenue, such as "CNY"; the rest as the modules make it."""
    row = row_of(stage_two, RECOMMENDED, "PE", "PE")
    slope, low, high, se, n = (row[name] for name in ("estimate", "ci_low", "ci_high", "se", "n"))
    supported = bool(low > 0)
    detectable = Z * se
    needed = math.ceil(n * (detectable / slope) ** 2) if slope else None
    between = f"{amount(slope)}{unit} a day (95% interval {amount(low)} to {amount(high)})"
    if supported:
        said = [
            f"In these data, videos whose engagement lands on the product sell more. From the lowest to the highest "
            f"PE-score of the {n} videos, a video's sales lift grows by {between}."
        ]
    elif high < 0:
        said = [
            f"In these data, videos with a higher PE-score sell less: from the lowest to the highest of the {n} videos the "
            f"sales lift falls by {amount(-slope)}{unit} a day (95% interval {amount(-high)} to {amount(-low)})."
        ]
    else:
        said = [
            f"These data do not show that videos with a higher PE-score sell more. From the lowest to the highest PE-score "
            f"of the {n} videos the sales lift differs by {between}, and that interval holds 0."
        ]
    said.append(_average(average, unit))
    said.append(_rivals(rivals))
    said.append("Nobody drew by lot which video a product got: what is said here is what goes together, not what causes it.")
    said.append(_data(slope, detectable, needed, n, supported, unit))
    doubts = _doubts(sample, stage_two, events, controls, curve, influential, prediction, slope, supported)
    return Verdict(
        slope, low, high, supported, " ".join(filter(None, said)), doubts, RECOMMENDED, int(n), row["p"], detectable, needed
    )


def amount(value: float) -> str:
    """Three figures, and no exponent."""
    digits = 0 if abs(value) >= 100 or value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def _average(average: tuple[float, float, float], unit: str) -> str:
    mean, low, high = average
    interval = f"{amount(mean)}{unit} a day on average ({amount(low)} to {amount(high)})"
    if low > 0:
        return f"The videos raised their products' sales by {interval}."
    if high < 0:
        return f"The videos' products sold less after the post: {interval}."
    return f"Over all videos no lift can be shown: {interval}. Some sold more and some less."


def _rivals(rivals: pd.DataFrame) -> str:
    names = {"E": "engagement alone", "P": "the product's time on screen alone"}
    names |= {name: name for name in ("likes", "comments", "shares")}
    told = rivals[rivals["name"].isin(names)]
    telling = [names[r.name] for r in told.itertuples(index=False) if r.p < 1 - LEVEL]  # pyright: ignore
    silent = [names[r.name] for r in told.itertuples(index=False) if r.p >= 1 - LEVEL]  # pyright: ignore
    said = [f"{_listed(silent).capitalize()} did not predict the lift." if silent else ""]
    said.append(f"{_listed(telling).capitalize()} went with it too." if telling else "")
    return " ".join(filter(None, said))


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def _data(slope: float, detectable: float, needed: int | None, n: int, supported: bool, unit: str) -> str:
    size = f"A study of this size and noise finds a difference of {amount(detectable)}{unit} a day in eight of ten cases"
    if supported or needed is None:
        half = math.ceil(n * (2 * detectable / slope) ** 2) if slope else None
        return size + (f"; half the difference found here would need about {half:,} videos." if half else ".")
    return size + f"; one as small as that found here would need about {needed:,} videos with a lift."


def _doubts(
    sample: Sample, stage_two: pd.DataFrame, events: EventStudy, controls: pd.DataFrame, curve: pd.DataFrame,
    influential: pd.DataFrame, prediction: pd.DataFrame, slope: float, supported: bool,
) -> list[str]:  # fmt: skip
    doubts = []
    if events.leads_p < 1 - LEVEL:
        doubts.append(
            f"Products drifted away from their controls before the posts (p = {events.leads_p:.3f}): the lifts may go on "
            "with what had begun earlier."
        )
    for row in controls[controls["score"] != "PE"].itertuples(index=False):
        if row.p < 1 - LEVEL:  # pyright: ignore
            doubts.append(
                f"A score that cannot be about the product, “{row.score}”, predicts the lift beside E, P and ExP "
                f"(p = {row.p:.3f})."
            )
    beside = [c for c in sample.columns() if c == "PE, E, P, ExP"]
    if supported and beside:
        full = row_of(stage_two, RECOMMENDED, beside[0], "PE")
        if full["ci_low"] <= 0:
            doubts.append("Beside E, P and ExP the PE-score no longer predicts the lift: it may stand in for one of them.")
    if supported and len(curve):
        share = float((curve["ci_low"] > 0).mean())
        if share < 0.8:
            doubts.append(f"Only {share:.0%} of {len(curve)} reasonable ways to make this study find a positive difference.")
    top = influential.iloc[0]
    if (top["slope_without"] > 0) != (slope > 0) or top["share"] > 0.5:
        doubts.append(
            f"Video {top['video_id']} alone holds {top['share']:.0%} of the lifts' variance; without it the least-squares "
            f"slope is {amount(top['slope_without'])}. The estimate above is one that a single video cannot carry."
        )
    alone = prediction[(prediction["model"] == "Huber") & (prediction["columns"] == "PE")]
    if supported and len(alone) and alone["srcc"].iloc[0] <= 0:
        doubts.append("For creators that the fit has not seen, the PE-score does not rank the lifts.")
    return doubts
