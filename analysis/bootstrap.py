"""Both stages resampled together: stage 2 takes the lifts for known, the bootstrap does not.

Kernel code: imports neither Ray nor MLflow.
"""

import numpy as np
import pandas as pd

from analysis.lifts import lifts
from analysis.panel import Panel
from analysis.sample import Sample
from analysis.stage_one import controls_of
from analysis.stage_two import ROW, huber
from analysis.treatment import Treatment

LEVEL = 0.95


def both_stages(panel: Panel, treated: Treatment, sample: Sample, draws: int, seed: int) -> pd.DataFrame:
    """Rows as of ``stage_two``: the slope of PE alone, with percentile intervals over ``draws``.

    Each draw takes products with their videos and, apart, controls with replacement, and estimates every lift anew
    beside the controls drawn.
    """
    rng = np.random.default_rng(seed)
    controls = controls_of(panel, treated.controls)
    revenue, covariates = panel.revenue[treated.row], panel.covariates[treated.row]
    n, pool = len(sample.frame), len(controls)
    slopes = np.empty((draws, 2))
    for slope in slopes:
        drawn = controls.resampled(rng.multinomial(pool, np.full(pool, 1 / pool)).astype(float))
        lift = lifts(revenue, covariates, treated.first, drawn).lift
        rows = rng.integers(n, size=n)
        while np.ptp(sample.pe[rows]) == 0:
            rows = rng.integers(n, size=n)
        frame = pd.DataFrame({"lift": lift[rows], "PE": sample.pe[rows]})
        slope[:] = np.polyfit(frame["PE"], frame["lift"], 1)[0], huber(frame, ["PE"]).params["PE"]
    found = np.polyfit(sample.pe, sample.lift, 1)[0], huber(sample.frame, ["PE"]).params["PE"]
    low, high = np.quantile(slopes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    below = (1 + (slopes <= 0).sum(axis=0)) / (draws + 1)
    p = np.minimum(1, 2 * np.minimum(below, (1 + (slopes >= 0).sum(axis=0)) / (draws + 1)))
    names = "OLS, both stages resampled", "Huber, both stages resampled"
    rows = [
        (name, "PE", "PE", found[i], slopes[:, i].std(ddof=1), low[i], high[i], p[i], n, None)
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=list(ROW))
