"""The report: what the page says of hand-made scores, whatever they hold, and when the job refuses."""

import datetime
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import ErrorCode, Refused
from catalog.schemas import SCORES
from jobs.report import ReportConfig, main
from scoring.output import read_scores
from views.report import MAX_SCATTER_POINTS, MAX_TABLE_ROWS, report_page

ROOT = Path(__file__).parents[1]
HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    'it\'s "quoted" & <b>bold</b>',
    "צפה במוצר \u202egpj.exe",
    "新品护肤套装 🧴🔥",
    "x" * 300,
]


class Page(HTMLParser):
    """The page as a tree; fails where a tag is left open or closed twice."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.builder, self.open = ElementTree.TreeBuilder(), []
        self.feed(html)
        self.close()
        assert self.open == []
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in self.VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.builder.data(data)

    def by_id(self, name: str) -> ElementTree.Element | None:
        return self.root.find(f".//*[@id='{name}']")

    def text(self, name: str) -> str:
        element = self.by_id(name)
        assert element is not None, f"nothing on the page has the id {name}"
        return " ".join("".join(element.itertext()).split())

    def cells(self, table: str) -> list[list[str]]:
        element = self.by_id(table)
        assert element is not None, f"nothing on the page has the id {table}"
        return [["".join(cell.itertext()) for cell in row] for row in element.iterfind("tbody/tr")]

    def shown(self, end: str) -> list[str]:
        element = self.by_id(end)
        return [] if element is None else ["".join(title.itertext()) for title in element.iter("h4")]


def ok(video_id: str, pe: float = 0.02, **other: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCORES.names)
    row |= {"video_id": video_id, "product_id": "p1", "status": "ok", "seconds": 2}
    row |= {"pe_score": pe, "e_score": 0.3, "p_score": 0.1, "e_on_product": pe / 0.1, "predicted_engagement": 1.5}
    row |= {"pe_per_second": [2 * pe, 0.0], "e_per_second": [0.2, 0.4], "p_per_second": [0.2, 0.0]}
    row |= {"model_uri": "models:/pe-engagement@champion", "model_version": "7", "config_hash": "c0ffee"}
    row |= {"scored_at": datetime.datetime(2025, 11, 3, 9, 30, tzinfo=datetime.UTC), "code_version": "abc123"}
    return row | other


def not_localised(video_id: str) -> dict[str, Any]:
    nothing = {"p_score": 0.0, "e_on_product": None, "pe_per_second": [0.0, 0.0], "p_per_second": [0.0, 0.0]}
    return ok(video_id, 0.0, status="not_localised") | nothing


def no_product(video_id: str) -> dict[str, Any]:
    unknown = ("product_id", "pe_score", "p_score", "e_on_product", "pe_per_second", "p_per_second")
    return ok(video_id, status="no_product") | dict.fromkeys(unknown)


def failed(video_id: str, code: str = "truncated", message: str = "cut off") -> dict[str, Any]:
    kept = {name: ok(video_id)[name] for name in ("video_id", "product_id", "scored_at")}
    error = {"status": "failed", "error_code": code, "error_message": message, "error_stage": "decode"}
    return dict.fromkeys(SCORES.names) | kept | error


def write_scores(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows, in an order that means nothing, over two files."""
    rows = random.Random(0).sample(rows, len(rows))
    (folder / "scores").mkdir(parents=True)
    for part, some in enumerate((rows[::2], rows[1::2])):
        pq.write_table(pa.Table.from_pylist(some, schema=SCORES), folder / f"scores/{part}.parquet")
    return folder


@pytest.fixture
def page_of(tmp_path):
    def make(rows: list[dict[str, Any]], **more: Any) -> Page:
        scores = read_scores(str(write_scores(tmp_path / "out", rows)))
        return Page(report_page(scores, **({"summary": {}} | more)))

    return make


MIXED = [
    *(ok(f"v{n}", n / 100) for n in range(1, 4)),
    *(not_localised(f"lost{n}") for n in range(2)),
    no_product("talk"),
    *(failed(f"cut{n}") for n in range(3)),
    failed("gone", "not_found", "no such file"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Page:
    scores = read_scores(str(write_scores(tmp_path_factory.mktemp("mixed") / "out", MIXED)))
    return Page(report_page(scores, {"finished_at": "2025-11-03T10:00:00"}, {"max_seconds": 60.0}))


def test_videos_are_counted_by_status(mixed):
    counts = {status: n for status, n, _ in mixed.cells("statuses")}
    assert counts == {"ok": "3", "not_localised": "2", "no_product": "1", "failed": "4"}


def test_failures_are_counted_by_code_most_frequent_first(mixed):
    rows = mixed.cells("errors")
    assert [(code, n) for code, n, _ in rows] == [("truncated", "3"), ("not_found", "1")]


def test_every_error_code_comes_with_its_own_advice(page_of):
    rows = page_of([failed(f"v{code}", code) for code in ErrorCode]).cells("errors")
    assert {code for code, _, _ in rows} == set(ErrorCode)
    assert len({advice for _, _, advice in rows if len(advice) > 20}) == len(ErrorCode)


def test_failed_videos_are_listed_with_stage_and_message(mixed):
    rows = mixed.cells("failures")
    assert rows[0] == ["gone", "not_found", "decode", "no such file"]
    assert sorted(row[0] for row in rows[1:]) == ["cut0", "cut1", "cut2"]


def test_best_and_worst_are_the_ends_of_the_located_videos(page_of):
    page = page_of([*(ok(f"v{n:02}", n / 1000) for n in range(1, 13)), not_localised("lost"), failed("cut")])
    assert page.shown("best") == ["v12", "v11", "v10", "v09", "v08"]
    assert page.shown("worst") == ["v01", "v02", "v03", "v04", "v05"]


@pytest.mark.parametrize("n, worst", [(1, []), (5, []), (7, ["v1", "v2"])])
def test_few_videos_are_never_both_best_and_worst(page_of, n, worst):
    page = page_of([ok(f"v{k}", k / 1000) for k in range(1, n + 1)])
    assert page.shown("best") == [f"v{k}" for k in range(n, max(n - 5, 0), -1)]
    assert page.shown("worst") == worst


def test_percentile_is_the_share_of_lower_scores_and_ties_count_half(page_of):
    rows = [ok("top", 0.4), ok("b", 0.2), ok("c", 0.1), ok("d", 0.1), not_localised("lost"), no_product("talk")]
    by_id = {row[0]: row for row in page_of(rows).cells("videos")}
    percentiles = {video_id: row[4] for video_id, row in by_id.items()}
    assert percentiles == {"top": "90", "b": "70", "c": "40", "d": "40", "lost": "10", "talk": "–"}


def test_best_videos_show_their_scores_and_percentile(page_of):
    page = page_of([ok("a", 0.04, p_score=0.25, e_on_product=0.16), ok("b", 0.01)])
    assert "PE0.0400 Percentile75 E on product0.1600 Product’s share25.0%" in page.text("best")


def test_table_is_sorted_by_pe_and_unscored_videos_come_last(mixed):
    ids = [row[0] for row in mixed.cells("videos")]
    assert ids == ["v3", "v2", "v1", "lost0", "lost1", "cut0", "cut1", "cut2", "gone", "talk"]
    assert mixed.cells("videos")[0] == ["v3", "p1", "ok", "0.0300", "90", "0.3000", "10.0%", "0.3000", "1.500"]
    assert set(mixed.cells("videos")[-2][3:]) == {"–"}


def test_long_tables_are_cut_and_say_so(page_of):
    page = page_of([*(failed(f"f{n:03}") for n in range(MAX_TABLE_ROWS + 1)), ok("only")])
    assert [row[0] for row in page.cells("videos")][:2] == ["only", "f000"]
    assert len(page.cells("videos")) == len(page.cells("failures")) == MAX_TABLE_ROWS
    assert "The first 50 of 52 videos" in page.text("shown-rows")
    assert "The first 50 of 51 videos" in page.text("failures")
    assert page.cells("errors")[0][1] == "51"


def test_every_text_is_shown_as_text(page_of):
    rows = [ok(text, product_id=text, model_uri=text, run_id=text) for text in HOSTILE]
    rows += [failed(f"f{text}", message=text) for text in HOSTILE]
    config = {text: text for text in HOSTILE}
    videos = pa.table({"video_id": HOSTILE, "title": HOSTILE, "creator_id": HOSTILE})
    page = page_of(rows, config=config, videos=videos)
    assert {row[0] for row in page.cells("videos")} == {*HOSTILE, *(f"f{text}" for text in HOSTILE)}
    assert {row[1] for row in page.cells("videos")} == {*HOSTILE, "–"}
    assert {row[3] for row in page.cells("failures")} == set(HOSTILE)
    assert set(page.shown("best") + page.shown("worst")) == set(HOSTILE)
    assert all(" ".join(text.split()) in page.text("config") for text in HOSTILE)
    assert [e.tag for e in page.root.iter() if e.tag in ("img", "b", "iframe", "object")] == []
    assert runs_its_own_script_only(page)
    assert [name for e in page.root.iter() for name in e.attrib if name.startswith("on")] == []


def runs_its_own_script_only(page: Page) -> bool:
    """Two scripts: the table's data, which no browser runs, and code that is word for word the project's."""
    data, code = page.root.iter("script")
    own = "\n".join((ROOT / "views/templates" / name).read_text() for name in ("pack.js", "catalogue.js"))
    return data.attrib["type"] == "application/octet-stream" and code.attrib == {} and code.text == own


def test_page_fetches_nothing(mixed):
    links = {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}
    targets = [value for e in mixed.root.iter() for name, value in e.attrib.items() if name in links]
    assert targets and all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not [e for e in mixed.root.iter() if e.tag in ("link", "base", "iframe")]
    assert runs_its_own_script_only(mixed)
    styles = [value for e in mixed.root.iter() for value in (*e.attrib.values(), e.text or "")]
    urls = [url for style in styles for url in re.findall(r"url\(([^)]*)\)", style)]
    assert all(url.startswith("#") for url in urls)
    assert not any("@import" in style for style in styles)


def test_ids_are_unique_and_every_reference_has_its_target(page_of):
    page = page_of([*(ok(f"v{n:02}", n / 1000) for n in range(1, 13)), no_product("talk")])
    ids = [e.attrib["id"] for e in page.root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    values = [(name, value) for e in page.root.iter() for name, value in e.attrib.items()]
    wanted = {value[1:] for name, value in values if name == "xlink:href" and value.startswith("#")}
    wanted |= {target for _, value in values for target in re.findall(r"url\(#([^)]*)\)", value)}
    assert wanted and wanted <= set(ids)


@pytest.mark.parametrize(
    "rows, says",
    [
        ([], "Run jobs.score"),
        ([failed("a"), failed("b")], "--retry-failed"),
        ([not_localised("a"), failed("b")], "image shows the pack"),
        ([no_product("a"), failed("b")], "Fill product_id"),
    ],
)
def test_a_catalogue_without_any_pe_says_what_to_do(page_of, rows, says):
    page = page_of(rows)
    assert says in page.text("obstacle")
    assert page.shown("best") == page.shown("worst") == []
    assert page.by_id("scatter") is None
    assert sum(int(n) for _, n, _ in page.cells("statuses")) == len(rows)


def test_a_catalogue_with_pe_has_no_such_notice(mixed):
    assert mixed.by_id("obstacle") is None


def test_an_unfinished_job_is_told_from_a_finished_one(page_of, mixed):
    assert page_of(MIXED, summary=None).by_id("unfinished") is not None
    assert mixed.by_id("unfinished") is None


def test_a_row_that_a_crash_left_twice_is_counted_once(page_of):
    page = page_of([ok("a"), ok("a"), ok("b")])
    assert sorted(row[0] for row in page.cells("videos")) == ["a", "b"]
    assert page.cells("statuses")[0][:2] == ["ok", "2"]


@pytest.mark.parametrize("sample_fps, peak", [(1.0, "2 s"), (4.0, "0.5 s")])
def test_timeline_says_when_the_product_is_seen_and_where_pe_peaks(page_of, sample_fps, peak):
    lists = {"p_per_second": [0.1, 0, 0.3, 0], "pe_per_second": [0.01, 0, 0.09, 0], "e_per_second": [0.2] * 4}
    page = page_of([ok("a", **lists), ok("b", 0.01)], config={"sample_fps": sample_fps})
    said = f"Product on screen in 2 of 4 sampled seconds; PE is highest at {peak}."
    assert said in page.text("best")
    best = page.by_id("best")
    assert best is not None
    assert said in [svg.attrib["aria-label"].removeprefix("E, P and PE second by second. ") for svg in best.iter("svg")]


def test_each_score_has_a_distribution_over_the_videos_that_have_it(mixed):
    distributions = mixed.by_id("distributions")
    assert distributions is not None
    captions = ["".join(caption.itertext()) for caption in distributions.iter("figcaption")]
    assert [re.match(r"(\d+) videos?; .* median, (.*)\.", text).groups() for text in captions] == [  # pyright: ignore
        ("5", "0.0100"),
        ("6", "0.3000"),
        ("5", "10.0%"),
    ]


def test_scatter_has_a_point_for_each_located_video(mixed):
    assert len(points(mixed)) == 3


def test_a_large_scatter_is_a_sample_and_says_so(page_of):
    page = page_of([ok(f"v{n}", 0.01 + n * 1e-5) for n in range(MAX_SCATTER_POINTS + 10)])
    assert len(points(page)) == MAX_SCATTER_POINTS
    assert "at most 2,000 of them, drawn at random" in page.text("scatter")


def points(page: Page) -> list[ElementTree.Element]:
    scatter = page.by_id("scatter-PathCollection_1")
    assert scatter is not None
    return list(scatter.iter("use"))


def test_page_says_when_and_with_what_it_was_scored(mixed):
    header = mixed.root.find(".//header")
    assert header is not None
    said = " ".join("".join(header.itertext()).split())
    assert "Scored 2025-11-03 09:30 UTC with model models:/pe-engagement@champion, version 7" in said


def test_page_carries_the_notice_about_the_published_method(mixed):
    footer = mixed.root.find(".//footer")
    assert footer is not None
    assert "independent implementation of a published method" in "".join(footer.itertext())


def test_text_colours_have_enough_contrast():
    css = (ROOT / "views/templates/report.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css))
    for text in ("ink", "quiet", "accent"):
        for ground in ("#ffffff", colours["tint"], "#fdf4ea"):
            lighter, darker = sorted((luminance(colours[text]), luminance(ground)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def run_report(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.report", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_job_writes_the_page_and_prints_its_path(tmp_path):
    scores = write_scores(tmp_path / "out", MIXED)
    (scores / "run.json").write_text(json.dumps({"finished_at": "2025-11-03", "config": {"max_seconds": 31}}))
    pq.write_table(pa.table({"video_id": ["v1", "v2"], "title": ["Morning <3", None]}), tmp_path / "v.parquet")
    output = tmp_path / "new folder/report [1].html"
    done = run_report("--scores", str(scores), "--output", str(output), "--videos", str(tmp_path / "v.parquet"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"report: {output}" in done.stdout
    page = Page(output.read_text())
    titles = {row[0]: row[1] for row in page.cells("videos")}
    assert (titles["v1"], titles["v2"], titles["v3"]) == ("Morning <3", "–", "–")
    assert page.text("config") == "max_seconds31"
    assert page.by_id("unfinished") is None
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_job_exits_with_2_and_one_line_for_a_folder_without_scores(tmp_path):
    refused = run_report("--scores", str(tmp_path), "--output", str(tmp_path / "r.html"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("refused: ") and "holds no scores" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("output", ["", "file/r.html", "out"])
def test_job_refuses_an_output_that_cannot_be_written(tmp_path, output):
    scores = write_scores(tmp_path / "out", MIXED)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Refused, match=r"cannot be written|is a folder"):
        main(ReportConfig(scores=str(scores), output=str(tmp_path / output)))


def test_job_refuses_a_videos_table_of_another_catalogue(tmp_path):
    scores = write_scores(tmp_path / "out", MIXED)
    pq.write_table(pa.table({"video_id": ["other"]}), tmp_path / "v.parquet")
    config = ReportConfig(str(scores), str(tmp_path / "r.html"), str(tmp_path / "v.parquet"))
    with pytest.raises(Refused, match=r"v\.parquet holds none of the videos that were scored"):
        main(config)


@pytest.mark.parametrize("name", ["scores/bad.parquet", "run.json"])
def test_job_refuses_a_damaged_file_by_name(tmp_path, name):
    scores = write_scores(tmp_path / "out", MIXED)
    (scores / name).write_bytes(b"damaged")
    with pytest.raises(Refused, match=str(scores)):
        main(ReportConfig(str(scores), str(tmp_path / "r.html")))


@pytest.mark.parametrize("column", ["e_per_second", "pe_score"])
def test_job_refuses_scores_of_an_older_version_and_says_what_to_do(tmp_path, column):
    scores = write_scores(tmp_path / "out", [ok("a"), no_product("talk"), failed("cut")])
    for part in (scores / "scores").iterdir():
        pq.write_table(pq.read_table(part).drop_columns([column]), part)
    with pytest.raises(Refused, match=rf"rows have no {column}, so an older version .* score the videos again"):
        main(ReportConfig(str(scores), str(tmp_path / "r.html")))


def test_job_shows_the_settings_of_a_job_that_has_not_finished(tmp_path):
    scores = write_scores(tmp_path / "out", MIXED)
    (scores / "config.json").write_text(json.dumps({"max_seconds": 31}))
    assert main(ReportConfig(str(scores), str(tmp_path / "r.html"))) == 0
    page = Page((tmp_path / "r.html").read_text())
    assert page.text("config") == "max_seconds31"
    assert page.by_id("unfinished") is not None


def test_verdicts_of_the_maps_are_shown_beside_the_scores(mixed: Page, page_of):
    gain = {"what": "deletion", "infill": "blur", "over": "random", "mean": 0.5, "low": 0.25, "high": 0.75}
    alike = {"mean": 0.1, "low": None, "high": None}
    evidence = {
        "videos": 8, "gains": [gain, gain | {"what": "insertion", "low": -0.1}],
        "randomised": {"stem": alike}, "randomised_inside": {"stem": alike}, "stability": {"mirrored": alike},
    }  # fmt: skip
    cells = page_of([ok("a")], summary={"faithfulness": evidence}).cells("verdicts")
    assert [line[1] for line in cells[-3:]] == ["passed", "undecided", "undecided"]
    assert "0.50 (0.25 to 0.75)" in cells[-3][2]
    assert mixed.by_id("verdicts") is None
