"""Daily revenue out of rolling 30-day sums.

R_t is the revenue of the 30 days that end with day t. R_t - R_(t-1) = D_t - D_(t-30) says by how much a day differs
from the one 30 days before, so the sums leave the first 30 days open; each rebuild closes them in its own way.

Kernel code: imports neither Ray nor MLflow.
"""

from collections.abc import Callable

import numpy as np

WINDOW = 30


def published(sums: np.ndarray, search: np.ndarray | None = None) -> np.ndarray:
    """As published: D_t = R_1 / 30 on the first 30 days, then D_t = R_t - R_(t-1) + D_(t-30). (N, T) -> (N, T)."""
    return _rolled_on(sums, np.repeat(sums[:, :1] / WINDOW, WINDOW, axis=1))


def search_weighted(sums: np.ndarray, search: np.ndarray | None = None) -> np.ndarray:
    """The first 30 days share R_30, which is their sum, by how much the product was searched for; then as published.

    search: (N, T) or None, which shares it evenly; so does a product that was never searched for.
    """
    first = np.ones((len(sums), WINDOW)) if search is None else search[:, :WINDOW].clip(0)
    total = first.sum(axis=1, keepdims=True)
    share = np.where(total > 0, first / np.where(total > 0, total, 1), 1 / WINDOW)
    return _rolled_on(sums, share * sums[:, WINDOW - 1 : WINDOW])


def denton_cholette(sums: np.ndarray, search: np.ndarray | None = None) -> np.ndarray:
    """The smoothest days that have these sums: least sum of squared changes from day to day.

    Denton's criterion in Cholette's form (Dagum and Cholette, Benchmarking, Temporal Distribution, and Reconciliation
    Methods for Time Series, 2006, chapter 6), with the rolling sums as constraints.
    """
    days = sums.shape[1]
    unknown = days + WINDOW - 1  # the 29 days before the panel too
    change = np.diff(np.eye(unknown), axis=0)
    window = np.array([[t <= s < t + WINDOW for s in range(unknown)] for t in range(days)], float)
    system = np.block([[change.T @ change, window.T], [window, np.zeros((days, days))]])
    target = np.vstack([np.zeros((unknown, len(sums))), sums.T])
    return np.linalg.solve(system, target)[WINDOW - 1 : unknown].T


def _rolled_on(sums: np.ndarray, first: np.ndarray) -> np.ndarray:
    days = np.empty_like(sums)
    days[:, :WINDOW] = first[:, : sums.shape[1]]
    for t in range(WINDOW, sums.shape[1]):
        days[:, t] = sums[:, t] - sums[:, t - 1] + days[:, t - WINDOW]
    return days


REBUILDS: dict[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "published": published,
    "search_weighted": search_weighted,
    "denton_cholette": denton_cholette,
}
