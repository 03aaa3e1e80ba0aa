"""Sales week by week around the posts, averaged over the lifts: do products drift apart before they are treated?

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.stage_one import LEADS, week_numbers

LEVEL, POWER = 0.95, 0.8


@dataclasses.dataclass(frozen=True)
class EventStudy:
    """Means over the products with whole weeks; the last week before the post is the reference."""

    table: pd.DataFrame
    """week (-5 to -2, 0 to 7), n, mean, se, ci_low, ci_high"""
    leads_f: float
    """Hotelling's T-squared that all leads are 0, as F"""
    leads_p: float
    leads_n: int
    """products with all leads"""
    detectable: float
    """steady drift in revenue a week that this test would find with a probability of 0.8 (Roth, AER: Insights 2022);
    NaN where it cannot be tested"""


def event_study(weeks: np.ndarray) -> EventStudy:
    """weeks: (B, LEADS + LAGS) as in ``stage_one.StageOne``. Products are independent of one another, weeks are not."""
    n = np.isfinite(weeks).sum(axis=0)
    mean = np.nanmean(np.where(n > 0, weeks, 0), axis=0)
    se = np.nanstd(np.where(n > 1, weeks, 0), axis=0) / np.sqrt(np.maximum(n - 1, 1))
    reach = stats.t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1)) * se
    table = pd.DataFrame(
        {"week": week_numbers(), "n": n, "mean": mean, "se": se, "ci_low": mean - reach, "ci_high": mean + reach}
    )
    leads = weeks[np.isfinite(weeks[:, :LEADS]).all(axis=1), :LEADS]
    count = len(leads)
    if count <= LEADS + 1 or np.linalg.matrix_rank(np.cov(leads.T)) < LEADS:
        return EventStudy(table[n > 1], float("nan"), float("nan"), count, float("nan"))
    precision = np.linalg.inv(np.cov(leads.T) / count)
    scale = (count - LEADS) / (LEADS * (count - 1))
    f = float(scale * leads.mean(axis=0) @ precision @ leads.mean(axis=0))
    drift = week_numbers()[:LEADS] + 1.0
    critical = stats.f.ppf(LEVEL, LEADS, count - LEADS)
    noncentral: Any = optimize.brentq(lambda c: stats.ncf.sf(critical, LEADS, count - LEADS, c) - POWER, 1e-6, 1000)
    detectable = float(np.sqrt(noncentral / (drift @ precision @ drift)))
    return EventStudy(table[n > 1], f, float(stats.f.sf(f, LEADS, count - LEADS)), count, detectable)
