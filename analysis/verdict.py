"""What a study supports, in words for people who buy ads.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
import math

import pandas as pd
from scipy import stats

from analysis.event_study import EventStudy
from analysis.stage_two import RECOMMENDED, ROBUST, row_of

LEVEL, POWER = 0.95, 0.8
Z_POWER = float(stats.norm.ppf(POWER))
ALPHA = 1 - LEVEL
FEW_SPECIFICATIONS = 0.8
"""A smaller share of specifications that find a positive slope is a doubt."""
HALF = 0.5
ALL_SCORES = "PE, E, P, ExP"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a verdict is made of, as the modules of the study make it."""

    stage_two: pd.DataFrame
    average: tuple[float, float, float]
    """the mean lift and its interval"""
    events: EventStudy
    rivals: pd.DataFrame
    negative_controls: pd.DataFrame
    specification_curve: pd.DataFrame
    influential: pd.DataFrame
    out_of_sample: pd.DataFrame
    unit: str
    """of revenue with a space before it, such as " CNY"; empty where unknown"""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """verdict.json. slope: revenue a day between the lowest and the highest PE of the panel."""

    slope: float
    ci_low: float
    ci_high: float
    supported: bool
    """the whole interval lies above 0"""
    text: str
    """all that is said, in one piece"""
    says: list[str]
    """what the data support"""
    does_not_say: list[str]
    """what they do not"""
    data_needed: str
    doubts: list[str]
    """what speaks against the finding, or against trusting the study"""
    estimator: str
    n: int
    p: float
    smallest_detectable: float
    """the slope that a study of this size and noise finds with a probability of 0.8"""
    n_needed: int | None
    """lifts that it takes to find a slope as large as the estimate with that probability; None where it is 0"""


def verdict(found: Evidence) -> Verdict:
    row = row_of(found.stage_two, RECOMMENDED, "PE", "PE")
    slope, low, high, n = row["estimate"], row["ci_low"], row["ci_high"], int(row["n"])
    # the interval's reach to exclude 0, and what it takes to be beyond that in eight of ten studies
    supported, detectable = bool(low > 0), (high - low) / 2 + Z_POWER * row["se"]
    needed = math.ceil(n * (detectable / slope) ** 2) if slope else None
    says, not_said = _finding(slope, low, high, n, found.unit)
    average_shown, average = _average(found.average, found.unit)
    (says if average_shown else not_said).append(average)
    telling, silent = _rivals(found.rivals)
    says += telling
    not_said += silent
    not_said.append(
        "Nobody drew by lot which video a product got: this is what goes together, not proof of what causes it."
    )
    data = _data(slope, detectable, needed, n, supported, found.unit)
    doubts = _doubts(found, slope, supported)
    return Verdict(
        slope, low, high, supported, " ".join([*says, *not_said, data]), says, not_said, data, doubts, RECOMMENDED, n,
        row["p"], detectable, needed,
    )  # fmt: skip


def amount(value: float) -> str:
    """Three figures, and no exponent."""
    digits = 0 if abs(value) >= 100 or value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def _finding(slope: float, low: float, high: float, n: int, unit: str) -> tuple[list[str], list[str]]:
    between = f"{amount(slope)}{unit} a day (95% interval {amount(low)} to {amount(high)})"
    ends = f"from the lowest to the highest PE-score of these {n} videos, sales lift"
    if low > 0:
        return [
            f"Products sold more, the more of their video's engagement lands on them: {ends} grows by {between}."
        ], []
    if high < 0:
        return [
            f"Products sold less, the more of their video's engagement lands on them: {ends} changes by {between}."
        ], []
    said = "That products sell more where more of the engagement lands on them is not shown: "
    return [], [f"{said}{ends} differs by {between}, which holds 0."]


def _average(average: tuple[float, float, float], unit: str) -> tuple[bool, str]:
    mean, low, high = average
    interval = f"{amount(mean)}{unit} a day ({amount(low)} to {amount(high)})"
    if low > 0:
        return True, f"On average a video raised its product's sales by {interval}."
    if high < 0:
        return True, f"On average a product sold less after its video: {interval}."
    return False, f"That videos as such raise sales is not shown: the average lift is {interval}."


def _rivals(rivals: pd.DataFrame) -> tuple[list[str], list[str]]:
    names = {"E": "engagement anywhere in the picture", "P": "the product's time and size on screen"}
    names |= {name: name for name in ("likes", "comments", "shares")}
    told = rivals[rivals["name"].isin(names)]
    telling, silent = told[told["p"] < ALPHA], told[told["p"] >= ALPHA]
    said = []
    if len(telling):
        own = rivals.loc[rivals["name"] == "PE", "spearman"].iloc[0]
        said.append(
            f"With the lift also went, each alone: {_listed(telling['name'].map(names))}; rank correlations up to "
            f"{telling['spearman'].abs().max():.2f}, where the PE-score has {own:.2f}."
        )
    return said, [f"Not shown to go with the lift: {_listed(silent['name'].map(names))}."] if len(silent) else []


def _listed(names: pd.Series) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _data(slope: float, detectable: float, needed: int | None, n: int, supported: bool, unit: str) -> str:
    size = (
        f"How much data it takes: {n} videos with this much noise show a difference of {amount(detectable)}{unit} a "
        "day in eight of ten studies"
    )
    if supported:
        return f"{size}; half the difference found here takes about {math.ceil(4 * n * (detectable / slope) ** 2):,}."
    return f"{size}; one as small as that found here would need about {needed:,}." if needed else f"{size}."


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _doubts(found: Evidence, slope: float, supported: bool) -> list[str]:
    doubts = []
    if found.events.leads_p < ALPHA:
        doubts.append(
            f"Products drifted away from their controls before the posts ({_p(found.events.leads_p)}): the lifts "
            "may go on with what had begun earlier."
        )
    mistaken = found.negative_controls[found.negative_controls["score"] != "PE"]
    doubts += [
        f"A score that cannot be about the product, “{score}”, predicts the lift beside E, P and ExP ({_p(p)})."
        for score, estimate, p in mistaken[["score", "estimate", "p"]].itertuples(index=False)
        if p < ALPHA and estimate * slope > 0  # the other way round: engagement elsewhere is missing on the product
    ]
    most, held = found.influential.iloc[0], found.influential["share"].max()
    if held > HALF:
        name = found.influential["video_id"].iloc[found.influential["share"].argmax()]
        doubts.append(
            f"Video {name} alone holds {held:.0%} of the lifts' variance. The estimate above gives it little weight; "
            "least squares does not."
        )
    if (most["slope_without"] > 0) != (slope > 0):
        doubts.append(f"Without video {most['video_id']} the least-squares slope has the other sign.")
    if supported:
        doubts += _doubts_of_support(found)
    return doubts


def _doubts_of_support(found: Evidence) -> list[str]:
    doubts = []
    rows = found.stage_two
    beside = rows[(rows["estimator"] == ROBUST) & (rows["column"] == ALL_SCORES) & (rows["term"] == "PE")]
    if (beside["ci_low"] <= 0).any():
        doubts.append("Beside E, P and ExP the PE-score does not predict the lift: it may stand in for one of them.")
    share = float((found.specification_curve["ci_low"] > 0).mean())
    if share < FEW_SPECIFICATIONS:
        doubts.append(
            f"Only {share:.0%} of {len(found.specification_curve)} reasonable ways to make this study find a positive "
            "difference."
        )
    alone = found.out_of_sample[(found.out_of_sample["model"] == "Huber") & (found.out_of_sample["columns"] == "PE")]
    if len(alone) and alone["srcc"].iloc[0] <= 0:
        doubts.append("For creators that the fit has not seen, the PE-score does not rank the lifts.")
    return doubts
