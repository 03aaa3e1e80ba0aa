"""A lift study as one self-contained HTML page, which fetches nothing and runs nothing, and as tables for a paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.specifications import CHOICES
from analysis.stage_two import RECOMMENDED, ROBUST, row_of
from analysis.study import Study
from analysis.verdict import amount
from views.page import INK, RC, environment, svg

_POINT, _STRONG, _QUIET = "#0072B2", "#7A1F5C", "#59636E"
NAMED = 5
"""influential videos that the scatter names"""
SHOWN_LIFTS = 300
STARS = ((0.01, "***"), (0.05, "**"), (0.1, "*"))
AS_PUBLISHED = "OLS, HC1"
_HEADS = {
    "estimate": "Estimate", "ci_low": "95% from", "ci_high": "to", "p": "p", "se": "SE", "n": "n", "r2": "R²",
    "srcc": "SRCC", "vif": "VIF", "term": "Term", "column": "Column", "estimator": "Estimator", "name": "Score",
    "score": "Score", "spearman": "Spearman", "spearman_p": "its p", "video_id": "Video", "product_id": "Product",
    "lift": "Lift", "share": "Share", "cook": "Cook’s distance", "slope_without": "OLS slope without it",
    "huber_without": "Huber without it", "weight": "Weight", "comparison": "Comparison", "model": "Model",
    "columns": "Columns", "loss": "Loss", "week": "Week", "mean": "Mean", "post_day": "Posted",
    "p_cluster": "p, clustered", "se_hac": "HAC SE", "p_permutation": "p, permutation", "n_controls": "Controls",
    "n_pre": "Days before", "n_post": "Days after", "pretrend_p": "p of leads",
}  # fmt: skip


def lift_charts(study: Study) -> dict[str, Markup]:
    """Name -> SVG."""
    with matplotlib.rc_context(RC):
        return {
            "scatter": _scatter(study),
            "forest": _forest(study),
            "lifts": _caterpillar(study),
            "events": _events(study),
            "curve": _curve(study),
        }


def lift_page(study: Study, charts: Mapping[str, Markup], about: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The page as HTML text. charts: of ``lift_charts``. about: finished_at, wall_seconds, code_version, config. notes:
    what was mended."""
    tables = {name: _cells(table) for name, table in lift_tables(study).items()}
    treated, mended = study.inputs.treated, study.inputs.mended
    return (
        environment(amount=amount)
        .get_template("lift.html")
        .render(
            study=study,
            verdict=study.verdict,
            charts=charts,
            tables=tables,
            heads=_HEADS,
            notes=notes,
            left_out={**mended.left_out, **treated.left_out},
            unit=mended.currency or "the table’s currency",
            recommended=RECOMMENDED,
            robust=ROBUST,
            days=study.inputs.panel.days,
            **about,
        )
    )


def lift_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Name -> table, as in tables/."""
    second = study.stage_two
    pe = second[(second["column"] == "PE") & (second["term"] == "PE")]
    return {
        "published_columns": _published(second, AS_PUBLISHED),
        "published_columns_hc3": _published(second, "OLS, HC3"),
        "published_columns_huber": _published(second, ROBUST),
        "pe_slope": pe[["estimator", "estimate", "se", "ci_low", "ci_high", "p", "n", "r2"]],
        "lifts": study.stage_one.table.sort_values("lift", ascending=False, kind="stable"),
        "event_study": study.events.table,
        **study.tables,
    }


def _published(second: pd.DataFrame, estimator: str) -> pd.DataFrame:
    """Terms down, columns across, as a paper has it: estimate, stars and the error in brackets; R2 and n below."""
    rows = second[second["estimator"] == estimator]
    said = {
        (row.term, row.column): f"{amount(row.estimate)}{_stars(row.p)} ({amount(row.se)})"  # pyright: ignore
        for row in rows.itertuples(index=False)
    }
    terms = [term for term in rows["term"].unique() if term != "const"]
    columns = list(rows["column"].unique())
    body = [[term, *(said.get((term, column), "") for column in columns)] for term in [*terms, "const"]]
    first = rows.drop_duplicates("column").set_index("column")
    if first["r2"].notna().any():
        body.append(["R²", *(f"{first['r2'][column]:.2f}" for column in columns)])
    body.append(["n", *(f"{first['n'][column]:,}" for column in columns)])
    return pd.DataFrame(body, columns=["term", *(f"({i}) {column}" for i, column in enumerate(columns, 1))])


def _stars(p: float) -> str:
    return next((stars for limit, stars in STARS if p < limit), "")


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    """Head, rows of texts, and which columns are numbers."""
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table]
    rows = [
        [_text(name, value) for name, value in zip(table.columns, row, strict=True)]
        for row in table.head(SHOWN_LIFTS).itertuples(index=False)
    ]
    return {"head": list(table.columns), "rows": rows, "numeric": numeric, "total": len(table)}


def _text(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, str | int | np.integer):
        return str(value)
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}"
    if name in ("p", "p_cluster", "p_permutation", "pretrend_p", "spearman_p"):
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if name in ("r2", "srcc", "spearman"):
        return f"{value:.2f}"
    return f"{value:.0%}" if name in ("share", "weight") else amount(float(value))


def _scatter(study: Study) -> Markup:
    frame = study.sample.frame
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=_QUIET, linewidth=0.8)
    axes.scatter(frame["PE"], frame["lift"], s=22, color=_POINT, alpha=0.7, edgecolors="white", linewidths=0.4)
    ends = np.array([0.0, 1.0])
    for estimator, colour, style in ((ROBUST, _STRONG, "-"), ("OLS, HC3", _QUIET, "--")):
        const = row_of(study.stage_two, estimator, "PE", "const")["estimate"]
        slope = row_of(study.stage_two, estimator, "PE", "PE")["estimate"]
        axes.plot(ends, const + slope * ends, color=colour, linestyle=style, label=estimator.split(",")[0])
    for row in study.tables["influential"].head(NAMED).itertuples(index=False):
        axes.annotate(
            str(row.video_id), (float(row.PE), float(row.lift)), xytext=(4, 4),  # pyright: ignore
            textcoords="offset points", fontsize=8, parse_math=False,
        )  # fmt: skip
    axes.set(xlabel="PE-score, scaled to 0..1 over these videos", ylabel="sales lift a day")
    axes.legend(frameon=False)
    v = study.verdict
    interval = f"{amount(v.slope)}, {amount(v.ci_low)} to {amount(v.ci_high)}"
    return svg(figure, "scatter", f"Sales lift against PE-score of {v.n} videos; slope {interval}")


def _intervals(axes: Any, table: pd.DataFrame, colours: list[str]) -> None:
    places = np.arange(len(table))[::-1]
    for place, row, colour in zip(places, table.itertuples(index=False), colours, strict=True):
        axes.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=2)
        axes.plot(row.estimate, place, marker="o", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)


def _forest(study: Study) -> Markup:
    table = lift_tables(study)["pe_slope"]
    table = table[table["estimator"] != "Spearman"]
    figure = Figure(figsize=(6.4, 0.6 + 0.34 * len(table)), layout="constrained")
    axes = figure.add_subplot()
    _intervals(axes, table, [_STRONG if name == RECOMMENDED else _POINT for name in table["estimator"]])
    axes.set_yticks(np.arange(len(table))[::-1], table["estimator"].tolist())
    axes.set(xlabel="lift a day from lowest to highest PE-score, 95%")
    said = "; ".join(f"{r.estimator} {amount(float(r.estimate))}" for r in table.itertuples(index=False))  # pyright: ignore
    return svg(figure, "forest", f"Slope of PE by estimator: {said}")


def _caterpillar(study: Study) -> Markup:
    table = study.stage_one.table.sort_values("lift", kind="stable")
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(table))
    clear = (table["ci_low"] > 0) | (table["ci_high"] < 0)
    axes.vlines(places, table["ci_low"], table["ci_high"], color=np.where(clear, _POINT, "#B8C2CC"), linewidth=1)
    axes.plot(places, table["lift"], color=INK, marker=".", markersize=2, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="videos by lift", ylabel="lift a day", xticks=[])
    return svg(figure, "lifts", f"{len(table)} lifts by size with 95% intervals; {int(clear.sum())} do not hold 0")


def _events(study: Study) -> Markup:
    table = study.events.table
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=_QUIET, linewidth=0.8)
    axes.axvline(-0.5, color=_QUIET, linewidth=0.8, linestyle=":")
    axes.vlines(table["week"], table["ci_low"], table["ci_high"], color=_POINT, linewidth=2)
    axes.plot(table["week"], table["mean"], color=_POINT, marker="o", linewidth=0)
    axes.plot(-1, 0, color=INK, marker="o", markerfacecolor="white")
    axes.set(xlabel="week from the day after the post", ylabel="revenue a day beside the controls")
    said = "; ".join(f"{r.week}: {amount(float(r.mean))}" for r in table.itertuples(index=False))  # pyright: ignore
    return svg(figure, "events", f"Mean gap to the controls by week, week -1 is 0: {said}")


def _curve(study: Study) -> Markup:
    table = study.tables["specification_curve"]
    levels = [(choice, level) for choice in CHOICES for level in table[choice].unique() if table[choice].nunique() > 1]
    figure = Figure(figsize=(8.2, 2.6 + 0.2 * len(levels)), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2.4, 0.2 * len(levels) + 0.1])
    places = np.arange(len(table))
    above.vlines(places, table["ci_low"], table["ci_high"], color="#B8C2CC", linewidth=1)
    above.plot(places, table["estimate"], color=_POINT, marker=".", markersize=4, linewidth=0)
    above.axhline(0, color=INK, linewidth=0.8)
    above.set(ylabel="slope of PE")
    for height, (choice, level) in enumerate(reversed(levels)):
        chosen = places[(table[choice] == level).to_numpy()]
        below.plot(chosen, np.full(len(chosen), height), color=_POINT, marker="|", markersize=5, linewidth=0)
    below.set_yticks(range(len(levels)), [f"{choice}: {level}" for choice, level in reversed(levels)], fontsize=8)
    below.set(xlabel="specifications by slope", xticks=[])
    above_zero = int((table["ci_low"] > 0).sum())
    return svg(figure, "curve", f"{len(table)} specifications; {above_zero} have a slope whose interval lies above 0")
