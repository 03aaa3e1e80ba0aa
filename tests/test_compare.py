"""Comparison pages: two videos side by side, two scoring runs, and what the job refuses."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser
from scipy import stats

import jobs.steps.compare
from analysis.drift import by_group, drift, psi, psi_by_chance
from catalog.errors import Refused
from catalog.schemas import SCORES
from catalog.world import WorldPaths
from jobs.command import parse
from jobs.compare import CompareConfig, main
from scoring.settings import VideoLimits
from tests.browser import NARROW, WIDE, opened
from tests.test_overlay import write_scored
from tests.test_report import HOSTILE, Page, failed, no_product, not_localised, ok, write_scores
from views.run_comparison import COLUMNS, ScoringRun, agreement, joined, runs_page


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCORES)


def runs(first: list[dict[str, Any]], second: list[dict[str, Any]], **settings: Any) -> Page:
    before = {"sample_fps": 1.0, "videos": "v.parquet", "output": "a"}
    return Page(
        runs_page(
            ScoringRun("a", table(first), before), ScoringRun("b", table(second), before | {"output": "b"} | settings)
        )
    )


FIRST = [ok("v1", 0.01), ok("v2", 0.02), ok("v3", 0.03), ok("v4", 0.04), failed("cut"), ok("only here")]
SECOND = [ok("v1", 0.01), ok("v2", 0.05), ok("v3", 0.03), not_localised("v4"), ok("cut", 0.02), no_product("new")]


def test_videos_of_both_runs_are_counted_by_their_two_statuses():
    page = runs(FIRST, SECOND)
    assert page.text("both") == "5 videos are in both; 1 in the first only, 1 in the second only."
    assert page.cells("statuses") == [["failed", "0", "1"], ["ok", "1", "3"]]  # columns not_localised, ok
    assert page.cells("changed") == [["cut", "failed", "ok"], ["v4", "ok", "not_localised"]]


def test_videos_that_moved_most_come_first_with_their_percentiles():
    page = runs(FIRST, SECOND)
    # with PE in both: v1 to v4; first order v1 v2 v3 v4, second v4 v1 v3 v2
    assert page.cells("moved") == [
        ["v4", "0.0400", "0.0000", "88", "12", "-75"],
        ["v2", "0.0200", "0.0500", "38", "88", "+50"],
        ["v1", "0.0100", "0.0100", "12", "38", "+25"],
    ]


def test_only_settings_that_change_scores_are_told():
    assert runs(FIRST, SECOND, sample_fps=2.0).cells("settings") == [["sample_fps", "1.0", "2.0"]]
    assert runs(FIRST, SECOND, method="smoothgrad").cells("settings") == [["method", "not known", "smoothgrad"]]
    assert runs(FIRST, SECOND).by_id("settings") is None


def test_agreement_is_spearmans_with_an_interval():
    same = joined(table(FIRST[:4]), table(FIRST[:4]))
    assert agreement(same)["rho"] == pytest.approx(1)
    turned = table([ok(f"v{k}", 0.05 - k / 100) for k in range(1, 5)])
    found = agreement(joined(table(FIRST[:4]), turned))
    assert found["rho"] == pytest.approx(-1) and found["low"] <= found["rho"] <= found["high"]
    assert agreement(joined(table([ok("a"), ok("b")]), table([ok("a"), ok("b")]))) is None


@pytest.mark.parametrize("second", [[], [ok("other")], [no_product("v1")]])
def test_runs_with_little_in_common_are_compared_as_far_as_they_can_be(second: list[dict[str, Any]]):
    page = runs(FIRST, second)
    assert page.by_id("moved") is None
    assert ("nothing to compare" in page.text("both")) == (not second or second[0]["video_id"] == "other")


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_of_two_runs_has_no_complaints_or_barriers(chromium: Browser, tmp_path: Path, width: int):
    rows = [ok(text, k / 100) for k, text in enumerate(HOSTILE, 1)]
    turned = [ok(text, 0.1 - k / 100) for k, text in enumerate(HOSTILE, 1)]
    hostile = {text: text for text in HOSTILE}
    html = runs_page(ScoringRun(HOSTILE[0], table(rows), hostile), ScoringRun(HOSTILE[1], table(turned), {}))
    with opened(chromium, html, tmp_path, width) as it:
        assert it.complaints == [] and it.accessibility_problems() == [] and not it.is_too_wide()
        ids = it.page.locator("#moved tbody bdi").evaluate_all("all => all.map(cell => cell.textContent)")
        assert set(ids) <= set(HOSTILE) and len(ids) >= len(HOSTILE) - 1


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_two_videos_stand_side_by_side_each_with_its_own_chart(
    chromium: Browser, tmp_path: Path, small_world: WorldPaths, width: int
):
    scores = write_scored(tmp_path, small_world)
    config = CompareConfig(str(scores), str(tmp_path / "c.html"), creatives=("v000000", "gone"))
    assert main(config) == 0
    with opened(chromium, tmp_path / "c.html", tmp_path, width) as it:
        assert it.complaints == [] and it.accessibility_problems() == [] and not it.is_too_wide()
        heads = it.page.locator(".playhead")
        heads.nth(1).press("ArrowRight")
        assert [head.get_attribute("aria-valuenow") for head in heads.all()] == ["0.0", "1.0"]
        heads.nth(0).press("End")
        it.wait_for("!document.querySelector('video').seeking")
        assert it.page.evaluate("document.querySelector('video').currentTime") == pytest.approx(3, abs=0.3)
        assert heads.nth(1).get_attribute("aria-valuenow") == "1.0"
        assert "no such file" in it.page.locator(".no-film").inner_text()
        assert it.page.locator("canvas").count() == 2


def test_both_charts_have_one_scale(tmp_path: Path):
    lists = {"e_per_second": [0.1, 0.2], "p_per_second": [0.1, 0.1], "pe_per_second": [0.01, 0.02]}
    high = {name: [4 * value for value in values] for name, values in lists.items()}
    scores = write_scores(tmp_path / "out", [ok("low", **lists), ok("high", **high)])
    (scores / "run.json").write_text(json.dumps({"config": {}}))
    assert main(CompareConfig(str(scores), str(tmp_path / "c.html"), creatives=("low", "high"))) == 0
    charts = re.findall(r"<svg role.*?</svg>", (tmp_path / "c.html").read_text(), re.S)
    labels = [re.findall(r"<text[^>]*>([^<]*)</text>", chart) for chart in charts]
    assert len(labels) == 2 and labels[0] == labels[1]


@pytest.mark.parametrize(
    "more, says",
    [
        ({"creatives": ("v000000", "nobody")}, "nobody: .* has no scores"),
        ({"creatives": ("v000000", "broken")}, "broken failed .*nothing to compare"),
        ({}, "give --creatives .* or --other"),
        ({"creatives": ("v000000", "gone"), "other": "x"}, "one of the two"),
        ({"creatives": ("v000000", "gone"), "limits": VideoLimits(video_timeout=0)}, "--video-timeout is 0"),
        ({"other": "nowhere"}, "nowhere holds no scores"),
        ({"creatives": ("v000000", "gone"), "tables": "t"}, "--tables needs --other"),
    ],
)
def test_job_refuses_at_the_door(tmp_path: Path, small_world: WorldPaths, more: dict[str, Any], says: str):
    scores = write_scored(tmp_path, small_world)
    with pytest.raises(Refused, match=says):
        main(CompareConfig(str(scores), str(tmp_path / "c.html"), **more))
    assert not (tmp_path / "c.html").exists()


def test_titles_come_from_the_videos_table_that_is_given(tmp_path: Path):
    scores = write_scores(tmp_path / "out", [ok("a"), ok("b")])
    pq.write_table(pa.table({"video_id": ["a"], "title": ["Morning <3"]}), tmp_path / "v.parquet")
    config = CompareConfig(str(scores), str(tmp_path / "c.html"), ("a", "b"), videos=str(tmp_path / "v.parquet"))
    assert main(config) == 0
    assert "A: <bdi>Morning &lt;3</bdi>" in (tmp_path / "c.html").read_text()


def test_drift_by_hand():
    # tenths of 1..100; all of the second in the first's topmost bin: (100.5 - 10.5) * ln(100.5 / 10.5) / 105, and nine
    # bins of (10.5 - 0.5) * ln(10.5 / 0.5) / 105
    first = np.arange(1, 101, dtype=float)
    moved = 90 / 105 * np.log(100.5 / 10.5) + 9 * 10 / 105 * np.log(10.5 / 0.5)
    assert psi(first, np.full(100, 100.0)) == pytest.approx(moved)
    assert psi(first, first) == 0
    assert psi(first, first[:0]) is None
    assert psi(np.zeros(50), np.zeros(50)) == pytest.approx(0)
    assert psi_by_chance(200, 200) == pytest.approx(16.919 / 100, rel=1e-4)  # chi-square, 9 degrees of freedom


def test_psi_by_chance_is_what_samples_of_one_distribution_stay_below():
    rng = np.random.default_rng(3)
    found = [psi(rng.normal(size=500), rng.normal(size=500)) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(found) > psi_by_chance(500, 500)) <= 0.09


def test_scores_that_a_run_does_not_have_are_told_as_unknown():
    both = joined(table(FIRST), table(SECOND))
    found = drift(both).set_index("score")
    assert found.loc["pe", "videos"] == 4
    assert found.loc["pe", "spearman"] == pytest.approx(stats.spearmanr([1, 2, 3, 4], [1, 5, 3, 0]).statistic)
    assert found.loc["pe", "mean_second"] == pytest.approx((0.01 + 0.05 + 0.03 + 0) / 4)
    nothing = drift(joined(table([failed("a")]), table([failed("a")])))
    assert nothing["videos"].tolist() == [0] * 5 and nothing["psi"].isna().all()


def test_groups_of_few_videos_are_left_out_and_the_most_moved_come_first():
    both = joined(
        table([ok(f"v{k}", k / 100) for k in range(8)]), table([ok(f"v{k}", (k ^ 1) / 100) for k in range(8)])
    )
    both["creator_id"] = ["x"] * 4 + ["y"] * 3 + ["z"]
    both.loc[both["creator_id"] == "x", "rank_second"] = both["rank_first"]
    found = by_group(both, "creator_id")
    assert found["value"].tolist() == ["y", "x"]
    assert found["moved"].tolist() == pytest.approx([12.5, 0])  # neighbours among eight changed places
    assert found["change"].tolist() == pytest.approx([12.5 / 3, 0])  # up, down, up


def test_job_compares_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    first, second = write_scores(tmp_path / "a", FIRST), write_scores(tmp_path / "b", SECOND)
    given = pa.table({"video_id": [f"v{k}" for k in range(1, 5)], "creator_id": ["ann", "ann", "ann", "bob"]})
    pq.write_table(given, tmp_path / "v.parquet")
    config = CompareConfig(str(first), str(tmp_path / "c.html"), other=str(second), tables=str(tmp_path / "tables"))
    assert main(dataclasses.replace(config, videos=str(tmp_path / "v.parquet"))) == 0
    page = Page((tmp_path / "c.html").read_text())
    assert page.cells("moved")[0][0] == "v4"
    assert page.cells("drift")[0][:2] == ["pe", "4"]
    assert [row[0] for row in page.cells("by-creator")] == ["ann"]
    assert page.by_id("by-category") is None

    videos = pq.read_table(tmp_path / "tables" / "videos.parquet").to_pylist()
    assert {row["video_id"]: row["rank_change"] for row in videos}["v4"] == pytest.approx(-75)
    told = pd.read_csv(tmp_path / "tables" / "drift.csv").set_index("score")
    assert told.loc["pe", "spearman"] == pytest.approx(stats.spearmanr([1, 2, 3, 4], [1, 5, 3, 0]).statistic)
    assert pd.read_csv(tmp_path / "tables" / "creator_id.csv")["value"].tolist() == ["ann"]
    assert "how far each score has moved" in capsys.readouterr().out

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("pe-compare").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["spearman/pe"] == pytest.approx(told.loc["pe", "spearman"], rel=1e-4)
    assert run.data.metrics["psi/pe"] == pytest.approx(told.loc["pe", "psi"], rel=1e-4)
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kept == {"comparison.html", "drift.csv", "videos.parquet", "category.csv", "creator_id.csv", "plots"}
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"plots/ecdf.png", "plots/scatter.png"}


def test_a_and_b_name_the_two_runs():
    config = parse(CompareConfig, ["--a", "x", "--b", "y"], "")
    assert (config.scores, config.other, config.output) == ("x", "y", "compare.html")


def test_runs_are_compared_without_their_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    read: list[list[str]] = []

    def page_of(first: ScoringRun, second: ScoringRun, both: pd.DataFrame) -> str:
        read.extend(run.scores.column_names for run in (first, second))
        return runs_page(first, second, both)

    monkeypatch.setattr(jobs.steps.compare, "runs_page", page_of)
    write_scores(tmp_path / "a", FIRST), write_scores(tmp_path / "b", SECOND)
    assert main(CompareConfig("a", other="b")) == 0
    assert read == [list(COLUMNS)] * 2
    assert Page((tmp_path / "compare.html").read_text()).cells("moved")[0][0] == "v4"
