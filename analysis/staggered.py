"""The average lift by estimators made for treatments that start on different days, beside plain two-way fixed effects.

In weeks: a group a calendar week keeps groups large enough for their errors. Estimators are those of diff-diff.
Kernel code: imports neither Ray nor MLflow.
"""

import warnings
from typing import Any

import diff_diff
import numpy as np
import pandas as pd

from analysis.panel import Panel
from analysis.treatment import Treatment

WEEK = 7


def average_lifts(panel: Panel, treated: Treatment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(estimator, estimate, se, ci_low, ci_high, p), and the weights of two-way fixed effects (Goodman-Bacon 2021):
    (comparison, weight, estimate). Revenue a day; the week of the post itself, treated in part, counts as neither."""
    frame = _weekly(panel, treated)
    names = {"outcome": "revenue", "unit": "product", "time": "week", "first_treat": "first"}
    estimators: dict[str, Any] = {
        "Callaway-Sant'Anna": diff_diff.CallawaySantAnna(anticipation=1),
        "two-stage (Gardner, did2s)": diff_diff.TwoStageDiD(anticipation=1),
        "imputation (Borusyak, Jaravel, Spiess)": diff_diff.ImputationDiD(anticipation=1),
    }
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weeks that no product can be compared in
        fixed = diff_diff.TwoWayFixedEffects().fit(
            frame[~frame["partial"]], outcome="revenue", treatment="treated", time="week", unit="product"
        )
        results = [("two-way fixed effects", fixed)]
        results += [(name, estimator.fit(frame, **names)) for name, estimator in estimators.items()]
        for name, found in results:
            rows.append((name, found.att, found.se, *found.conf_int, found.p_value))
        bacon = diff_diff.BaconDecomposition().fit(frame, **names)
    averages = pd.DataFrame(rows, columns=["estimator", "estimate", "se", "ci_low", "ci_high", "p"])
    weights = pd.DataFrame(
        [
            ("treated beside never treated", bacon.total_weight_treated_vs_never, bacon.weighted_avg_treated_vs_never),
            ("earlier beside later", bacon.total_weight_earlier_vs_later, bacon.weighted_avg_earlier_vs_later),
            ("later beside earlier", bacon.total_weight_later_vs_earlier, bacon.weighted_avg_later_vs_earlier),
        ],
        columns=["comparison", "weight", "estimate"],
    )
    return averages, weights


def _weekly(panel: Panel, treated: Treatment) -> pd.DataFrame:
    weeks = len(panel.days) // WEEK
    rows = np.concatenate([treated.row, treated.controls])
    means = panel.revenue[rows, : weeks * WEEK].reshape(len(rows), weeks, WEEK).mean(axis=2)
    whole = -(-treated.first // WEEK)  # the first week that is treated on all its days
    first = np.concatenate([np.where(whole < weeks, whole + 1, 0), np.zeros(len(treated.controls), int)])
    partial = np.concatenate([np.where(treated.first % WEEK > 0, whole, 0), np.zeros(len(treated.controls), int)])
    frame = pd.DataFrame(
        {
            "product": np.repeat(np.arange(len(rows)), weeks),
            "week": np.tile(np.arange(1, weeks + 1), len(rows)),
            "revenue": means.ravel(),
            "first": np.repeat(first, weeks),
        }
    )
    frame["treated"] = ((frame["first"] > 0) & (frame["week"] >= frame["first"])).astype(int)
    frame["partial"] = frame["week"] == np.repeat(partial, weeks)
    return frame
