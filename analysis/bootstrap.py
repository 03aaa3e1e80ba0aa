"""Both stages resampled together: stage 2 takes the lifts for known, the bootstrap does not.

Kernel code: imports neither Ray nor MLflow.
"""

import numpy as np
import pandas as pd
from scipy import stats

from analysis.lifts import resampled_lifts
from analysis.panel import Panel
from analysis.sample import Sample
from analysis.stage_one import controls_of
from analysis.stage_two import ROW, huber
from analysis.treatment import Treatment

LEVEL = 0.95
AT_ONCE = 250
"""draws in one matrix product"""
TUNING, TOLERANCE, MAX_ITERATIONS = 1.345, 1e-8, 200


def both_stages(panel: Panel, treated: Treatment, sample: Sample, draws: int, seed: int) -> pd.DataFrame:
    """Rows as of ``stage_two``: the slope of PE alone, with percentile intervals over ``draws``.

    Each draw takes products with their videos and, apart, controls with replacement, and estimates every lift anew
    beside the controls drawn.
    """
    rng = np.random.default_rng(seed)
    controls = controls_of(panel, treated.controls)
    revenue, covariates = panel.revenue[treated.row], panel.covariates[treated.row]
    n, pool = len(sample.frame), len(controls)
    slopes = []
    for size in np.diff(np.r_[np.arange(0, draws, AT_ONCE), draws]):
        times = rng.multinomial(pool, np.full(pool, 1 / pool), size=size).astype(float)
        lift = resampled_lifts(revenue, covariates, treated.first, controls, times)
        rows = rng.integers(n, size=(size, n))
        pe, lift = sample.pe[rows], np.take_along_axis(lift, rows, axis=1)
        slopes.append([slope_of(pe, lift, np.ones_like(pe)), huber_slopes(pe, lift)])
    slopes = np.concatenate(slopes, axis=1).T
    found = np.polyfit(sample.pe, sample.lift, 1)[0], huber(sample.frame, ["PE"]).params["PE"]
    low, high = np.quantile(slopes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    below = (1 + (slopes <= 0).sum(axis=0)) / (draws + 1)
    p = np.minimum(1, 2 * np.minimum(below, (1 + (slopes >= 0).sum(axis=0)) / (draws + 1)))
    names = "OLS, both stages resampled", "Huber, both stages resampled"
    rows = [
        (name, "PE", "PE", found[i], slopes[:, i].std(ddof=1), low[i], high[i], p[i], n, None)
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=list(ROW)).astype({"r2": float})


def slope_of(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) weighted least-squares slopes of y on x, (R, n) each; 0 where x is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = (weights * x**2).sum(axis=1)
    return (weights * x * y).sum(axis=1) / np.where(spread > 0, spread, np.inf)


def huber_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R,) slopes of y on x, (R, n) each, as statsmodels' RLM with HuberT: reweighted until no slope moves, scale by
    the median absolute residual. All draws go together; one after another RLM takes a hundred times as long."""
    weights, slope = np.ones_like(y), np.zeros(len(y))
    for _ in range(MAX_ITERATIONS):
        before, slope = slope, slope_of(x, y, weights)
        rest = y - slope[:, None] * x
        residual = rest - (weights * rest).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        scale = np.median(np.abs(residual), axis=1, keepdims=True) / stats.norm.ppf(0.75)
        weights = 1 / np.maximum(1, np.abs(residual) / np.where(scale > 0, TUNING * scale, np.inf))
        if np.allclose(slope, before, rtol=TOLERANCE, atol=0):
            break
    return slope
