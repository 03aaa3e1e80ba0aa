"""Stage 1: the sales lift of every video, a two-way fixed-effects difference-in-differences of its product.

    revenue[j, t] = lift * treated[j] * post[t] + product[j] + day[t] + x[j, t] . g

Each regression has one treated product and the same N controls, so all of them share the controls' sums. With both
fixed effects taken out (Frisch-Waugh-Lovell) a lift costs T * K operations, and the lift of every control as if it
had been treated on that day, the permutation, costs one matrix product.

With one treated product its own residuals sum to zero before and after the post, so an error clustered by product
leaves its noise out altogether (MacKinnon and Webb, Econometrics Journal 2018; Conley and Taber, REStat 2011).
``hac_se`` counts it, and the permutation says how large such a ratio becomes by chance.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses

import numpy as np

COLLINEAR = 1e-10
"""Smallest eigenvalue of the covariates' correlations, of the largest, that counts."""


class Controls:
    """N control products on T days: revenue (N, T) and covariates (N, T, K), centred by product, and their sums."""

    def __init__(self, revenue: np.ndarray, covariates: np.ndarray):
        self.y, self.x = centred(revenue), centred(covariates)
        self.y_sum, self.x_sum = self.y.sum(axis=0), self.x.sum(axis=0)
        self.xx, self.xy = np.einsum("ntk,ntl->kl", self.x, self.x), np.einsum("ntk,nt->k", self.x, self.y)

    def __len__(self) -> int:
        return len(self.y)


@dataclasses.dataclass(frozen=True)
class Lifts:
    """B regressions of one treated product each."""

    lift: np.ndarray
    """(B,) revenue a day"""
    slope: np.ndarray
    """(B, K) of the covariates"""
    gap: np.ndarray
    """(B, T) revenue beside the controls' mean, covariates taken out, centred: its mean after less that before is the
    lift"""


def centred(values: np.ndarray) -> np.ndarray:
    """(N, T, ...) less each product's mean over the days."""
    return values - values.mean(axis=1, keepdims=True)


def post_of(first: np.ndarray, days: int) -> np.ndarray:
    """(B,) index of the first day after the post -> (B, T) 0 before it, 1 from it on, centred."""
    post = (np.arange(days) >= np.asarray(first)[:, None]).astype(float)
    return centred(post)


def lifts(revenue: np.ndarray, covariates: np.ndarray, first: np.ndarray, controls: Controls) -> Lifts:
    """Treated products: revenue (B, T), covariates (B, T, K), first (B,) the index of the first day after the post."""
    y, x = centred(revenue), centred(covariates)
    xx = controls.xx + np.einsum("btk,btl->bkl", x, x)
    xy = controls.xy + np.einsum("btk,bt->bk", x, y)
    return _within(y, x, post_of(first, y.shape[1]), controls.y_sum + y, controls.x_sum + x, xx, xy, len(controls) + 1)


def placebo_lifts(first: int, controls: Controls) -> Lifts:
    """Every control as if it had been treated on that day, beside all others: what chance alone makes."""
    q = post_of(np.array([first]), controls.y.shape[1])
    return _within(
        controls.y, controls.x, q, controls.y_sum, controls.x_sum, controls.xx[None], controls.xy[None], len(controls)
    )


def _within(
    y: np.ndarray, x: np.ndarray, q: np.ndarray, y_sum: np.ndarray, x_sum: np.ndarray,
    xx: np.ndarray, xy: np.ndarray, units: int,
) -> Lifts:  # fmt: skip
    """y, x: of the treated ones, centred. Sums are over all ``units``, the treated one included."""
    y_mean, x_mean = y_sum / units, x_sum / units
    whole, xx = xx, xx - units * np.einsum("...tk,...tl->...kl", x_mean, x_mean)
    xy = xy - units * np.einsum("...tk,...t->...k", x_mean, y_mean)
    dx = np.einsum("bt,btk->bk", q, x - x_mean) if len(q) == len(y) else (x - x_mean).transpose(0, 2, 1) @ q[0]
    dy = ((y - y_mean) * q).sum(axis=1)
    dd = (1 - 1 / units) * (q**2).sum(axis=1)
    on_x = _solved(xx, dx, whole)
    lift = (dy - (on_x * xy).sum(axis=1)) / (dd - (on_x * dx).sum(axis=1))
    slope = _solved(xx, xy - dx * lift[:, None], whole)
    own = units / (units - 1)  # beside the others' mean
    gap = own * ((y - y_mean) - np.einsum("btk,bk->bt", x - x_mean, slope))
    return Lifts(lift, slope, gap)


def resampled_lifts(
    revenue: np.ndarray, covariates: np.ndarray, first: np.ndarray, controls: Controls, times: np.ndarray
) -> np.ndarray:
    """``lifts`` with every control counted ``times`` (R, N), each row adding up to N -> (R, B).

    A lift needs inner products over days alone, so all of them come from a few matrix products.
    """
    y, x = centred(revenue), centred(covariates)
    q, units = post_of(first, y.shape[1]), len(controls) + 1
    y_sum, x_sum = times @ controls.y, np.einsum("rn,ntk->rtk", times, controls.x, optimize=True)
    xx = np.einsum("rn,nkl->rkl", times, np.einsum("ntk,ntl->nkl", controls.x, controls.x))
    xy = times @ np.einsum("ntk,nt->nk", controls.x, controls.y)

    def within(total: np.ndarray, own: np.ndarray, a: tuple, b: tuple, letters: str) -> np.ndarray:
        """Sum over units and days of a * b, both less their means over units: (R, B, ...)."""
        (a_sum, a_own), (b_sum, b_own), (i, j, out) = a, b, letters.split(",")
        whole = np.einsum(f"rt{i},rt{j}->r{out}", a_sum, b_sum)[:, None] + own[None]
        whole = whole + np.einsum(f"rt{i},bt{j}->rb{out}", a_sum, b_own, optimize=True)
        whole = whole + np.einsum(f"bt{i},rt{j}->rb{out}", a_own, b_sum, optimize=True)
        return total[:, None] + own[None] - whole / units

    sxx = within(xx, np.einsum("btk,btl->bkl", x, x), (x_sum, x), (x_sum, x), "k,l,kl")
    sxy = within(xy, np.einsum("btk,bt->bk", x, y), (x_sum, x), (y_sum, y), "k,,k")
    dx = (1 - 1 / units) * np.einsum("bt,btk->bk", q, x) - np.einsum("bt,rtk->rbk", q, x_sum, optimize=True) / units
    dy = (1 - 1 / units) * (q * y).sum(axis=1) - y_sum @ q.T / units
    on_x = _solved(sxx, dx, xx[:, None])
    dd = (1 - 1 / units) * (q**2).sum(axis=1)
    return (dy - (on_x * sxy).sum(axis=2)) / (dd - (on_x * dx).sum(axis=2))


def _solved(xx: np.ndarray, right: np.ndarray, before: np.ndarray) -> np.ndarray:
    """xx^-1 right, (..., K, K) and (..., K); a covariate that others explain shares its slope with them.

    before: the same products before the day effects were taken out; a covariate that they explain has no slope.
    """
    squares, whole = np.einsum("...kk->...k", xx), np.einsum("...kk->...k", before)
    size = np.where(squares > COLLINEAR * whole, np.sqrt(squares.clip(0)), np.inf)
    inverse = np.linalg.pinv(xx / size[..., None] / size[..., None, :], rcond=COLLINEAR, hermitian=True)
    return np.einsum("...kl,...l->...k", inverse, right / size) / size


def hac_lags(days: int) -> int:
    """1.3 sqrt(T), Lazarus, Lewis, Stock and Watson (Journal of Business and Economic Statistics 2018)."""
    return int(1.3 * np.sqrt(days))


def hac_se(found: Lifts, first: np.ndarray, lags: int | None = None) -> np.ndarray:
    """(B,) Newey-West error of the difference in means of ``gap``, with T / (T - 2) as statsmodels has it."""
    days = found.gap.shape[1]
    lags = hac_lags(days) if lags is None else lags
    q = post_of(first, days)
    score = q * (found.gap - found.lift[:, None] * q)
    total = (score**2).sum(axis=1)
    for lag in range(1, lags + 1):
        total += 2 * (1 - lag / (lags + 1)) * np.einsum("bt,bt->b", score[:, lag:], score[:, :-lag])
    return np.sqrt(total * days / (days - 2)) / (q**2).sum(axis=1)


def two_way_se(
    revenue: np.ndarray, covariates: np.ndarray, first: int, found: Lifts, i: int, controls: Controls
) -> float:
    """Error of lift ``i`` clustered by product and by day, as published (Cameron, Gelbach and Miller 2011).

    revenue: (T,), covariates: (T, K) of its product. Small-sample factors as fixest and pyfixest have them: fixed
    effects that are nested in a cluster do not count, and the smaller number of clusters G gives G / (G - 1). NaN
    where the difference of variances is negative.
    """
    q = post_of(np.array([first]), len(revenue))[0]
    units, days, k = len(controls) + 1, len(revenue), covariates.shape[1]
    y, x = centred(revenue[None])[0], centred(covariates[None])[0]
    y_mean, x_mean = (controls.y_sum + y) / units, (controls.x_sum + x) / units
    whole = controls.xx + x.T @ x
    d_x = _solved(whole - units * x_mean.T @ x_mean, q @ (x - x_mean), whole)
    residual_d = -q / units - ((controls.x - x_mean) @ d_x if k else 0)
    residual_y = controls.y - y_mean - (controls.x - x_mean) @ found.slope[i] + found.lift[i] * q / units
    own_d = (1 - 1 / units) * q - (x - x_mean) @ d_x
    own_y = y - y_mean - (x - x_mean) @ found.slope[i] - found.lift[i] * (1 - 1 / units) * q
    score, own = residual_d * residual_y, own_d * own_y
    by_product = (score.sum(axis=1) ** 2).sum() + own.sum() ** 2
    by_day = ((score.sum(axis=0) + own) ** 2).sum()
    by_cell = (score**2).sum() + (own**2).sum()
    bread = (1 - 1 / units) * (q**2).sum() - d_x @ (q @ (x - x_mean))
    rows, clusters = units * days, min(units, days)
    factor = (rows - 1) / (rows - k - 2) * clusters / (clusters - 1)
    variance = factor * (by_product + by_day - by_cell) / bread**2
    return float(np.sqrt(variance)) if variance > 0 else float("nan")
