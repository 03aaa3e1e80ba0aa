"""A catalogue of scores as a table: what is known of every video, packed for a page; its groups; what to do next."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
from scipy.stats import rankdata

from catalog.schemas import Status

TEXTS = (
    "video_id",
    "title",
    "creator_id",
    "category",
    "posted_at",
    "product_id",
    "status",
    "error_code",
    "error_message",
)
NUMBERS = ("pe_score", "percentile", "e_score", "p_score", "e_on_product", "predicted_engagement")
FROM_SCORES = ["video_id", "product_id", "status", "error_code", "error_message", "pe_score", "e_score", "p_score",
               "e_on_product", "predicted_engagement"]  # fmt: skip
ABOUT = ("title", "creator_id", "posted_at", "category")
"""what other tables know of a video"""
MIN_GROUP = 3
"""videos with a PE that a group must have to be compared"""
SHOWN_GROUPS = 10
NAMED = 5


def catalogue_frame(scores: pa.Table, videos: pa.Table | None, products: pa.Table | None) -> pd.DataFrame:
    """One row a video in the scores' order: TEXTS as text or None, NUMBERS as float or NaN."""
    frame = scores.select(FROM_SCORES).to_pandas()
    frame["percentile"] = float("nan")
    known = frame["pe_score"].notna()
    # as percentile(kind="mean"): the share of lower values and half of the equal ones
    frame.loc[known, "percentile"] = (rankdata(frame.loc[known, "pe_score"]) - 0.5) / max(known.sum(), 1) * 100
    frame = _joined(frame, videos, "video_id", ("title", "creator_id", "posted_at"))
    frame = _joined(frame, products, "product_id", ("category",))
    frame["posted_at"] = pd.to_datetime(frame["posted_at"], utc=True).dt.strftime("%Y-%m-%d")
    texts = frame[list(TEXTS)].astype(object)
    frame[list(TEXTS)] = texts.where(texts.notna(), None)
    frame[list(NUMBERS)] = frame[list(NUMBERS)].astype(float)
    return frame


def _joined(frame: pd.DataFrame, table: pa.Table | None, key: str, columns: Sequence[str]) -> pd.DataFrame:
    there = [] if table is None else [name for name in columns if name in table.column_names]
    if table is not None and there:
        more = table.select([key, *there]).to_pandas().drop_duplicates(key)
        frame = frame.merge(more, on=key, how="left")
    for name in columns:
        if name not in there:
            frame[name] = None
    return frame


def packed_frame(frame: pd.DataFrame, links: Mapping[str, str], prefix: str | None) -> str:
    """The frame as deflated JSON in base64, column by column; what ``catalogue.js`` reads.

    Repeated texts are told once: ``values``, and for each row its place in them. links, prefix: as ``report_page``.
    """
    columns: dict[str, Any] = {}
    for name in TEXTS:
        codes, values = pd.factorize(frame[name])
        columns[name] = {"codes": codes.tolist(), "values": [str(value) for value in values]}
    for name in NUMBERS:
        columns[name] = [None if value != value else float(f"{value:.6g}") for value in frame[name].tolist()]
    content = {"rows": len(frame), "columns": columns, "links": links, "prefix": prefix}
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)).decode()


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, None for what is not known."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")  # pyright: ignore[reportReturnType]


def groups(frame: pd.DataFrame, by: str) -> dict[str, Any] | None:
    """Videos by creator or category, highest median PE first; None where there is nothing to compare.

    shown: name, videos, with_pe, pe, e, on_product (medians). left_out: groups of fewer than MIN_GROUP videos with PE.
    """
    found = frame.groupby(by).agg(
        videos=("video_id", "size"),
        with_pe=("pe_score", "count"),
        pe=("pe_score", "median"),
        e=("e_score", "median"),
        on_product=("e_on_product", "median"),
    )
    compared = found[found["with_pe"] >= MIN_GROUP].sort_values("pe", ascending=False, kind="stable")
    if len(compared) < 2:
        return None
    ends = (
        compared
        if len(compared) <= 2 * SHOWN_GROUPS
        else pd.concat([compared[:SHOWN_GROUPS], compared[-SHOWN_GROUPS:]])
    )
    return {
        "shown": records(ends.reset_index(names="name")),
        "compared": len(compared),
        "left_out": len(found) - len(compared),
    }


def next_steps(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What the scores ask for, most urgent first: kind, count, videos (ids to begin with), and what a kind needs."""
    steps: list[dict[str, Any]] = []
    failed = frame[frame["status"] == Status.FAILED]
    for code, n in failed["error_code"].value_counts().items():
        steps.append(_step("failed", failed[failed["error_code"] == code], code=code, count=int(n)))
    lost = frame[frame["status"] == Status.NOT_LOCALISED]
    if len(lost):
        looked = frame[frame["status"].isin([Status.OK, Status.NOT_LOCALISED])]
        products = lost["product_id"].value_counts()
        worst = [(str(name), int(n), int((looked["product_id"] == name).sum())) for name, n in products[:NAMED].items()]
        steps.append(_step("not_localised", lost, products=worst))
    without = frame[frame["status"] == Status.NO_PRODUCT]
    if len(without):
        steps.append(_step("no_product", without))
    located = frame[frame["status"] == Status.OK]
    if len(located) > NAMED:
        half = located[["e_score", "e_on_product", "p_score"]].median()
        strong, weak = located["e_score"] > half["e_score"], located["e_on_product"] < half["e_on_product"]
        steps.append(_step("elsewhere", located[strong & weak].sort_values("e_score", ascending=False)))
        drawn, small = located["e_on_product"] > half["e_on_product"], located["p_score"] < half["p_score"]
        steps.append(_step("small", located[drawn & small].sort_values("e_on_product", ascending=False)))
    return [step for step in steps if step["count"]]


def _step(kind: str, rows: pd.DataFrame, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "count": len(rows), "videos": rows["video_id"][:NAMED].tolist()} | more
