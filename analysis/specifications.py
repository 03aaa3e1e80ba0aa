"""The slope of PE under every reasonable choice (specification curve, Simonsohn, Simmons and Nelson 2020).

Kernel code: imports neither Ray nor MLflow.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.lifts import lifts
from analysis.panel import Panel
from analysis.sample import WITH_CONTROLS, Sample
from analysis.stage_one import controls_of, lifts_against
from analysis.stage_two import ESTIMATORS, ROBUST
from analysis.treatment import Pool, Treatment

CHOICES = ("sales", "compared with", "covariates", "E scaled", "columns", "estimator")
_COLUMNS = ("PE", "PE, E, P, ExP", WITH_CONTROLS)


def specification_curve(panel: Panel, treated: Treatment, sample: Sample, rebuilt: Mapping[str, Panel]) -> pd.DataFrame:
    """CHOICES, estimate, ci_low, ci_high, n; one row a specification, by estimate.

    rebuilt: the same panel by other rebuilds of days from rolling sums, by name; empty where days were given.
    """
    stage_one = {
        ("as in the study", str(pool), "with" if with_x else "without"): lifts_against(panel, treated, pool, with_x)
        for pool in Pool
        if pool is not Pool.NO_RECENT_VIDEO or len(treated.without_recent_video) < len(treated.controls)
        for with_x in ((True, False) if panel.names else (False,))
    }
    for name, other in rebuilt.items():
        rows = other.rows(panel.products[treated.row].tolist())
        controls = controls_of(other, other.rows(panel.products[treated.controls].tolist()))
        found = lifts(other.revenue[rows], other.covariates[rows], treated.first, controls)
        stage_one[name, str(Pool.PUBLISHED), "with" if panel.names else "without"] = found.lift
    columns, found = sample.columns(), []
    for choice, lift in stage_one.items():
        known = np.isfinite(lift)
        for scale, pe in (("by video", "PE"), ("not", "PE_raw")):
            if pe in sample.constant:
                continue
            frame = sample.frame.assign(lift=lift, PE=sample.frame[pe])[known]
            for column in _COLUMNS:
                if column not in columns or len(columns[column]) + 2 > len(frame) or frame["PE"].nunique() == 1:
                    continue
                for name in ("OLS, HC3", ROBUST):
                    fitted = ESTIMATORS[name](frame, columns[column])
                    low, high = fitted.conf_int().loc["PE"]
                    found.append((*choice, scale, column, name, fitted.params["PE"], low, high, len(frame)))
    table = pd.DataFrame(found, columns=[*CHOICES, "estimate", "ci_low", "ci_high", "n"])
    return table.sort_values("estimate", kind="stable").reset_index(drop=True)
