# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)
"""Scores as one self-contained HTML page: what was scored, how it is spread, the best, the worst and all of the videos.

The page fetches nothing and runs its own script only; every text that comes from the tables is escaped.
"""

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from catalog.errors import ErrorCode
from catalog.schemas import Status
from scoring.evidence import in_words, verdicts
from views import timeline
from views.catalogue import ABOUT, catalogue_frame, groups, next_steps, packed_frame, records
from views.numbers import rank_text, score_text, share_text
from views.page import INK, RC, environment, svg
from views.timeline import PER_SECOND, draw_panels

SHOWN_EACH_END = 5
MAX_TABLE_ROWS = 50
"""that the page holds before its script has run, and of failed videos"""
MAX_SCATTER_POINTS = 2000
MAX_ROWS_HELD = 250_000
"""by the page, those with the highest PE: some 12 MB; how fast it stays was measured up to 100,000"""

_TABLE_COLUMNS = [
    "video_id", "product_id", "status", "error_code", "error_message", "error_stage",
    "pe_score", "e_score", "p_score", "e_on_product", "predicted_engagement",
]  # fmt: skip
_ORIGIN = ["model_uri", "model_version", "config_hash", "code_version", "run_id", "scored_at"]


def report_page(
    scores: pa.Table,
    summary: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    videos: pa.Table | None = None,
    products: pa.Table | None = None,
    thumbnails: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
    prefix: str | None = None,
) -> str:
    """The page as HTML text.

    scores: rows of schemas.SCORES, in any order, none of them needed. summary: what run.json holds; None says
    that the job has not finished. config: the job's settings. videos: the videos table, whose columns title,
    creator_id and posted_at are shown where it has them. products: the products table, for categories.
    thumbnails: JPEGs of the videos of ``ends`` by id. links: video_id -> address of the video's own page. prefix: what
    makes an address of any other id; None: they have no page.
    """
    config = dict(config or {})
    scores = ranked(scores)
    frame = catalogue_frame(scores, videos, products)
    failed = _with_status(scores, Status.FAILED)
    failed = failed.sort_by([("error_code", "ascending"), ("video_id", "ascending")])
    failures = failed.slice(0, MAX_TABLE_ROWS).select(_TABLE_COLUMNS).to_pylist()
    outermost = ends(scores)
    both = [*outermost["Highest PE"], *outermost["Lowest PE"]]
    _add_what_is_known(both, frame, thumbnails or {})
    with matplotlib.rc_context(RC):
        _draw_timelines(both, float(config.get("sample_fps") or 1.0))
        distributions, scatter = _distributions(scores), _scatter(scores)
    statuses = {status: _count(scores, "status", status) for status in Status}
    templates = environment(score=score_text, rank=rank_text, share=share_text, in_words=in_words)
    evidence = (summary or {}).get("faithfulness")
    return templates.get_template("report.html").render(
        total=scores.num_rows,
        statuses=statuses,
        obstacle=_obstacle(scores.num_rows, statuses),
        errors=_errors(failed),
        n_failed=statuses[Status.FAILED],
        failures=failures,
        n_located=scores.num_rows - scores["e_on_product"].null_count,
        ends=outermost,
        distributions=distributions,
        scatter=scatter,
        scatter_cap=MAX_SCATTER_POINTS,
        evidence=evidence,
        verdicts=verdicts(evidence) if evidence else [],
        steps=next_steps(frame),
        groups={by: found for by in ("category", "creator_id") if (found := groups(frame, by)) is not None},
        rows=records(frame.head(MAX_TABLE_ROWS)),
        about=[name for name in ABOUT if frame[name].notna().any()],
        categories=sorted(frame["category"].dropna().unique()),
        links=dict(links or {}),
        prefix=prefix,
        held=min(len(frame), MAX_ROWS_HELD),
        packed=Markup(packed_frame(frame.head(MAX_ROWS_HELD), links or {}, prefix)),
        summary=summary,
        scored_at=_first_and_last(scores["scored_at"]),
        models=_distinct(scores, ["model_uri", "model_version"]),
        configs=_distinct(scores, ["config_hash", "code_version", "run_id"]),
        config=config,
        made_at=datetime.datetime.now(datetime.UTC),
    )


def ranked(scores: pa.Table) -> pa.Table:
    """Each video once, highest PE first, those without PE last."""
    columns = once_each(scores.select(_TABLE_COLUMNS + PER_SECOND + _ORIGIN))
    return columns.sort_by([("pe_score", "descending"), ("video_id", "ascending")])


def once_each(scores: pa.Table) -> pa.Table:
    """A job that is stopped can leave a row twice until it goes on; the page counts videos."""
    ids = scores["video_id"].to_numpy()
    _, first = np.unique(ids.astype(str), return_index=True)
    return scores if len(first) == len(ids) else scores.take(pa.array(np.sort(first)))


def _with_status(scores: pa.Table, status: Status) -> pa.Table:
    return scores.filter(pc.equal(scores["status"], status.value))


def _count(scores: pa.Table, column: str, value: str) -> int:
    return pc.sum(pc.equal(scores[column], str(value))).as_py() or 0


def ends(scores: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The ends of the located videos of ``ranked`` scores, each outermost first; no video is at both ends."""
    located = _with_status(scores, Status.OK).select(_TABLE_COLUMNS + PER_SECOND)
    n_worst = min(SHOWN_EACH_END, max(located.num_rows - SHOWN_EACH_END, 0))
    return {
        "Highest PE": located.slice(0, SHOWN_EACH_END).to_pylist(),
        "Lowest PE": located.slice(located.num_rows - n_worst).to_pylist()[::-1],
    }


def _add_what_is_known(rows: Sequence[dict[str, Any]], frame: pd.DataFrame, thumbnails: Mapping[str, bytes]) -> None:
    shown = frame[frame["video_id"].isin([row["video_id"] for row in rows])]
    by_id = {known["video_id"]: known for known in records(shown)}
    for row in rows:
        row |= by_id[row["video_id"]]
        jpeg = thumbnails.get(row["video_id"])
        row["picture"] = jpeg and Markup(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}")


def _errors(failed: pa.Table) -> list[tuple[str, int]]:
    counts = [(code.value, _count(failed, "error_code", code)) for code in ErrorCode]
    return sorted(((code, n) for code, n in counts if n), key=lambda found: (-found[1], found[0]))


def _obstacle(total: int, statuses: Mapping[Status, int]) -> str | None:
    """What stands in the way of any PE at all: a key of ``obstacles`` in words.html."""
    if not total:
        return "empty"
    if statuses[Status.OK]:
        return None
    if statuses[Status.FAILED] == total:
        return "all_failed"
    return "not_localised" if statuses[Status.NOT_LOCALISED] else "no_product"


def _first_and_last(times: pa.ChunkedArray) -> tuple[datetime.datetime, datetime.datetime] | None:
    ends = pc.min_max(times).as_py()
    return None if ends["min"] is None else (ends["min"], ends["max"])


def _distinct(scores: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    groups = scores.group_by(columns).aggregate([])
    return groups.sort_by([(name, "ascending") for name in columns]).to_pylist()


def _distributions(scores: pa.Table) -> list[dict[str, Any]]:
    wanted = {
        "pe_score": ("PE: attention and product together", timeline.PE, score_text),
        "e_score": ("E: attention anywhere", timeline.E, score_text),
        "p_score": ("P: the product’s share of the picture", timeline.P, share_text),
    }
    drawn = []
    for column, (title, colour, text) in wanted.items():
        values = scores[column].drop_null().to_numpy()
        if not len(values):
            continue
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        bins = min(30, 3 + math.isqrt(len(values)))
        span = None if values.min() < values.max() else (0, 2 * values[0] or 1)
        axes.hist(values, bins=bins, range=span, color=colour, edgecolor="white", linewidth=0.8)
        median = float(np.median(values))
        axes.axvline(median, color=INK, linewidth=1.2, linestyle="--")
        axes.set(xlabel=column, ylabel="videos")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if column == "p_score":
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        label = f"{len(values)} videos from {text(values.min())} to {text(values.max())}"
        drawn.append({"title": title, "n": len(values), "median": text(median), "svg": svg(figure, column, label)})
    return drawn


def _scatter(scores: pa.Table) -> Markup | None:
    located = scores.filter(pc.is_valid(scores["e_on_product"]))
    located = located.select(["p_score", "e_on_product", "pe_score"])
    if not located.num_rows:
        return None
    p, e, pe = (column.to_numpy() for column in located.columns)
    if len(p) > MAX_SCATTER_POINTS:
        shown = np.sort(np.random.default_rng(0).choice(len(p), MAX_SCATTER_POINTS, replace=False))
        p, e, pe = p[shown], e[shown], pe[shown]
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    points = axes.scatter(p * 100, e, c=pe, cmap="cividis", s=30, edgecolors=INK, linewidths=0.5)
    axes.set_xlabel("product’s share of the picture, % (p_score)")
    axes.set_ylabel("attention on the product (e_on_product)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.colorbar(points, ax=axes, label="PE (pe_score)", ticks=MaxNLocator(5))
    label = f"{len(p)} videos: attention on the product against its share of the picture, coloured by PE"
    return svg(figure, "scatter", label)


def _draw_timelines(rows: Sequence[dict[str, Any]], samples_per_second: float) -> None:
    """Adds ``timeline`` and ``in_words`` to each row, all on one scale so that they can be compared."""
    drawable = [row for row in rows if all(row[name] for name in PER_SECOND)]
    tops = {name: max((max(row[name]) for row in drawable), default=0) or 1 for name in PER_SECOND}
    for number, row in enumerate(drawable):
        on_screen = np.array(row["p_per_second"]) > 0
        peak = int(np.argmax(row["pe_per_second"])) / samples_per_second
        row["in_words"] = (
            f"Product on screen in {on_screen.sum()} of {len(on_screen)} sampled seconds; PE is highest at {peak:g} s."
        )
        figure = Figure(figsize=(4.4, 2.5))
        draw_panels(figure, {name: row[name] for name in PER_SECOND}, samples_per_second, tops)
        label = f"E, P and PE second by second. {row['in_words']}"
        row["timeline"] = svg(figure, f"timeline{number}", label)
