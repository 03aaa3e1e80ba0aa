"""Every estimator of jobs.lift beside a published number or another implementation: python -m benchmarks.lift
--parts golden; the table is in docs/lift.md, tests/test_golden_numbers.py holds every row of it.
"""

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import statsmodels.api as sm
from pyfixest.did.estimation import did2s
from pyfixest.estimation.api.feols import feols
from rich.console import Console
from rich.table import Table
from scipy import optimize, stats
from statsmodels.stats.sandwich_covariance import cov_hac_simple

from analysis.lifts import Controls, hac_lags, hac_se, lifts, two_way_se
from analysis.panel import Panel
from analysis.rebuild import WINDOW, denton_cholette
from analysis.robust import huber_fits
from analysis.stage_two import ESTIMATORS
from analysis.staggered import average_lifts, weekly_panel
from analysis.treatment import Treatment

LONGLEY = ["GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR"]
STACKLOSS = ["AIRFLOW", "WATERTEMP", "ACIDCONC"]
NIST = "NIST StRD, Longley, certified"
VENABLES_RIPLEY = "rlm of R's MASS on stackloss, as printed (Venables and Ripley 2002, section 6.5)"
PYFIXEST = "pyfixest"
CREATORS, PRODUCTS, DAYS, TREATED = 9, 40, 70, 12


@dataclasses.dataclass(frozen=True)
class Golden:
    """One figure of an estimator, and what it should be."""

    estimator: str
    figure: str
    source: str
    reference: float
    ours: float
    digits: int = 6
    """significant ones, to which the source prints it"""

    @property
    def agrees(self) -> bool:
        """Are they the same number as far as the source prints it?"""
        return abs(self.ours - self.reference) <= 0.5 * 10.0 ** (
            np.floor(np.log10(abs(self.reference))) + 1 - self.digits
        )


def golden_numbers() -> list[Golden]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Longley's famous collinearity, and of weeks without a comparison
        return [*_stage_one(), *_averages(), *_stage_two(), *_rebuilds()]


def _stage_one() -> Iterator[Golden]:
    panel, treated = small_panel()
    rows = np.r_[0, TREATED:PRODUCTS]
    y, x, first = panel.revenue[rows], panel.covariates[rows], treated.first[:1]
    controls = Controls(y[1:], x[1:])
    found = lifts(y[:1], x[:1], first, controls)
    frame = pd.DataFrame({"y": y.ravel(), "x": x.ravel(), "product": np.repeat(np.arange(len(y)), DAYS)})
    frame["day"] = np.tile(np.arange(DAYS), len(y))
    frame["treated"] = ((frame["product"] == 0) & (frame["day"] >= first[0])).astype(float)
    fixed = feols("y ~ treated + x | product + day", frame, vcov={"CRV1": "product + day"})
    clustered = two_way_se(y[0], x[0], int(first[0]), found, 0, controls)
    yield Golden("lift of one video", "estimate", PYFIXEST, fixed.coef()["treated"], found.lift[0])
    yield Golden("lift of one video", "error by product and day", PYFIXEST, fixed.se()["treated"], float(clustered))
    gap = sm.OLS(found.gap[0], sm.add_constant((np.arange(DAYS) >= first[0]).astype(float))).fit()
    newey_west = cov_hac_simple(gap, nlags=hac_lags(DAYS), use_correction=True)
    reference = float(np.sqrt(newey_west[1, 1]))
    yield Golden("lift of one video", "HAC error", "statsmodels", reference, float(hac_se(found, first)[0]))


def _averages() -> Iterator[Golden]:
    panel, treated = small_panel()
    averages, weights = average_lifts(panel, treated)
    ours, frame = averages.set_index("estimator"), weekly_panel(panel, treated)
    name = "two-way fixed effects"
    fixed = feols("revenue ~ treated | product + week", frame, vcov={"CRV1": "product"})
    yield Golden(name, "estimate", PYFIXEST, fixed.coef()["treated"], ours["estimate"][name])
    theorem = float((weights["weight"] * weights["estimate"]).sum())
    yield Golden(name, "Bacon's weighted sum", "Goodman-Bacon (2021), theorem 1", ours["estimate"][name], theorem)
    two_stage = did2s(
        frame.assign(treated=frame["treated"].astype(bool)), yname="revenue", first_stage="~ 0 | product + week",
        second_stage="~ i(treated, ref=False)", treatment="treated", cluster="product",
    )  # fmt: skip
    estimate = float(two_stage.coef().iloc[0])
    for name, source in (
        ("two-stage (Gardner, did2s)", PYFIXEST),
        ("imputation (Borusyak, Jaravel, Spiess)", "pyfixest's did2s, whose estimate is the same (Gardner 2022)"),
    ):
        yield Golden(name, "estimate", source, estimate, ours["estimate"][name])
    name, source = "Callaway-Sant'Anna", "means by hand (Callaway and Sant'Anna 2021), never-treated controls"
    yield Golden(name, "estimate", source, _callaway_santanna(frame), ours["estimate"][name])


def _callaway_santanna(frame: pd.DataFrame) -> float:
    """ATT(g, t) against the never treated with the week before g as base, averaged over groups' treated weeks."""
    by_week = frame.pivot(index="product", columns="week", values="revenue")
    first = frame.groupby("product")["first"].first()
    never, effects = by_week[first == 0], []
    for group in sorted(set(first) - {0}):
        ours = by_week[first == group]
        change = ours.sub(ours[group - 1], axis=0).mean() - never.sub(never[group - 1], axis=0).mean()
        effects += [(effect, len(ours)) for effect in change.loc[group:]]
    effect, videos = np.transpose(effects)
    return float(np.average(effect, weights=videos))


def _stage_two() -> Iterator[Golden]:
    longley = sm.datasets.longley.load_pandas().data.rename(columns={"TOTEMP": "lift"})
    fitted = ESTIMATORS["OLS, HC1"](longley, LONGLEY)
    yield Golden("OLS", "GNP", NIST, -0.358191792925910e-01, fitted.params["GNP"], 9)
    yield Golden("OLS", "YEAR", NIST, 1829.15146461355, fitted.params["YEAR"], 9)
    yield Golden("OLS", "R²", NIST, 0.995479004577296, fitted.rsquared, 9)
    design = np.column_stack([np.ones(16), longley[LONGLEY]])
    scale = np.abs(design).max(axis=0)
    design = design / scale
    bread = np.linalg.inv(design.T @ design)
    hat = np.diag(design @ bread @ design.T)
    residual = longley["lift"] - design @ bread @ design.T @ longley["lift"]
    for name, squares in (("OLS, HC1", residual**2 * 16 / 9), ("OLS, HC3", (residual / (1 - hat)) ** 2)):
        covariance = bread @ (design.T * squares.to_numpy()) @ design @ bread
        reference = float(np.sqrt(covariance[2, 2])) / scale[2]
        ours = ESTIMATORS[name](longley, LONGLEY).bse["GNP"]
        yield Golden(name, "error of GNP", "the formulas, MacKinnon and White (1985)", reference, ours, 4)
    stackloss = sm.datasets.stackloss.load_pandas().data.rename(columns={"STACKLOSS": "lift"})
    robust = ESTIMATORS["Huber"](stackloss, STACKLOSS)
    for term, printed, digits in (
        ("const", -41.0265, 6), ("AIRFLOW", 0.8294, 4), ("WATERTEMP", 0.9261, 4), ("ACIDCONC", -0.1278, 4)
    ):  # fmt: skip
        yield Golden("Huber", term, VENABLES_RIPLEY, printed, robust.params[term], digits)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"PE": rng.random(80), "se_hac": rng.uniform(0.5, 3, 80), "creator": np.arange(80) % CREATORS})
    frame["lift"] = 3 * frame["PE"] + rng.standard_t(2, 80)
    quick = huber_fits(frame["PE"].to_numpy()[None], frame["lift"].to_numpy()[None])
    exact = sm.RLM(frame["lift"], sm.add_constant(frame[["PE"]])).fit(maxiter=500, tol=1e-12)
    yield Golden("Huber, permutation", "estimate", "statsmodels' RLM", exact.params["PE"], float(quick.slope[0]), 5)
    clustered = feols("lift ~ PE", frame, vcov={"CRV1": "creator"})
    ours = ESTIMATORS["OLS, clustered by creator"](frame, ["PE"]).bse["PE"]
    yield Golden("OLS, clustered by creator", "error", PYFIXEST, clustered.se()["PE"], ours)
    weighted = feols("lift ~ PE", frame.assign(w=frame["se_hac"] ** -2), weights="w")
    ours = ESTIMATORS["1/SE² weights, HC3"](frame, ["PE"]).params["PE"]
    yield Golden("1/SE² weights, HC3", "estimate", PYFIXEST, weighted.coef()["PE"], ours)
    pairs = [
        (frame["lift"][j] - frame["lift"][i]) / (frame["PE"][j] - frame["PE"][i]) for i in range(80) for j in range(i)
    ]
    ours = float(stats.theilslopes(frame["lift"], frame["PE"]).slope)
    yield Golden(
        "Theil-Sen", "estimate", "median of the 3,160 slopes of pairs (Sen 1968)", float(np.median(pairs)), ours
    )


def _rebuilds() -> Iterator[Golden]:
    days = np.random.default_rng(0).normal(10, 3, 39 + WINDOW)
    sums = np.lib.stride_tricks.sliding_window_view(days, WINDOW).sum(axis=1)
    window = np.array([[t <= s < t + WINDOW for s in range(len(days))] for t in range(len(sums))], float)
    found = optimize.minimize(
        lambda d: (np.diff(d) ** 2).sum(), np.full(len(days), days.mean()), method="SLSQP",
        jac=lambda d: 2 * (np.r_[0, np.diff(d)] - np.r_[np.diff(d), 0]),
        constraints={"type": "eq", "fun": lambda d: window @ d - sums, "jac": lambda d: window},
        options={"maxiter": 1000, "ftol": 1e-14},
    )  # fmt: skip
    ours = denton_cholette(sums[None])[0]
    yield Golden("days by Denton-Cholette", "last day", "scipy's SLSQP on its criterion", found.x[-1], ours[-1], 5)


def small_panel() -> tuple[Panel, Treatment]:
    """Treated on several days, with one covariate."""
    rng = np.random.default_rng(0)
    search = rng.normal(50, 5, (PRODUCTS, DAYS))
    revenue = rng.normal(100, 30, (PRODUCTS, 1)) + rng.normal(0, 3, (PRODUCTS, DAYS)) + 0.3 * search
    first = rng.integers(20, 50, TREATED)
    revenue[:TREATED] += rng.normal(6, 2, (TREATED, 1)) * (np.arange(DAYS) >= first[:, None])
    names, days = np.array([f"p{i:02d}" for i in range(PRODUCTS)]), np.datetime64("2025-01-01") + np.arange(DAYS)
    videos = pd.DataFrame({"video_id": names[:TREATED], "product_id": names[:TREATED], "post_day": days[first - 1]})
    controls = np.arange(TREATED, PRODUCTS)
    return (
        Panel(names, days, revenue, search[..., None], ("search_index",)),
        Treatment(videos, np.arange(TREATED), first, controls, controls, {}),
    )


def print_golden(console: Console) -> None:
    table = Table(title="every estimator beside a published number or another implementation")
    for column in ("estimator", "figure", "source", "there", "here", "same to its digits"):
        table.add_column(column)
    for row in golden_numbers():
        shown = [f"{value:.{row.digits}g}" for value in (row.reference, row.ours)]
        table.add_row(row.estimator, row.figure, row.source, *shown, "yes" if row.agrees else "NO")
    console.print(table)
