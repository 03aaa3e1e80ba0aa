"""Stage 2: do the scores predict the lifts? The published six columns, and estimators that one video cannot carry.

Kernel code: imports neither Ray nor MLflow.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.outliers_influence import OLSInfluence, variance_inflation_factor

from analysis.robust import permuted_slope
from analysis.sample import Sample
from catalog.schemas import STAGE_TWO

RECOMMENDED = "Huber, permutation"
"""Of PE alone; chosen by coverage and width of its interval in ``benchmarks.lift``."""
ROBUST = "Huber"
"""The same estimate beside other terms, with textbook errors."""
WINSORISED = 0.01
"""of the lifts at either end"""
LEVEL = 0.95

Fit = Callable[[pd.DataFrame, list[str]], Any]


def _design(frame: pd.DataFrame, terms: list[str]) -> pd.DataFrame:
    return pd.DataFrame(sm.add_constant(frame[terms].astype(float), has_constant="add"))


def _ols(covariance: Literal["HC1", "HC3"]) -> Fit:
    return lambda frame, terms: sm.OLS(frame["lift"], _design(frame, terms)).fit(cov_type=covariance, use_t=True)


def _weighted(frame: pd.DataFrame, terms: list[str]) -> Any:
    return sm.WLS(frame["lift"], _design(frame, terms), weights=(frame["se_hac"] ** -2.0).to_numpy()).fit(
        cov_type="HC3", use_t=True
    )


def _clustered(frame: pd.DataFrame, terms: list[str]) -> Any:
    groups = pd.factorize(frame["creator"])[0]
    fitted = sm.OLS(frame["lift"], _design(frame, terms))
    return fitted.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)


def _winsorised(frame: pd.DataFrame, terms: list[str]) -> Any:
    low, high = frame["lift"].quantile([WINSORISED, 1 - WINSORISED])
    return _ols("HC3")(frame.assign(lift=frame["lift"].clip(low, high)), terms)


def huber(frame: pd.DataFrame, terms: list[str]) -> Any:
    """M-estimator with Huber's psi at 1.345, scale by MAD (Huber 1981), errors of his first proposal (statsmodels
    RLM)."""
    return sm.RLM(frame["lift"], _design(frame, terms), sm.robust.norms.HuberT()).fit(maxiter=200)


ESTIMATORS: dict[str, Fit] = {
    "OLS, HC1": _ols("HC1"),
    "OLS, HC3": _ols("HC3"),
    "OLS, clustered by creator": _clustered,
    "1/SE² weights, HC3": _weighted,
    "winsorised 1%, HC3": _winsorised,
    ROBUST: huber,
}
ROW = tuple(STAGE_TWO.names)


def stage_two(sample: Sample, draws: int, seed: int) -> pd.DataFrame:
    """Every estimator of every column: the columns ROW, one row a term; ``draws`` permutations of single scores."""
    rows: list[dict[str, Any]] = []
    for column, terms in sample.columns().items():
        for name, fit in ESTIMATORS.items():
            if name == "OLS, clustered by creator" and sample.frame["creator"].nunique() < len(terms) + 2:
                continue
            rows += _rows(name, column, fit(sample.frame, terms), len(sample.frame))
    return pd.DataFrame([*rows, *single_scores(sample, draws, seed)], columns=ROW).astype({"r2": float})


def _rows(name: str, column: str, fitted: Any, n: int) -> Iterator[dict[str, Any]]:
    interval = fitted.conf_int(1 - LEVEL)
    for term in fitted.params.index:
        yield {
            "estimator": name, "column": column, "term": term, "estimate": fitted.params[term], "se": fitted.bse[term],
            "ci_low": interval.loc[term, 0], "ci_high": interval.loc[term, 1], "p": fitted.pvalues[term], "n": n,
            "r2": getattr(fitted, "rsquared", None),
        }  # fmt: skip


def single_scores(sample: Sample, draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """Of single scores: Huber's slope with its permutation, Spearman's correlation (Fisher's interval, Bonett and
    Wright 2000) and Theil-Sen's slope."""
    n = len(sample.frame)
    for column, terms in sample.columns().items():
        if len(terms) > 1:
            continue
        values = sample.frame[terms[0]].to_numpy(float)
        rho, p = (float(v) for v in stats.spearmanr(values, sample.lift))  # pyright: ignore
        reach = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt((1 + rho**2 / 2) / (n - 3))
        low, high = np.tanh(np.arctanh(np.clip(rho, -0.999999, 0.999999)) + np.array([-reach, reach]))
        row = {"column": column, "term": terms[0], "n": n}
        figures = permuted_slope(values, sample.lift, draws, seed)
        yield {**row, "estimator": RECOMMENDED, **dict(zip(ROW[3:8], figures, strict=True))}
        yield {**row, "estimator": "Spearman", "estimate": rho, "ci_low": low, "ci_high": high, "p": p}
        slope = stats.theilslopes(sample.lift, values, alpha=LEVEL)
        low, high = slope.low_slope, slope.high_slope
        yield {**row, "estimator": "Theil-Sen", "estimate": slope.slope, "ci_low": low, "ci_high": high}


def row_of(table: pd.DataFrame, estimator: str, column: str, term: str) -> Mapping[str, Any]:
    found = table[(table["estimator"] == estimator) & (table["column"] == column) & (table["term"] == term)]
    return {str(name): value for name, value in found.iloc[0].items()}


def influential(sample: Sample, shown: int = 10) -> pd.DataFrame:
    """The videos without which the OLS slope of PE alone moves most: video_id, product_id, PE, lift, share of the
    lifts' squared deviations, Cook's distance, the slope without it by OLS and by the recommended estimator."""
    frame = sample.frame
    influence = OLSInfluence(sm.OLS(frame["lift"], _design(frame, ["PE"])).fit())
    deviation = (frame["lift"] - frame["lift"].mean()) ** 2
    without = influence.params_not_obsi[:, 1]
    order = np.argsort(-np.abs(np.asarray(influence.dfbetas)[:, 1]), kind="stable")[:shown]
    table = frame[["video_id", "product_id", "PE", "lift"]].assign(
        share=deviation / deviation.sum(), cook=np.asarray(influence.cooks_distance)[0], slope_without=without
    )
    table = table.iloc[order].copy()
    table["huber_without"] = [huber(frame.drop(index=i), ["PE"]).params["PE"] for i in table.index]
    return table


def vif(sample: Sample) -> pd.DataFrame:
    """Variance inflation factor of every term of the columns with more than one: column, term, vif."""
    rows = []
    for column, terms in sample.columns().items():
        if len(terms) > 1:
            design = _design(sample.frame, terms).to_numpy()
            rows += [(column, term, variance_inflation_factor(design, i + 1)) for i, term in enumerate(terms)]
    return pd.DataFrame(rows, columns=["column", "term", "vif"])


def rivals(sample: Sample, draws: int, seed: int) -> pd.DataFrame:
    """What else might predict a lift, each alone and a standard deviation of it: PE, E, P, the counts, the model's own
    prediction. name, estimate, ci_low, ci_high, p (recommended estimator), spearman, spearman_p."""
    rows = []
    for name in ("PE", "E", "P", "likes", "comments", "shares", "predicted_engagement"):
        if name in sample.frame and name not in sample.constant:
            values = np.asarray(stats.zscore(sample.frame[name].to_numpy(float), ddof=1))
            estimate, _, low, high, p = permuted_slope(values, sample.lift, draws, seed)
            rows.append((name, estimate, low, high, p, *stats.spearmanr(values, sample.lift)))
    return pd.DataFrame(rows, columns=["name", "estimate", "ci_low", "ci_high", "p", "spearman", "spearman_p"])
