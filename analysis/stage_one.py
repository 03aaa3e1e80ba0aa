"""Stage 1 of a whole study: every lift with its errors, the permutation over controls, and the days around the post.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.lifts import Controls, Lifts, hac_se, lifts, placebo_lifts, two_way_se
from analysis.panel import Panel
from analysis.treatment import HORIZON_DAYS, MIN_CONTROLS, Pool, Treatment

LEVEL = 0.95
LEADS, LAGS = 4, 8
"""weeks before and after the week of reference, which is the last one before the post"""
WEEK = 7


@dataclasses.dataclass(frozen=True)
class StageOne:
    """B lifts and the weeks around each post."""

    table: pd.DataFrame
    """(B,) the columns of schemas.LIFTS"""
    weeks: np.ndarray
    """(B, LEADS + LAGS) gap to the controls less that of the last week before the post; NaN where a week is not
    whole"""


def joined(parts: Sequence[StageOne], chosen: Sequence[np.ndarray]) -> StageOne:
    """The results of ``stage_one`` for disjoint sets of treated products as one, in the order of the products."""
    order = np.argsort(np.concatenate(chosen))
    table = pd.concat([part.table for part in parts], ignore_index=True)
    weeks = np.concatenate([part.weeks for part in parts])
    return StageOne(table.iloc[order].reset_index(drop=True), weeks[order])


def week_numbers() -> np.ndarray:
    """Of the columns of ``StageOne.weeks``: -5, ..., -2, 0, 1, ...; week -1 is the reference."""
    return np.r_[np.arange(-LEADS - 1, -1), np.arange(LAGS)]


def controls_of(panel: Panel, rows: np.ndarray) -> Controls:
    return Controls(panel.revenue[rows], panel.covariates[rows])


def stage_one(panel: Panel, treated: Treatment, chosen: np.ndarray | None = None) -> StageOne:
    """All lifts, or those of the treated products ``chosen``, against the published pool of controls."""
    chosen = np.arange(len(treated.row)) if chosen is None else chosen
    controls, first = controls_of(panel, treated.controls), treated.first[chosen]
    y, x = panel.revenue[treated.row[chosen]], panel.covariates[treated.row[chosen]]
    found = lifts(y, x, first, controls)
    errors = hac_se(found, first)
    two_way = np.array([two_way_se(y[i], x[i], first[i], found, i, controls) for i in range(len(first))])
    ratio = np.abs(found.lift) / errors
    p, critical, pretrend = (np.empty(len(first)) for _ in range(3))
    weeks = _weeks(found, first)
    for day in np.unique(first):
        here = np.flatnonzero(first == day)
        by_chance = placebo_lifts(int(day), controls)
        days = np.full(len(controls), day)
        placebo = np.sort(np.abs(by_chance.lift) / hac_se(by_chance, days))
        p[here] = _permutation_p(placebo, ratio[here])
        critical[here] = np.quantile(placebo, LEVEL, method="higher")
        pretrend[here] = _permutation_p(np.sort(_pretrend(by_chance, days)), _pretrend(found, first)[here])
    published = treated.videos.iloc[chosen]
    clusters = min(len(controls) + 1, len(panel.days))
    table = pd.DataFrame(
        {
            "video_id": published["video_id"].to_numpy(),
            "product_id": published["product_id"].to_numpy(),
            "post_day": published["post_day"].to_numpy(),
            "lift": found.lift,
            "se": two_way,
            "p_cluster": 2 * stats.t.sf(np.abs(found.lift) / two_way, clusters - 1),
            "se_hac": errors,
            "p_permutation": p,
            "ci_low": found.lift - critical * errors,
            "ci_high": found.lift + critical * errors,
            "n_controls": len(controls),
            "n_pre": first,
            "n_post": len(panel.days) - first,
            "pretrend_p": pretrend,
        }
    )
    return StageOne(table, weeks)


def lifts_against(panel: Panel, treated: Treatment, pool: Pool, covariates: bool = True) -> np.ndarray:
    """(B,) lifts against another pool of controls; NaN where fewer than two are left.

    Those not yet treated are compared until 30 days after the post, before any of them is treated itself.
    """
    x = panel.covariates if covariates else panel.covariates[..., :0]
    if pool is not Pool.NOT_YET_TREATED:
        rows = treated.controls if pool is Pool.PUBLISHED else treated.without_recent_video
        if len(rows) < MIN_CONTROLS:
            return np.full(len(treated.row), np.nan)
        return lifts(
            panel.revenue[treated.row], x[treated.row], treated.first, Controls(panel.revenue[rows], x[rows])
        ).lift
    found = np.full(len(treated.row), np.nan)
    for i, (row, first) in enumerate(zip(treated.row, treated.first, strict=True)):
        rows, days = treated.not_yet_treated(i, len(panel.days)), slice(0, first + HORIZON_DAYS)
        if len(rows) >= MIN_CONTROLS:
            controls = Controls(panel.revenue[rows, days], x[rows, days])
            found[i] = lifts(panel.revenue[[row], days], x[[row], days], np.array([first]), controls).lift[0]
    return found


def _permutation_p(by_chance: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Share of the sorted placebo statistics, and of the found one itself, that are as large."""
    larger = len(by_chance) - np.searchsorted(by_chance, found, side="left")
    return (1 + larger) / (1 + len(by_chance))


def _weeks(found: Lifts, first: np.ndarray) -> np.ndarray:
    means = np.stack([_week_mean(found, first, week) for week in week_numbers()], axis=1)
    return means - _week_mean(found, first, -1)[:, None]


def _week_mean(found: Lifts, first: np.ndarray, week: int) -> np.ndarray:
    days = first[:, None] + week * WEEK + np.arange(WEEK)
    inside = (days >= 0) & (days < found.gap.shape[1])
    picked = np.take_along_axis(found.gap, days.clip(0, found.gap.shape[1] - 1), axis=1)
    return np.where(inside.all(axis=1), picked.mean(axis=1), np.nan)


def _pretrend(found: Lifts, first: np.ndarray) -> np.ndarray:
    """Mean squared lead over the variance of the days before the post: large where products drift before it."""
    leads = _weeks(found, first)[:, :LEADS]
    before = np.arange(found.gap.shape[1]) < first[:, None]
    spread = np.var(found.gap, axis=1, where=before)
    known = np.isfinite(leads)
    squares = (np.where(known, leads, 0) ** 2).sum(axis=1) / known.sum(axis=1).clip(1)
    return squares / np.where(spread > 0, spread, 1)
