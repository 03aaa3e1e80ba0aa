"""Both stages resampled together: stage 2 takes the lifts for known, the bootstrap does not.

Kernel code: imports neither Ray nor MLflow.
"""

import numpy as np
import pandas as pd

from analysis.lifts import resampled_lifts
from analysis.panel import Panel
from analysis.robust import huber_fits, slope_of
from analysis.sample import Sample
from analysis.stage_one import controls_of
from analysis.stage_two import ROW, huber
from analysis.treatment import Treatment

LEVEL = 0.95
AT_ONCE = 250
"""draws in one matrix product"""


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
        slopes.append([slope_of(pe, lift, np.ones_like(pe)), huber_fits(pe, lift).slope])
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
