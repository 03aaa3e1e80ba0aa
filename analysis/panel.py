"""The sales table as a balanced panel of daily revenue, with everything that had to be mended counted.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.rebuild import REBUILDS
from catalog.errors import Refused

ABSURD = 1000
"""A day's revenue of more times the product's median day (of those with any) is pointed at."""
MIN_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Panel:
    """N products on the same T days."""

    products: np.ndarray
    """(N,) product ids, sorted"""
    days: np.ndarray
    """(T,) datetime64[D], ascending; days on which no product has a row are not among them"""
    revenue: np.ndarray
    """(N, T) of the day, in the table's currency"""
    covariates: np.ndarray
    """(N, T, K)"""
    names: tuple[str, ...]
    """(K,) the covariates' columns"""

    def rows(self, products: Sequence[str]) -> np.ndarray:
        """Where these products are; all must be in the panel."""
        return np.searchsorted(self.products, np.asarray(products, dtype=self.products.dtype))


@dataclasses.dataclass(frozen=True)
class Mended:
    """What was done to the table, in numbers and names."""

    currency: str | None
    rebuilt: int
    """products whose days come from rolling 30-day sums"""
    carried: int
    """product-days without a value that carry the last one forward"""
    negative: int
    """product-days with negative revenue, as given or as rebuilt; they are kept"""
    absurd: list[str]
    """products with a day of over a thousand times their median day; they are kept"""
    absent_days: int
    """days of the calendar on which no product has a row"""
    left_out: dict[str, list[str]]
    """why -> products"""


def daily_panel(
    sales: pa.Table, uri: str, *, rebuild: str, covariates: Sequence[str], max_gap_days: int
) -> tuple[Panel, Mended]:
    """Daily revenue of every product whose gaps can be closed.

    sales: as ``catalog.tables.read_sales``. rebuild: a key of ``rebuild.REBUILDS``, for products that have only rolling
    30-day sums. A gap of at most ``max_gap_days`` carries the last value forward; products with longer ones, or without
    a value on the first day, are left out. Raises Refused.
    """
    currency = _only_currency(sales, uri)
    for name in covariates:
        if name not in sales.column_names:
            raise Refused(f"{uri} has no column {name}; add it, or name another with --covariates")
        if not (pa.types.is_floating(sales[name].type) or pa.types.is_integer(sales[name].type)):
            raise Refused(f"{uri}: column {name} holds {sales[name].type}, expected numbers; convert it first")
    table = sales.select(["product_id", "date", "revenue", "revenue_30d", *covariates]).to_pandas()
    table["date"] = pd.to_datetime(table["date"])
    calendar = pd.date_range(table["date"].min(), table["date"].max(), freq="D")
    if len(calendar) < MIN_DAYS:
        raise Refused(f"{uri} spans {len(calendar)} days, at least {MIN_DAYS} are needed; give a longer one")
    wide: Callable[[str], pd.DataFrame] = lambda name: (  # noqa: E731
        table.pivot(index="product_id", columns="date", values=name).reindex(columns=calendar).sort_index()
    )
    revenue, sums = wide("revenue"), wide("revenue_30d")
    seen = revenue.notna().any(axis=0) | sums.notna().any(axis=0)
    rolling = revenue.isna().all(axis=1) & sums.notna().any(axis=1)
    # the rolling sums need every calendar day, also one on which nobody wrote
    open_days = seen.to_numpy() | bool(rolling.any())
    given = revenue.where(~rolling, sums).loc[:, open_days]
    extra = [wide(name).loc[:, open_days] for name in covariates]
    filled, carried = _carried(given, max_gap_days)
    extra = [values.ffill(axis=1, limit=max_gap_days).bfill(axis=1, limit=max_gap_days) for values in extra]
    left_out = {
        f"no revenue on the first day, or none for more than {max_gap_days} days": filled.isna().any(axis=1),
        **{f"{n} is not known on all days": v.isna().any(axis=1) for n, v in zip(covariates, extra, strict=True)},
    }
    whole = ~np.logical_or.reduce([gone.to_numpy() for gone in left_out.values()])
    if not whole.any():
        raise Refused(
            f"{uri}: no product has revenue on all days from {calendar[0]:%Y-%m-%d} to {calendar[-1]:%Y-%m-%d}, "
            f"gaps of up to {max_gap_days} days closed; give whole series, or raise --max-gap-days"
        )
    values, rolling = filled.to_numpy(float)[whole], rolling.to_numpy()[whole]
    search = _search(extra, covariates, whole)
    if rolling.any():
        values[rolling] = REBUILDS[rebuild](values[rolling], None if search is None else search[rolling])
    products = filled.index.to_numpy(str)[whole]
    panel = Panel(
        products,
        calendar[open_days].to_numpy("datetime64[D]"),
        values,
        np.stack([v.to_numpy(float)[whole] for v in extra], axis=2) if extra else np.zeros((*values.shape, 0)),
        tuple(covariates),
    )
    usual = np.array([np.median(row[row > 0]) if (row > 0).any() else np.inf for row in values])
    mended = Mended(
        currency,
        int(rolling.sum()),
        int(carried[whole].sum()),
        int((values < 0).sum()),
        products[(np.abs(values) > ABSURD * usual[:, None]).any(axis=1)].tolist(),
        int((~open_days).sum()),
        {why: filled.index[gone].tolist() for why, gone in left_out.items() if gone.any()},
    )
    return panel, mended


def _only_currency(sales: pa.Table, uri: str) -> str | None:
    if "currency" not in sales.column_names:
        return None
    found: list[Any] = sorted({str(c) for c in sales["currency"].unique().to_pylist() if c is not None})
    if len(found) > 1:
        raise Refused(f"{uri} has revenue in {len(found)} currencies ({', '.join(found[:5])}); convert it to one first")
    return found[0] if found else None


def _carried(values: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Gaps of at most ``limit`` days closed, longer ones left whole; and per product how many days."""
    known, days = values.notna().to_numpy(), np.arange(values.shape[1])
    last = np.maximum.accumulate(np.where(known, days, -1), axis=1)
    following = np.minimum.accumulate(np.where(known, days, len(days))[:, ::-1], axis=1)[:, ::-1]
    closed = ~known & (last >= 0) & (following - last - 1 <= limit)
    numbers = values.to_numpy(float)
    numbers = np.where(closed, np.take_along_axis(numbers, last.clip(0), axis=1), numbers)
    filled = pd.DataFrame(numbers, values.index, values.columns)
    return filled, closed.sum(axis=1)


def _search(extra: list[pd.DataFrame], covariates: Sequence[str], whole: np.ndarray) -> np.ndarray | None:
    return extra[covariates.index("search_index")].to_numpy(float)[whole] if "search_index" in covariates else None
