"""Two scoring runs as one self-contained HTML page: where they differ in settings, statuses and scores."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure
from scipy import stats

from analysis.drift import MIN_VIDEOS, SCORES, by_group, drift
from views.catalogue import records
from views.numbers import figure_text, rank_text, score_text
from views.page import INK, RC, environment, svg
from views.report import MAX_SCATTER_POINTS, once_each

RESAMPLES = 2000
SHOWN = 25
SHOWN_GROUPS = 10
COLUMNS = ("video_id", "product_id", "status", "pe_score", *SCORES[1:], "model_uri", "model_version")
"""of schemas.SCORES that a comparison needs"""
GROUPS = {"Category": "category", "Creator": "creator_id"}
NOT_OF_INTEREST = {"output", "retry_failed", "dry_run", "limit", "scores_depend_on", "product_images", "config_hash"}
NOT_OF_INTEREST |= {"order", "order_seed", "costs", "gpu_share", "max_prepare_actors"}
"""settings that say where, not how"""


@dataclasses.dataclass(frozen=True)
class ScoringRun:
    """What jobs.score left in a folder."""

    uri: str
    scores: pa.Table
    """of schemas.SCORES, COLUMNS at least"""
    settings: Mapping[str, Any]


def runs_page(first: ScoringRun, second: ScoringRun, both: pd.DataFrame | None = None) -> str:
    """The page as HTML text. both: as ``joined`` returns it."""
    both = joined(first.scores, second.scores) if both is None else both
    ids = [set(run.scores["video_id"].to_pylist()) for run in (first, second)]
    with_pe = both.dropna(subset=["pe_first", "pe_second"])
    moved = with_pe.assign(change=with_pe["rank_second"] - with_pe["rank_first"])
    moved = moved[moved["change"] != 0].sort_values("change", key=np.abs, ascending=False, kind="stable")
    changed = both[both["status_first"] != both["status_second"]]
    statuses = pd.crosstab(both["status_first"], both["status_second"])
    with matplotlib.rc_context(RC):
        charts = {name: svg(figure, name, str(figure.get_label())) for name, figure in figures(both).items()}
    page = environment(score=score_text, rank=rank_text, figure=figure_text).get_template("runs.html")
    return page.render(
        runs=[
            {"uri": run.uri, "videos": len(its), "models": _models(run)}
            for run, its in zip((first, second), ids, strict=True)
        ],
        only=[len(ids[0] - ids[1]), len(ids[1] - ids[0])],
        settings=_differences(first.settings, second.settings),
        shared=len(both),
        statuses={
            "columns": statuses.columns.tolist(),
            "rows": [(name, row.tolist()) for name, row in statuses.iterrows()],
        },
        drift=records(drift(both)) if len(both) else [],
        groups=[(label, records(table.head(SHOWN_GROUPS)), len(table)) for label, table in grouped(both).items()],
        distributions=charts.get("ecdf"),
        agreement=agreement(with_pe),
        scatter=charts.get("scatter"),
        moved=records(moved.head(SHOWN)),
        n_moved=len(moved),
        changed=records(changed.head(SHOWN)),
        n_changed=len(changed),
        made_at=datetime.datetime.now(datetime.UTC),
    )


def joined(
    first: pa.Table, second: pa.Table, videos: pa.Table | None = None, products: pa.Table | None = None
) -> pd.DataFrame:
    """The videos of both: video_id, product_id; status, pe, the other scores and rank (percentile of PE among the
    videos that have one in both runs) of the ``_first`` and the ``_second``; creator_id of the table of ``videos`` and
    category of ``products``, null without them."""
    columns = ["video_id", "status", "pe_score", *SCORES[1:]]
    tables = [once_each(run.select(columns)).to_pandas() for run in (first, second)]
    both = tables[0].merge(tables[1], on="video_id", suffixes=("_first", "_second")).sort_values("video_id")
    both = both.rename(columns={"pe_score_first": "pe_first", "pe_score_second": "pe_second"})
    product_of = dict(zip(*(second[name].to_pylist() for name in ("video_id", "product_id")), strict=True))
    both["product_id"] = both["video_id"].map(product_of)
    for column, table, key in (("creator_id", videos, "video_id"), ("category", products, "product_id")):
        known = {} if table is None else dict(zip(*(table[name].to_pylist() for name in (key, column)), strict=True))
        both[column] = both[key].map(known)
    comparable = both["pe_first"].notna() & both["pe_second"].notna()
    for side in ("first", "second"):
        ranks = stats.rankdata(both.loc[comparable, f"pe_{side}"])
        both.loc[comparable, f"rank_{side}"] = (ranks - 0.5) / max(comparable.sum(), 1) * 100
    return both.reindex(columns=[*both.columns, *({"rank_first", "rank_second"} - set(both.columns))])


def grouped(both: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Category and Creator -> ``analysis.drift.by_group``."""
    return {label: by_group(both, column) for label, column in GROUPS.items()}


def agreement(with_pe: pd.DataFrame) -> dict[str, float | None] | None:
    """Spearman of the two PE, and 95% over resampled videos; None where there is nothing to correlate."""
    first, second = with_pe["pe_first"].to_numpy(), with_pe["pe_second"].to_numpy()
    if len(first) < MIN_VIDEOS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None

    def spearman(a: np.ndarray, b: np.ndarray) -> float:
        return stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0

    drawn = stats.bootstrap((first, second), spearman, paired=True, vectorized=False, n_resamples=RESAMPLES,
                            method="percentile", rng=0)  # fmt: skip
    low, high = map(float, drawn.confidence_interval)
    return {"rho": float(spearman(first, second)), "low": low, "high": high, "n": len(first)}


def figures(both: pd.DataFrame) -> dict[str, Figure]:
    """``ecdf`` and ``scatter`` of PE in both runs, labelled for readers; none where no video has one in both."""
    with_pe = both.dropna(subset=["pe_first", "pe_second"])
    if with_pe.empty:
        return {}
    with matplotlib.rc_context(RC):
        return {"ecdf": _distributions(with_pe), "scatter": _scatter(with_pe)}


def _models(run: ScoringRun) -> list[str]:
    names = run.scores.group_by(["model_uri", "model_version"]).aggregate([]).to_pylist()
    return sorted(f"{row['model_uri']}, version {row['model_version']}" for row in names if row["model_uri"])


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    def told(settings: Mapping[str, Any], name: str) -> str:
        return str(settings[name]) if name in settings else "not known"

    names = sorted({*first, *second} - NOT_OF_INTEREST)
    return [(n, told(first, n), told(second, n)) for n in names if first.get(n) != second.get(n)]


def _distributions(with_pe: pd.DataFrame) -> Figure:
    label = f"Distribution of PE over {len(with_pe)} videos in the first and the second run"
    figure = Figure(figsize=(4.4, 2.6), layout="constrained", label=label)
    axes = figure.add_subplot()
    for side, colour, line in (("first", INK, "--"), ("second", "#7A1F5C", "-")):
        axes.ecdf(with_pe[f"pe_{side}"], color=colour, linestyle=line, linewidth=1.2, label=f"{side} run")
    axes.set(xlabel="PE", ylabel="Share of videos up to it")
    axes.legend(frameon=False, loc="lower right")
    return figure


def _scatter(with_pe: pd.DataFrame) -> Figure:
    shown = with_pe.sample(min(len(with_pe), MAX_SCATTER_POINTS), random_state=0)
    label = f"PE of {len(shown)} videos in both runs; on the dashed line it is the same"
    figure = Figure(figsize=(4.4, 4.0), layout="constrained", label=label)
    axes = figure.add_subplot()
    top = max(shown["pe_first"].max(), shown["pe_second"].max()) * 1.05 or 1
    axes.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle="--")
    axes.scatter(shown["pe_first"], shown["pe_second"], s=24, color="#7A1F5C", alpha=0.6, linewidths=0)
    axes.set(xlabel="PE in the first run", ylabel="PE in the second run", xlim=(0, top), ylim=(0, top))
    return figure
