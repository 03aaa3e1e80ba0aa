"""Sales tables to a panel of days: rebuilt from rolling sums, gaps closed, all of it counted; and who is treated."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.panel import Mended, Panel, daily_panel
from analysis.rebuild import REBUILDS, WINDOW, denton_cholette, published, search_weighted
from analysis.treatment import treatment
from catalog.errors import Refused
from catalog.tables import read_sales

START = date(2025, 1, 1)


def rolling(days: np.ndarray) -> np.ndarray:
    """(N, T + 29) days -> (N, T) sums of 30."""
    return np.lib.stride_tricks.sliding_window_view(days, WINDOW, axis=1).sum(axis=2)


def test_days_are_rebuilt_as_published():
    sums = np.concatenate([np.full(30, 300.0), [310.0, 305.0], np.full(30, 305.0)])[None]
    days = published(sums)[0]
    assert days[:30] == pytest.approx(10)
    assert days[30] == pytest.approx(310 - 300 + 10)
    assert days[31] == pytest.approx(305 - 310 + 10)
    assert days[32] == pytest.approx(10)
    assert days[60] == pytest.approx(0 + days[30])  # what was wrong stays wrong every 30 days


@pytest.mark.parametrize("name", REBUILDS)
def test_steady_sales_are_rebuilt_exactly(name: str):
    assert REBUILDS[name](np.full((2, 90), 150.0), None) == pytest.approx(5)


def test_the_first_month_is_shared_by_searches():
    search = np.ones((1, 90))
    search[0, 0] = 31
    days = search_weighted(np.full((1, 90), 600.0), search)[0]
    assert days[0] == pytest.approx(310)
    assert days[1] == pytest.approx(10)
    assert days[30] == pytest.approx(310)


def test_denton_cholette_finds_the_smoothest_days_with_these_sums():
    rng = np.random.default_rng(0)
    truth = rng.normal(10, 3, (1, 70 + WINDOW - 1))
    sums = rolling(truth)
    found = denton_cholette(sums)
    # another solution with the same sums, found by least squares on the constraints' null space
    window = np.array([[t <= s < t + WINDOW for s in range(99)] for t in range(70)], float)
    change = np.diff(np.eye(99), axis=0)
    particular = np.linalg.lstsq(window, sums[0], rcond=None)[0]
    free = np.linalg.svd(window)[2][70:].T
    best = particular - free @ np.linalg.lstsq(change @ free, change @ particular, rcond=None)[0]
    assert found[0] == pytest.approx(best[WINDOW - 1 :], abs=1e-6)
    assert (np.diff(best) ** 2).sum() < (np.diff(truth[0]) ** 2).sum()
    assert rolling(found) == pytest.approx(sums[:, WINDOW - 1 :])


def sales(rows: list[dict], tmp_path: Path) -> tuple[pa.Table, str]:
    uri = str(tmp_path / "sales.parquet")
    pq.write_table(pa.Table.from_pylist(rows), uri)
    return read_sales(uri), uri


def series(product: str, values: list[float | None], **more: object) -> list[dict]:
    return [
        {"product_id": product, "date": START + timedelta(days=t), "revenue": value, **more}
        for t, value in enumerate(values)
    ]


def panel_of(rows: list[dict], tmp_path: Path, **options: object) -> tuple[Panel, Mended]:
    table, uri = sales(rows, tmp_path)
    settings = {"rebuild": "published", "covariates": (), "max_gap_days": 3} | options
    return daily_panel(table, uri, **settings)  # pyright: ignore


def test_short_gaps_carry_the_last_day_on_and_long_ones_leave_the_product_out(tmp_path: Path):
    whole = [float(t) for t in range(40)]
    short = [None if t in (5, 6) else float(t) for t in range(40)]
    long = [None if 10 <= t < 14 else float(t) for t in range(40)]
    late = [None, *whole[1:]]
    rows = series("a", whole) + series("b", short) + series("c", long) + series("d", late)
    rows = [row for row in rows if row["revenue"] is not None]
    panel, mended = panel_of(rows, tmp_path)
    assert panel.products.tolist() == ["a", "b"]
    assert panel.revenue[1, 4:8].tolist() == [4, 4, 4, 7]
    assert mended.carried == 2
    assert mended.left_out == {"no revenue on the first day, or none for more than 3 days": ["c", "d"]}


def test_days_without_any_row_are_no_days_of_the_panel(tmp_path: Path):
    rows = [row for row in series("a", [1.0] * 39) + series("b", [2.0] * 39) if row["date"].weekday() != 6]
    panel, mended = panel_of(rows, tmp_path)
    assert mended.absent_days == 39 - len(panel.days) == 5
    assert mended.carried == 0
    assert not np.isin(np.array([START + timedelta(days=4)], "datetime64[D]"), panel.days)[0]  # a Sunday


def test_negative_and_absurd_revenue_is_kept_and_told(tmp_path: Path):
    values = [1.0] * 40
    values[3], values[7] = -5.0, 20_000.0
    panel, mended = panel_of(series("a", values) + series("b", [1.0] * 40), tmp_path)
    assert (mended.negative, mended.absurd) == (1, ["a"])
    assert panel.revenue[0, 3] == -5


def test_products_with_rolling_sums_are_rebuilt_beside_those_with_days(tmp_path: Path):
    rolled = [{**row, "revenue": None, "revenue_30d": 60.0} for row in series("b", [0.0] * 40)]
    daily = [{**row, "revenue_30d": None} for row in series("a", [7.0] * 40)]
    panel, mended = panel_of(daily + rolled, tmp_path)
    assert mended.rebuilt == 1
    assert panel.revenue == pytest.approx(np.array([[7.0] * 40, [2.0] * 40]))


def test_dates_may_be_texts(tmp_path: Path):
    rows = [{**row, "date": row["date"].isoformat()} for row in series("a", [1.0] * 40)]
    panel, _ = panel_of(rows, tmp_path)
    assert panel.days[0] == np.datetime64("2025-01-01")


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (
            series("a", [1.0] * 40, currency="EUR") + series("b", [1.0] * 40, currency="USD"),
            {},
            r"2 currencies \(EUR, USD\)",
        ),
        (series("a", [1.0] * 20), {}, "spans 20 days, at least 30"),
        (series("a", [1.0] * 40), {"covariates": ("weather",)}, "no column weather"),
        (series("a", [1.0] * 40, weather="dry"), {"covariates": ("weather",)}, "column weather holds string"),
        (
            series("a", [None, *[1.0] * 39]) + series("b", [1.0, *[None] * 9, *[1.0] * 30]),
            {},
            "no product has revenue on all days",
        ),
        (series("a", [1.0] * 40) * 2, {}, 'product_id "a" and date .* already given'),
        ([{**row, "revenue": float("inf")} for row in series("a", [1.0] * 40)], {}, "revenue is .*expected a number"),
        ([{**row, "date": "1st of May"} for row in series("a", [1.0] * 40)], {}, "expected a day such as"),
    ],
)
def test_tables_that_cannot_be_a_panel_are_refused(rows: list[dict], options: dict, says: str, tmp_path: Path):
    with pytest.raises(Refused, match=says):
        panel_of(rows, tmp_path, **options)


def videos(*rows: tuple[str, str | None, str | None]) -> pd.DataFrame:
    """(video_id, product_id, day of the post or None)"""
    table = pd.DataFrame(rows, columns=["video_id", "product_id", "posted_at"])
    table["posted_at"] = pd.to_datetime(table["posted_at"], utc=True, format="ISO8601")
    return table.assign(creator_id="c")


def scores(*rows: tuple[str, str | None, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["video_id", "product_id", "status"])
    return table.assign(pe_score=0.1, e_score=0.2, p_score=0.3)


def plain_panel(products: str = "abcdefgh") -> Panel:
    days = np.datetime64("2025-01-01") + np.arange(100)
    return Panel(np.array(list(products)), days, np.ones((len(products), 100)), np.zeros((len(products), 100, 0)), ())


def test_the_first_scored_video_of_a_product_treats_it_from_the_day_after():
    found = treatment(
        plain_panel(),
        videos(
            ("v1", "a", "2025-02-10T23:00"),
            ("v2", "a", "2025-03-01"),
            ("v3", "b", "2024-12-30"),
            ("v4", "b", "2025-02-01"),
            ("v5", "c", "2025-01-03"),
            ("v6", "d", "2025-02-10"),
            ("v7", "nowhere", "2025-02-10"),
            ("v8", "e", "2025-02-11"),
            ("v9", "f", None),
            ("w1", None, "2025-02-10"),
        ),
        scores(
            ("v1", "a", "ok"), ("v2", "a", "ok"), ("v5", "c", "ok"), ("v6", "d", "failed"), ("v7", "nowhere", "ok"),
            ("v8", "z", "ok"), ("stray", "a", "ok"),
        ),
        min_days=10,
    )  # fmt: skip
    assert found.videos["video_id"].tolist() == ["v1"]
    assert found.first.tolist() == [41]  # 2025-02-11
    # b was treated before the panel and g, h never; a, c, d, e within it; when f was is not known
    assert found.controls.tolist() == [1, 6, 7]
    assert found.without_recent_video.tolist() == [6, 7]
    assert {why.split(",")[0]: ids for why, ids in found.left_out.items()} == {
        "product_id given": ["v9"],
        "a later video of a product": ["v2"],
        "its product has no usable series in the sales table": ["v7"],
        "fewer than 10 days of sales before or after the post": ["v5"],
        "its first video has no scores": ["v6"],
        "scored for another product than the videos table names": ["v8"],
        "scored": ["stray"],
    }


def test_a_post_on_the_first_or_the_last_day_has_no_lift():
    table = videos(("v1", "a", "2025-01-01"), ("v2", "b", "2025-04-10"), ("v3", "c", "2025-02-10"))
    every = scores(("v1", "a", "ok"), ("v2", "b", "ok"), ("v3", "c", "not_localised"))
    found = treatment(plain_panel(), table, every, min_days=1 + 1)
    assert found.videos["video_id"].tolist() == ["v3"]
    assert found.left_out == {"fewer than 2 days of sales before or after the post": ["v1", "v2"]}


def test_nothing_treated_and_no_controls_are_refused():
    every = scores(("v1", "a", "ok"))
    with pytest.raises(Refused, match="no product is treated: of 1 products with a dated video, 0 have"):
        treatment(plain_panel(), videos(("v1", "a", "2026-01-01")), every, min_days=5)
    with pytest.raises(Refused, match="1 products can be controls, at least 2"):
        treatment(plain_panel("ab"), videos(("v1", "a", "2025-02-10")), every, min_days=5)


def test_products_not_yet_treated_are_controls_until_they_are():
    table = videos(("v1", "a", "2025-01-20"), ("v2", "b", "2025-02-05"), ("v3", "c", "2025-03-01"))
    found = treatment(plain_panel(), table, scores(("v1", "a", "ok"), ("v2", "b", "ok"), ("v3", "c", "ok")), min_days=5)
    assert found.not_yet_treated(0, 100).tolist() == [2]  # b is treated within 30 days of a
    assert found.not_yet_treated(2, 100).tolist() == []
