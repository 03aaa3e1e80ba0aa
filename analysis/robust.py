"""A slope that no single video carries, and an interval for it that keeps its level.

Huber's M-estimator gives extreme lifts less weight. Its textbook errors take the noise to be the same at every PE;
errors that do not (a sandwich) are too small where few videos have a high PE. So each slope is divided by its
sandwich error, and how large that ratio becomes by chance is counted over permutations: exact where the noise does
not depend on PE, and right in large samples where its spread does (DiCiccio and Romano, JASA 2017).

Many regressions are computed at once: R samples of n videos as arrays (R, n).
Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses

import numpy as np
from scipy import stats

TUNING = 1.345
"""of Huber's psi: 95% efficiency where noise is normal"""
TOLERANCE, MAX_ITERATIONS = 1e-7, 200
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Fits:
    """R regressions of y on one x."""

    slope: np.ndarray
    """(R,)"""
    error: np.ndarray
    """(R,) sandwich error of the slope, with each residual divided by 1 - leverage as in HC3"""
    residual: np.ndarray
    """(R, n)"""


def slope_of(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) weighted least-squares slopes of y on x, (R, n) each; 0 where x is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    spread = (weights * x**2).sum(axis=1)
    return (weights * x * y).sum(axis=1) / np.where(spread > 0, spread, np.inf)


def huber_fits(x: np.ndarray, y: np.ndarray, tuning: float = TUNING) -> Fits:
    """Slopes as statsmodels' RLM with HuberT: reweighted until none moves, scale by the median absolute residual.

    x, y: (R, n). Sandwich: Croux, Dhaene and Hoorelbeke, Robust standard errors for robust estimators (2003).
    """
    weights, slope = np.ones_like(y), np.zeros(len(y))
    for _ in range(MAX_ITERATIONS):
        before, slope = slope, slope_of(x, y, weights)
        rest = y - slope[:, None] * x
        residual = rest - (weights * rest).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        scale = np.median(np.abs(residual), axis=1, keepdims=True) / stats.norm.ppf(0.75)
        weights = 1 / np.maximum(1, np.abs(residual) / np.where(scale > 0, tuning * scale, np.inf))
        if (np.abs(slope - before) * np.ptp(x, axis=1) <= TOLERANCE * scale[:, 0]).all():
            break
    inside = (weights == 1).astype(float)
    around = x - (inside * x).sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True).clip(1)
    bread = (inside * around**2).sum(axis=1)
    centred = x - x.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1, keepdims=True)
    leverage = 1 / x.shape[1] + centred**2 / np.where(squares > 0, squares, np.inf)
    score = weights * residual / (1 - leverage).clip(1e-9) * around
    error = np.sqrt((score**2).sum(axis=1)) / np.where(bread > 0, bread, np.nan)
    return Fits(slope, error, residual)


def permuted_slope(x: np.ndarray, y: np.ndarray, draws: int, seed: int) -> tuple[float, float, float, float, float]:
    """Estimate, error, ends of the 95% interval and p of the slope of y on x, (n,) each.

    The residuals are dealt out anew ``draws`` times; the interval takes as many errors to either side as the ratio of
    slope and error reaches in 95% of them.
    """
    found = huber_fits(x[None], y[None])
    slope, error = float(found.slope[0]), float(found.error[0])
    dealt = np.random.default_rng(seed).permuted(np.tile(found.residual, (draws, 1)), axis=1)
    by_chance = huber_fits(np.broadcast_to(x, dealt.shape), dealt)
    ratios = np.abs(by_chance.slope) / by_chance.error
    reach = float(np.quantile(ratios, LEVEL, method="higher")) * error
    p = (1 + int((ratios >= abs(slope) / error).sum())) / (1 + draws)
    return slope, error, slope - reach, slope + reach, p
