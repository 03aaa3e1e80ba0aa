"""The average lift by estimators made for treatments that start on different days, beside plain two-way fixed effects.

In weeks: a group a calendar week keeps groups large enough for their errors. Estimators are those of diff-diff.
Kernel code: imports neither Ray nor MLflow.
"""

import warnings
from typing import Any

import diff_diff
import numpy as np
import pandas as pd
import statsmodels.api as sm

from analysis.panel import Panel
from analysis.treatment import Treatment

WEEK = 7


def average_lifts(panel: Panel, treated: Treatment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(estimator, estimate, se, ci_low, ci_high, p), and the weights of two-way fixed effects (Goodman-Bacon 2021):
    (comparison, weight, estimate). Revenue a day.

    Of the week of the post, treated in part, only the days before count.
    """
    frame = weekly_panel(panel, treated)
    names = {"outcome": "revenue", "unit": "product", "time": "week", "first_treat": "first"}
    estimators: dict[str, Any] = {
        "Callaway-Sant'Anna": diff_diff.CallawaySantAnna(),
        "two-stage (Gardner, did2s)": diff_diff.TwoStageDiD(),
        "imputation (Borusyak, Jaravel, Spiess)": diff_diff.ImputationDiD(),
    }
    rows = [_two_way(frame)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weeks that no product can be compared in
        results: list[tuple[str, Any]] = []
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


def weekly_panel(panel: Panel, treated: Treatment) -> pd.DataFrame:
    """product, week (from 1), revenue (a day, beside the controls' mean), first (the first week that is treated on
    all its days, 0: never), treated; one row a product and week."""
    weeks, rows = len(panel.days) // WEEK, np.concatenate([treated.row, treated.controls])
    # less the controls' mean of each day, so that a week of fewer days is not one of other weekdays
    daily = panel.revenue[rows] - panel.revenue[treated.controls].mean(axis=0)
    first = np.concatenate([treated.first, np.full(len(treated.controls), len(panel.days))])
    whole = -(-first // WEEK)  # the first week that is treated on all its days
    days = np.arange(weeks * WEEK)
    counted = (days < first[:, None]) | (days >= whole[:, None] * WEEK)
    by_week = (len(rows), weeks, WEEK)
    means = daily[:, : weeks * WEEK].reshape(by_week).mean(axis=2, where=counted.reshape(by_week))
    frame = pd.DataFrame(
        {
            "product": np.repeat(np.arange(len(rows)), weeks),
            "week": np.tile(np.arange(1, weeks + 1), len(rows)),
            "revenue": means.ravel(),
            "first": np.repeat(np.where(whole < weeks, whole + 1, 0), weeks),
        }
    )
    frame["treated"] = ((frame["first"] > 0) & (frame["week"] >= frame["first"])).astype(float)
    return frame


def _two_way(frame: pd.DataFrame) -> tuple[str, float, float, float, float, float]:
    """Fixed effects of product and week taken out of a balanced panel by its means; errors clustered by product."""
    columns = frame[["revenue", "treated"]]
    means = [columns.groupby(frame[by]).transform("mean") for by in ("product", "week")]
    within = columns - means[0] - means[1] + columns.mean()
    fitted = sm.OLS(within["revenue"], within[["treated"]]).fit(
        cov_type="cluster", cov_kwds={"groups": frame["product"].to_numpy()}, use_t=True
    )
    low, high = fitted.conf_int().loc["treated"]
    return (
        "two-way fixed effects", fitted.params["treated"], fitted.bse["treated"], low, high, fitted.pvalues["treated"]
    )  # fmt: skip
