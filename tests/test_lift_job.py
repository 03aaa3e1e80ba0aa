"""jobs.lift from tables to verdict, with real MLflow; and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixed_catalogue import ROOT, RUN_TIMEOUT_S
from mlflow import MlflowClient

from analysis.stage_two import ROW
from catalog.errors import Refused
from catalog.schemas import LIFTS, MAPS, SCORES, STAGE_TWO
from jobs.lift import LiftConfig, main
from tracking.names import LIFT_RUNS

START, DAYS = date(2025, 1, 6), 120
TREATED, CONTROLS = 40, 50
QUAD = [0.2, 0.2, 0.7, 0.2, 0.7, 0.8, 0.2, 0.8]


def write_tables(folder: Path, effect: float, seed: int = 0) -> dict[str, str]:
    """A catalogue whose lifts are ``effect`` times PE and noise; the flags that read it."""
    rng = np.random.default_rng(seed)
    pe, first = rng.random(TREATED), rng.integers(30, 90, TREATED)
    lift = effect * (pe - pe.mean()) + rng.normal(0, 1, TREATED)
    sales = []
    for i in range(TREATED + CONTROLS):
        search = rng.normal(50, 4, DAYS)
        revenue = rng.uniform(50, 200) + rng.normal(0, 3, DAYS) + 0.3 * search
        if i < TREATED:
            revenue += lift[i] * (np.arange(DAYS) > first[i])
        sales += [
            {"product_id": f"p{i}", "date": START + timedelta(days=t), "revenue": revenue[t], "search_index": search[t]}
            for t in range(DAYS)
        ]
    midnight = datetime(START.year, START.month, START.day, 12, tzinfo=UTC)
    videos = [
        {
            "video_id": f"v{i}", "video_uri": f"v{i}.mp4", "product_id": f"p{i}", "creator_id": f"c{i % 8}",
            "posted_at": midnight + timedelta(days=int(first[i])), "likes": int(rng.integers(1, 999)),
            "comments": int(rng.integers(1, 99)), "shares": int(rng.integers(1, 99)), "views": 10_000,
            "followers": int(rng.integers(10, 10_000)),
        }
        for i in range(TREATED)
    ]  # fmt: skip
    videos.append(videos[0] | {"video_id": "again", "posted_at": videos[0]["posted_at"] + timedelta(days=9)})
    scores = [
        {
            **dict.fromkeys(SCORES.names), "video_id": row["video_id"], "product_id": row["product_id"], "status": "ok",
            "pe_score": pe[i % TREATED] / 50, "pe_score_raw": pe[i % TREATED], "e_score": rng.random(),
            "p_score": rng.random(), "seconds": 4, "e_per_second": rng.random(4).tolist(),
            "product_quads": [QUAD, None, QUAD, QUAD], "predicted_engagement": rng.random(),
        }
        for i, row in enumerate(videos)
    ]  # fmt: skip
    products = [
        {"product_id": f"p{i}", "price": float(rng.uniform(1, 9)), "category": "tea" if i % 2 else "toy"}
        for i in range(TREATED + CONTROLS)
    ]
    tables = {"sales": sales, "videos": videos, "products": products}
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "scores" / "scores").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(scores, schema=SCORES), folder / "scores" / "scores" / "part.parquet")
    return {name: str(folder / f"{name}.parquet") for name in tables} | {"scores": str(folder / "scores")}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_tables(tmp_path_factory.mktemp("planted"), effect=20.0)


@pytest.fixture(scope="module", autouse=True)
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def changed(tables: dict[str, str], name: str, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> dict:
    """The same flags with one table rewritten."""
    path = folder / f"{name}-changed.parquet"
    change(pd.read_parquet(tables[name])).to_parquet(path)
    return tables | {name: str(path)}


def test_a_planted_effect_is_found_and_written_up(planted: dict[str, str], tmp_path: Path, tracked: str):
    output = tmp_path / "out"
    assert main(LiftConfig(**planted, output=str(output), draws=200)) == 0
    verdict = json.loads((output / "verdict.json").read_text())
    assert verdict["supported"] is True
    assert verdict["ci_low"] < 20 < verdict["ci_high"]
    assert verdict["says"][0].startswith("Products sold more, the more of their video's engagement lands on them")
    assert verdict["text"] == " ".join([*verdict["says"], *verdict["does_not_say"], verdict["data_needed"]])
    lifts = pd.read_parquet(output / "lifts.parquet")
    contract = {"video_id", "product_id", "lift", "se", "p_cluster", "p_permutation", "n_controls", "pretrend_p"}
    assert contract <= set(lifts)
    assert pq.read_schema(output / "lifts.parquet").equals(LIFTS)
    assert pq.read_schema(output / "stage2.parquet").equals(STAGE_TWO)
    assert set(lifts["video_id"]) == {f"v{i}" for i in range(TREATED)}
    assert (lifts["n_controls"] == CONTROLS).all()
    second = pd.read_parquet(output / "stage2.parquet")
    assert list(second) == list(ROW)
    assert second["column"].nunique() == 6
    row = second[(second["estimator"] == verdict["estimator"]) & (second["column"] == "PE") & (second["term"] == "PE")]
    assert row["estimate"].iloc[0] == verdict["slope"]
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "Yes, in these data" in page
    assert verdict["data_needed"] in page
    assert "1 left out: a later video of a product" in page
    names = {path.stem for path in (output / "tables").iterdir()}
    for name in names:
        assert "tabular" in (output / "tables" / f"{name}.tex").read_text()
        assert len(pd.read_csv(output / "tables" / f"{name}.csv"))
    assert {"published_columns", "lifts", "specification_curve", "negative_controls", "out_of_sample"} <= names
    client = MlflowClient(tracked)
    (run,) = client.search_runs([client.get_experiment_by_name(LIFT_RUNS).experiment_id])  # pyright: ignore
    assert run.info.status == "FINISHED"
    assert run.data.metrics["pe/slope"] == pytest.approx(verdict["slope"], rel=1e-4)
    assert run.data.params["seed"] == "0"
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "verdict.json", "tables"} <= kept
    plots = [file.path for file in client.list_artifacts(run.info.run_id, "plots")]
    assert sorted(plots) == [f"plots/{name}.svg" for name in ("curve", "events", "forest", "lifts", "scatter")]
    assert run.data.tags["mlflow.note.content"].startswith(verdict["text"])


def test_no_effect_is_not_shown(tmp_path: Path):
    tables = write_tables(tmp_path, effect=0.0, seed=2)
    assert main(LiftConfig(**tables, output=str(tmp_path / "out"), draws=200)) == 0
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["supported"] is False
    assert verdict["ci_low"] < 0 < verdict["ci_high"]
    assert verdict["does_not_say"][0].startswith(
        "That products sell more where more of the engagement lands on them is not shown"
    )
    assert f"would need about {verdict['n_needed']:,}" in verdict["data_needed"]
    assert verdict["n_needed"] > TREATED
    assert "Not shown by these data" in (tmp_path / "out" / "report.html").read_text()


def test_ids_are_text_on_the_page_whatever_they_hold(planted: dict[str, str], tmp_path: Path):
    def hostile(ids: pd.Series) -> pd.Series:
        return ids.str.replace("v", "<b>$v_")

    tables = changed(planted, "videos", tmp_path, lambda t: t.assign(video_id=hostile(t["video_id"])))
    folder = tmp_path / "scores" / "scores"
    folder.mkdir(parents=True)
    scores = pd.read_parquet(Path(planted["scores"]) / "scores")
    scores["video_id"] = hostile(scores["video_id"])
    pq.write_table(pa.Table.from_pandas(scores, schema=SCORES, preserve_index=False), folder / "part.parquet")
    tables |= {"scores": str(tmp_path / "scores")}
    assert main(LiftConfig(**tables, output=str(tmp_path / "out"), draws=20)) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;$v_1" in page
    assert "<b>" not in page


def test_many_lifts_are_estimated_on_ray_as_few_are_here(
    planted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tables = []
    for name, at_once in (("here", TREATED), ("ray", 15)):
        monkeypatch.setattr("jobs.steps.lift.LIFTS_A_TASK", at_once)
        main(LiftConfig(**planted, output=str(tmp_path / name), draws=20))
        tables.append(pd.read_parquet(tmp_path / name / "lifts.parquet"))
    pd.testing.assert_frame_equal(*tables)


def test_flags_change_the_study(planted: dict[str, str], tmp_path: Path):
    """Each changes what it should, beside the default."""

    def figures(name: str, **flags: object) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
        output = tmp_path / name
        main(LiftConfig(**(planted | {"output": str(output), "draws": 50} | flags)))  # pyright: ignore
        verdict = json.loads((output / "verdict.json").read_text())
        controls = pd.read_csv(output / "tables" / "negative_controls.csv").set_index("score")
        return verdict, pd.read_parquet(output / "stage2.parquet"), controls

    default, second, controls = figures("default")
    assert {"followers", "price", "category_toy"} <= set(second["term"])
    random = "PE by a model of other weights"
    assert random not in controls.index
    other, second, controls = figures("other", covariates=(), controls=("price",), placebo_scores=planted["scores"])
    assert other["slope"] != default["slope"]
    assert {"followers", "price"} & set(second["term"]) == {"price"}
    assert controls["estimate"][random] == pytest.approx(controls["estimate"]["PE"])
    assert figures("later", min_days=45)[0]["n"] < default["n"]
    assert figures("seed", seed=1)[0]["ci_low"] != default["ci_low"]


def test_saved_maps_make_the_negative_controls_exact(planted: dict[str, str], tmp_path: Path):
    scores = tmp_path / "scores"
    (scores / "maps").mkdir(parents=True)
    (scores / "scores").mkdir()
    table = pq.read_table(Path(planted["scores"]) / "scores" / "part.parquet")
    pq.write_table(table, scores / "scores" / "part.parquet")
    rng = np.random.default_rng(0)
    maps = [
        {
            "video_id": f"v{i}", "e_uint8": rng.integers(0, 256, (4, 112, 112), dtype=np.uint8).tobytes(), "e_min": 0.0,
            "e_max": 1.0, "seconds": 4, "height": 112, "width": 112, "product_quads": [QUAD, None, QUAD, QUAD],
        }
        for i in range(TREATED)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(maps, schema=MAPS), scores / "maps" / "part.parquet")
    found = {}
    for name, folder in (("with", str(scores)), ("without", planted["scores"])):
        output = tmp_path / name
        main(LiftConfig(**(planted | {"scores": folder}), output=str(output), draws=20))
        found[name] = pd.read_csv(output / "tables" / "negative_controls.csv").set_index("score")["estimate"]
    assert found["with"]["PE"] == found["without"]["PE"]
    assert found["with"].iloc[1] != found["without"].iloc[1]


def test_rolling_sums_are_rebuilt_in_the_way_that_is_asked_for(planted: dict[str, str], tmp_path: Path):
    def rolled(sales: pd.DataFrame) -> pd.DataFrame:
        sums = sales.groupby("product_id")["revenue"].rolling(30).sum().droplevel(0)
        return sales.assign(revenue_30d=sums).drop(columns="revenue").dropna()

    tables = changed(planted, "sales", tmp_path, rolled)
    slopes = {}
    for rebuild in ("published", "denton_cholette"):
        output = tmp_path / rebuild
        assert main(LiftConfig(**tables, output=str(output), rebuild=rebuild, min_days=10, draws=20)) == 0  # pyright: ignore
        slopes[rebuild] = json.loads((output / "verdict.json").read_text())["slope"]
        assert "90 products had rolling 30-day sums only" in (output / "report.html").read_text()
        curve = pd.read_csv(output / "tables" / "specification_curve.csv")
        assert curve["sales"].nunique() == 3
    assert slopes["published"] != slopes["denton_cholette"]


def test_a_dry_run_says_what_would_be_compared_and_writes_nothing(
    planted: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    twice = tmp_path / "scores" / "scores"  # as a scoring job that was stopped can leave them
    twice.mkdir(parents=True)
    for name in ("part", "again"):
        shutil.copy(Path(planted["scores"]) / "scores" / "part.parquet", twice / f"{name}.parquet")
    tables = planted | {"scores": str(twice.parent)}
    assert main(LiftConfig(**tables, output=str(tmp_path / "out"), dry_run=True)) == 0
    said = capsys.readouterr().out
    assert f"{TREATED} lifts, {CONTROLS} controls each" in said
    assert "left out, 1: a later video of a product" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "flags", "says"),
    [
        ("sales", lambda t: t.assign(revenue=-1e400), {}, "expected a number"),
        ("sales", lambda t: pd.concat([t, t.head(1)]), {}, "was already given"),
        ("sales", lambda t: t.assign(date="May the 1st"), {}, "expected a day such as"),
        ("sales", lambda t: t.drop(columns="revenue"), {}, "neither revenue .* nor revenue_30d"),
        ("sales", lambda t: t[t["product_id"].str[1:].astype(int) < TREATED], {}, "0 products can be controls"),
        ("sales", lambda t: t[t["product_id"].str[1:].astype(int) >= TREATED], {}, "no product is treated"),
        ("videos", lambda t: t.assign(posted_at=datetime(2020, 1, 1, tzinfo=UTC)), {}, "no product is treated"),
        ("videos", lambda t: t.head(5), {}, "5 lifts can be estimated"),
        ("videos", lambda t: t.drop(columns="posted_at"), {}, "no column posted_at"),
        ("videos", lambda t: t, {"controls": ("fame",)}, "--controls fame: fame is no number column"),
        ("videos", lambda t: t.assign(age=[None, *[1.0] * 40]), {"controls": ("age",)}, "age is null"),
        ("videos", lambda t: t, {"draws": 0}, "--draws is 0"),
        ("videos", lambda t: t, {"min_days": 0}, "--min-days is 0"),
        ("videos", lambda t: t, {"max_gap_days": -1}, "--max-gap-days is -1"),
        ("videos", lambda t: t, {"seed": -1}, "--seed is -1"),
        ("videos", lambda t: t, {"scores": "nowhere"}, "nowhere holds no scores"),
    ],
)  # fmt: skip
def test_what_makes_no_study_is_refused_and_writes_nothing(
    planted: dict[str, str], tmp_path: Path, name: str, change: Callable, flags: dict, says: str
):
    tables = changed(planted, name, tmp_path, change)
    with pytest.raises(Refused, match=says):
        main(LiftConfig(**(tables | {"output": str(tmp_path / "out")} | flags)))  # pyright: ignore
    assert not (tmp_path / "out" / "verdict.json").exists()


def test_a_constant_pe_is_refused_with_what_to_look_at(planted: dict[str, str], tmp_path: Path):
    folder = tmp_path / "scores" / "scores"
    folder.mkdir(parents=True)
    table = pd.read_parquet(Path(planted["scores"]) / "scores").assign(pe_score=0.0)
    pq.write_table(pa.Table.from_pandas(table, schema=SCORES, preserve_index=False), folder / "part.parquet")
    with pytest.raises(Refused, match="pe_score is 0 for all 40 videos with a lift"):
        main(LiftConfig(**(planted | {"scores": str(tmp_path / "scores")}), output=str(tmp_path / "out")))


def test_the_command_refuses_with_2_and_without_a_trace(planted: dict[str, str], tmp_path: Path):
    flags = [f"--{name}={value}" for name, value in (planted | {"sales": "nowhere.csv"}).items()]
    command = [sys.executable, "-m", "jobs.lift", *flags, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 2
    assert "refused: nowhere.csv" in done.stderr
    assert "Traceback" not in done.stderr
