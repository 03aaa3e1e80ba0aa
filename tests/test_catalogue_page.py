"""The catalogue's page opened in the browser: search, filters, sorting, pages, links; and what it is made of."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from catalog.errors import Refused
from catalog.schemas import SCORES
from catalog.world import WorldPaths
from jobs.report import ReportConfig, main
from tests.browser import NARROW, WIDE, Opened, opened
from tests.test_overlay import write_scored
from tests.test_report import HOSTILE, MIXED, failed, no_product, not_localised, ok
from views.catalogue import catalogue_frame, groups, next_steps, packed_frame
from views.report import ranked, report_page

MANY = 120


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCORES)


def catalogue(n: int = MANY) -> tuple[pa.Table, pa.Table, pa.Table]:
    """n located videos of rising PE by four creators, one of each other state; the videos and the products table."""
    located = [ok(f"v{k:03}", k / 1000, e_score=0.5 - k / 1000, product_id=f"p{k % 3}") for k in range(1, n + 1)]
    rows = [*located, not_localised("lost"), no_product("talk"), failed("cut"), failed("gone", "not_found", "no file")]
    ids = [row["video_id"] for row in rows]
    titles = [f"Take {video_id}" for video_id in ids]
    creators = [f"creator {k % 4}" for k in range(len(ids))]
    videos = pa.table({"video_id": ids, "title": titles, "creator_id": creators})
    products = pa.table({"product_id": ["p0", "p1", "p2"], "category": ["tea", "tea", "toys & games"]})
    return table(rows), videos, products


def page(**more: Any) -> str:
    scores, videos, products = catalogue()
    return report_page(scores, {}, {}, videos, products, **more)


@pytest.fixture(scope="module")
def full() -> str:
    return page(links={"v120": "report-videos/v120.html"})


@pytest.fixture
def shown(chromium: Browser, full: str, tmp_path: Path):
    with opened(chromium, full, tmp_path) as it:
        yield it


def column(it: Opened, name: str) -> list[str]:
    heads = it.page.locator("#videos thead th").evaluate_all("all => all.map(head => head.dataset.name)")
    cells = f"#videos tbody tr > :nth-child({heads.index(name) + 1})"
    return [text.strip() for text in it.page.locator(cells).all_inner_texts()]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_opens_without_complaints_requests_or_barriers(
    chromium: Browser, full: str, tmp_path: Path, width: int
):
    with opened(chromium, full, tmp_path, width) as it:
        assert it.complaints == []
        assert it.accessibility_problems() == []
        assert not it.is_too_wide()
        assert it.page.locator("#distributions svg").count() == 3 and it.page.locator("#scatter svg").count() == 1


def test_one_page_of_rows_is_drawn_and_the_others_are_a_click_away(shown: Opened):
    assert column(shown, "video_id") == [f"v{k:03}" for k in range(120, 70, -1)]
    assert shown.page.locator("#shown-rows").inner_text() == "Rows 1 to 50 of 124 videos."
    assert shown.page.get_by_role("button", name="Previous").is_disabled()
    shown.page.get_by_role("button", name="Next").click()
    assert column(shown, "video_id")[0] == "v070"
    shown.page.get_by_role("button", name="Last").click()
    assert column(shown, "video_id")[-4:] == ["lost", "cut", "gone", "talk"]
    assert shown.page.get_by_role("button", name="Next").is_disabled()
    shown.page.get_by_role("button", name="First").click()
    assert column(shown, "video_id")[0] == "v120"


@pytest.mark.parametrize(
    "typed, found",
    [
        ("take v01", [f"v{k:03}" for k in range(19, 9, -1)]),
        ("V007", ["v007"]),
        ("not_found", ["gone"]),
        ("nothing", []),
    ],
)
def test_search_finds_all_words_in_any_text(shown: Opened, typed: str, found: list[str]):
    shown.page.get_by_role("searchbox").fill(typed)
    assert column(shown, "video_id") == found
    expected = (
        f"Rows 1 to {len(found)} of {len(found)} found among 124 videos." if found else "None of 124 videos fits."
    )
    assert shown.page.locator("#shown-rows").inner_text() == expected


def test_status_error_and_category_filter_together_with_the_search(shown: Opened):
    status, category = (shown.page.get_by_role("combobox", name=name) for name in ("Status", "Category"))
    status.select_option("failed")
    assert column(shown, "video_id") == ["cut", "gone"]
    status.select_option("failed/truncated")
    assert column(shown, "video_id") == ["cut"]
    status.select_option("ok")
    category.select_option("toys & games")
    assert set(column(shown, "product_id")) == {"p2"}
    shown.page.get_by_role("searchbox").fill("v00")
    assert column(shown, "video_id") == ["v008", "v005", "v002"]


def test_columns_sort_both_ways_and_what_is_unknown_comes_last(shown: Opened):
    head = shown.page.locator("th[data-name=e_score]")
    head.get_by_role("button").click()
    assert column(shown, "video_id")[:2] == ["v001", "v002"]
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = column(shown, "e_score")
    assert values == sorted(values)
    shown.page.get_by_role("button", name="Last").click()
    assert column(shown, "e_score")[-2:] == ["–", "–"]
    shown.page.locator("th[data-name=video_id]").get_by_role("button").click()
    assert column(shown, "video_id")[:3] == ["cut", "gone", "lost"]


def test_the_table_is_worked_by_keys_alone(shown: Opened):
    shown.page.get_by_role("searchbox").focus()
    shown.page.keyboard.type("v00")
    shown.page.keyboard.press("Tab")
    assert shown.page.evaluate("document.activeElement.id") == "only-status"
    shown.page.locator("th[data-name=pe_score] button").focus()
    shown.page.keyboard.press("Enter")
    assert column(shown, "video_id")[0] == "v001"
    assert shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_creator_of_the_summary_finds_the_creators_videos(shown: Opened):
    shown.page.locator("#by-creator_id").get_by_role("button", name="creator 3").click()
    assert set(column(shown, "creator_id")) == {"creator 3"}


def test_videos_with_a_page_link_to_it(shown: Opened):
    links = shown.page.locator("a[href='report-videos/v120.html']")
    assert set(links.all_inner_texts()) == {"v120"} and links.count() == 2  # among the best, and in the table


def test_failed_rows_say_why_in_the_table(shown: Opened):
    shown.page.get_by_role("searchbox").fill("gone")
    assert column(shown, "status") == ["failed not_found no file"]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_text_is_shown_as_text_by_the_script_too(chromium: Browser, tmp_path: Path, width: int):
    rows = [ok(text, 0.01 * (k + 1), product_id=text) for k, text in enumerate(HOSTILE)]
    rows += [failed(f"failed {text}", message=text) for text in HOSTILE]
    videos = pa.table({"video_id": HOSTILE, "title": HOSTILE, "creator_id": HOSTILE})
    products = pa.table({"product_id": HOSTILE, "category": HOSTILE})
    html = report_page(table(rows), {}, {}, videos, products, links=dict.fromkeys(HOSTILE, "x.html"))
    with opened(chromium, html, tmp_path, width) as it:
        assert it.complaints == [] and not it.is_too_wide()
        cells = it.page.locator("#videos tbody bdi").evaluate_all("all => all.map(cell => cell.textContent)")
        assert set(HOSTILE) <= set(cells)


def test_an_empty_catalogue_has_no_table_and_says_what_to_do():
    html = report_page(table([]))
    assert "Run jobs.score" in html and "<script" not in html


def test_without_categories_there_is_no_such_column_or_filter(chromium: Browser, tmp_path: Path):
    with opened(chromium, report_page(table(MIXED)), tmp_path) as it:
        assert it.complaints == []
        assert it.page.get_by_role("combobox", name="Category").count() == 0
        assert "category" not in it.page.locator("#videos thead th").evaluate_all("all => all.map(h => h.dataset.name)")


def test_a_hundred_thousand_rows_are_sorted_and_searched(chromium: Browser, tmp_path: Path):
    n = 100_000
    scores = table([ok("v", 0.5)])
    scores = pa.table(
        {
            name: pa.array([f"v{k:06}" for k in range(n)])
            if name == "video_id"
            else pa.array([(k * 7919 % n) / n for k in range(n)])
            if name == "pe_score"
            else pa.array([scores[name][0].as_py()] * n, scores.schema.field(name).type)
            for name in SCORES.names
        }
    )
    with opened(chromium, report_page(scores), tmp_path) as it:
        assert it.complaints == []
        assert column(it, "pe_score")[:2] == ["1.0000", "1.0000"]
        it.page.locator("th[data-name=pe_score]").get_by_role("button").click()
        assert column(it, "video_id")[0] == "v000000"
        it.page.get_by_role("searchbox").fill("v09999")
        assert it.page.locator("#shown-rows").inner_text() == "Rows 1 to 10 of 10 found among 100,000 videos."
        assert it.page.locator("#videos tbody tr").count() == 10


def test_a_page_that_cannot_hold_all_rows_holds_the_highest_and_says_so(monkeypatch, chromium: Browser, tmp_path: Path):
    monkeypatch.setattr("views.report.MAX_ROWS_HELD", 100)
    with opened(chromium, page(), tmp_path) as it:
        assert it.complaints == []
        assert it.page.locator("#held").inner_text().startswith("The table holds the 100 videos with the highest PE;")
        it.page.get_by_role("button", name="Last").click()
        assert column(it, "video_id")[-1] == "v021"


def test_the_packed_table_holds_every_row_and_repeated_texts_once():
    scores, videos, products = catalogue()
    packed = packed_frame(catalogue_frame(ranked(scores), videos, products), {}, None)
    content = json.loads(zlib.decompress(base64.b64decode(packed)))
    columns = content["columns"]
    assert content["rows"] == MANY + 4 == len(columns["pe_score"]) == len(columns["status"]["codes"])
    assert sorted(columns["creator_id"]["values"]) == [f"creator {k}" for k in range(4)]
    assert columns["pe_score"][0] == 0.12 and columns["pe_score"][-1] is None
    assert columns["category"]["codes"][-1] == -1


def test_groups_are_compared_by_their_median_from_three_videos_on():
    rows = [ok(f"a{k}", k / 100, product_id="a") for k in (1, 2, 9)] + [
        ok(f"b{k}", 0.05, product_id="b") for k in range(3)
    ]
    rows += [ok("c1", 0.5, product_id="c"), failed("c2")]
    products = pa.table({"product_id": ["a", "b", "c"], "category": ["A", "B", "C"]})
    found = groups(catalogue_frame(ranked(table(rows)), None, products), "category")
    assert found is not None
    assert [(group["name"], group["videos"], group["pe"]) for group in found["shown"]] == [
        ("B", 3, 0.05),
        ("A", 3, 0.02),
    ]
    assert (found["compared"], found["left_out"]) == (2, 1)


def test_one_group_alone_is_not_compared():
    products = pa.table({"product_id": ["p1"], "category": ["A"]})
    frame = catalogue_frame(ranked(table([ok(f"v{k}", 0.1) for k in range(5)])), None, products)
    assert groups(frame, "category") is None


def test_next_steps_begin_with_what_failed_and_name_the_products_not_found():
    rows = [failed("f1"), failed("f2"), failed("f3", "not_found"), no_product("talk"), ok("v", 0.1)]
    rows += [
        not_localised("l1"),
        not_localised("l2") | {"product_id": "p2"},
        not_localised("l3") | {"product_id": "p2"},
    ]
    steps = next_steps(catalogue_frame(ranked(table(rows)), None, None))
    assert [(step["kind"], step["count"]) for step in steps] == [
        ("failed", 2), ("failed", 1), ("not_localised", 3), ("no_product", 1),
    ]  # fmt: skip
    assert [step.get("code") for step in steps[:2]] == ["truncated", "not_found"]
    assert steps[2]["products"] == [("p2", 2, 2), ("p1", 1, 2)]


def test_next_steps_find_attention_that_is_elsewhere_and_products_that_are_small():
    rows = [ok(f"v{k}", 0.1, e_score=0.1, e_on_product=0.2, p_score=0.1) for k in range(7)]
    rows.append(ok("away", 0.1, e_score=0.9, e_on_product=0.05, p_score=0.1))
    rows.append(ok("tiny", 0.1, e_score=0.1, e_on_product=0.9, p_score=0.01))
    steps = {step["kind"]: step["videos"] for step in next_steps(catalogue_frame(ranked(table(rows)), None, None))}
    assert steps == {"elsewhere": ["away"], "small": ["tiny"]}


def test_job_adds_thumbnails_and_pages_of_the_ends_and_links_to_them(
    chromium: Browser, tmp_path: Path, small_world: WorldPaths
):
    scores = write_scored(tmp_path, small_world, products=str(small_world.products))
    output = tmp_path / "my report.html"
    assert main(ReportConfig(str(scores), str(output), pages=1)) == 0
    made = sorted(path.name for path in (tmp_path / "my report-videos").iterdir())
    assert len(made) == 2  # of three that were located
    with opened(chromium, output, tmp_path) as it:
        assert it.complaints == []
        assert it.page.locator("#best img").count() == 2  # the third one's file is gone
        it.page.locator("#videos a").first.click()
        it.page.wait_for_selector(".stage video, .no-film")
        assert it.page.url.endswith(f"/my%20report-videos/{made[0]}") or it.page.url.endswith(made[1])
        it.page.locator("#home").click()
        it.page.wait_for_selector("#videos")


def test_job_makes_no_pages_unless_asked_and_refuses_a_negative_number(tmp_path: Path, small_world: WorldPaths):
    scores = write_scored(tmp_path, small_world)
    assert main(ReportConfig(str(scores), str(tmp_path / "r.html"))) == 0
    assert not (tmp_path / "r-videos").exists()
    with pytest.raises(Refused, match="--pages is -1"):
        main(ReportConfig(str(scores), str(tmp_path / "r.html"), pages=-1))


def test_job_reads_categories_from_the_table_that_was_scored(tmp_path: Path, small_world: WorldPaths):
    scores = write_scored(tmp_path, small_world)
    pq.write_table(pa.table({"product_id": ["p1"], "category": ["<care>"]}), tmp_path / "p.parquet")
    assert main(ReportConfig(str(scores), str(tmp_path / "r.html"), products=str(tmp_path / "p.parquet"))) == 0
    assert "<option>&lt;care&gt;</option>" in (tmp_path / "r.html").read_text()
