"""Of an earlier run exactly those rows are carried over that nothing has changed under."""

import logging
from pathlib import Path

import pyarrow as pa
import pytest

import jobs.steps.score as job
import scoring.output
from catalog import storage
from catalog.errors import Refused
from catalog.schemas import SCORES
from jobs.command import NodesLostError
from jobs.score import ScoreConfig
from scoring.fingerprints import Images, fingerprints
from scoring.graph import Resources
from scoring.output import OutputFolder, read_scores
from scoring.plan import Plan
from scoring.rows import Provenance, ScoreRow
from scoring.since import unchanged
from tracking.registry import StoredModel
from tracking.runs import Run

PROVENANCE = Provenance("model.pt", "1", "run-1", "hash-a", "commit")
CONFIG = {"save_maps": True, "scores_depend_on": {"model": "aaaa"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d", "photo"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def videos(folder: Path, **products: str | None) -> pa.Table:
    ids = list(products)
    uris = [str(folder / video_id) for video_id in ids]
    return pa.table({"video_id": ids, "video_uri": uris, "product_id": pa.array(products.values(), pa.string())})


def images(folder: Path) -> Images:
    return {"p": ((str(folder / "photo"),), None)}


def earlier_run(folder: Path, **products: str | None) -> OutputFolder:
    """Scores of these videos, two a part, "d" failed, with maps of all others."""
    run = OutputFolder(str(folder / "november"))
    name = fingerprints(images(folder))
    rows = []
    for video_id, product_id in products.items():
        row = {"video_id": video_id, "product_id": product_id}
        row |= {"status": "ok", "e_score": 0.5, "fingerprint": name(str(folder / video_id), product_id)}
        a_map = {"video_id": video_id, "e_uint8": video_id.encode(), "e_min": 0.0, "e_max": 1.0}
        a_map |= {"seconds": 1, "height": 1, "width": 1, "product_quads": None}
        if video_id == "d":
            row |= {"status": "failed", "error_code": "truncated", "e_score": None}
        rows.append(ScoreRow(row, {}, None if video_id == "d" else a_map))
    run.begin(CONFIG, "hash-a", run.rows(), frozenset())
    for start in range(0, len(rows), 2):
        run.write(ScoreRow.table(rows[start : start + 2], PROVENANCE, with_maps=True))
    return run


def still_held(run: OutputFolder, table: pa.Table, folder: Path, retry_failed: bool = False) -> set[str]:
    found = unchanged(run, CONFIG, "hash-a", table, images(folder), retry_failed)
    return set(found["video_id"].to_pylist())


def test_rows_hold_while_nothing_has_changed(folder: Path):
    run = earlier_run(folder, a=None, b="p", c=None, d=None)
    now = videos(folder, a=None, b="p", c=None, d=None)
    assert still_held(run, now, folder) == {"a", "b", "c", "d"}
    assert still_held(run, now, folder, retry_failed=True) == {"a", "b", "c"}


def test_new_changed_and_vanished_videos_are_scored(folder: Path):
    run = earlier_run(folder, a=None, b=None, c=None)
    (folder / "a").write_text("content of A")
    (folder / "b").unlink()
    assert still_held(run, videos(folder, a=None, b=None, c=None, d=None), folder) == {"c"}


def test_videos_of_a_changed_product_are_scored(folder: Path):
    run = earlier_run(folder, a=None, b="p", c=None, d="p")
    assert still_held(run, videos(folder, a="p", b=None, c=None, d="p"), folder) == {"c", "d"}
    (folder / "photo").write_text("another photo")
    assert still_held(run, videos(folder, a=None, b="p", c=None, d="p"), folder) == {"a", "c"}


def test_an_outline_is_part_of_the_product(folder: Path):
    run = earlier_run(folder, a=None, b="p")
    outlined: Images = {"p": ((str(folder / "photo"),), ((0.0, 0.0, 1.0, 0.0, 1.0, 1.0),))}
    found = unchanged(run, CONFIG, "hash-a", videos(folder, a=None, b="p"), outlined, False)
    assert found["video_id"].to_pylist() == ["a"]


def test_carried_rows_come_with_their_maps_and_every_column(folder: Path):
    run = earlier_run(folder, a=None, b="p", c=None, d=None)
    (folder / "a").write_text("content of A")
    now = videos(folder, a=None, b="p", c=None, d=None)
    december = OutputFolder(str(folder / "december"))
    carried = unchanged(run, CONFIG, "hash-a", now, images(folder), False)
    for _ in range(2):  # a job that was killed in between does it again
        december.carry(run, carried)
        rows = {row["video_id"]: row for row in read_scores(december.uri).to_pylist()}
        before = {row["video_id"]: row for row in read_scores(run.uri).to_pylist()}
        assert rows == {video_id: before[video_id] for video_id in "bcd"}
        assert {row["video_id"]: row["e_uint8"] for row in december.maps()} == {"b": b"b", "c": b"c"}
    assert read_scores(december.uri).schema.names == SCORES.names


def test_a_folder_is_listed_once_however_many_files_are_carried_or_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run = earlier_run(folder, a=None, b="p", c=None, d=None)
    december = OutputFolder(str(folder / "december"))
    asked, listed = list[str](), storage.files_in
    monkeypatch.setattr(storage, "files_in", lambda uri: asked.append(uri) or listed(uri))
    monkeypatch.setattr(scoring.output, "TOLD_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)
    december.carry(run, run.rows().select(["video_id", "part"]))
    assert asked == [f"{run.uri}/scores", f"{run.uri}/maps"]
    assert caplog.messages[-2:] == ["carrying over: 1 of 2 files", "carrying over: 2 of 2 files"]
    asked.clear()
    december.repair(december.rows(), retried=frozenset("ac"))
    assert asked == [f"{december.uri}/scores", f"{december.uri}/maps"]
    assert caplog.messages[-1] == "taking out rows: 2 of 2 files"
    assert sorted(december.rows()["video_id"].to_pylist()) == ["b", "d"]
    assert [row["video_id"] for row in december.maps()] == ["b"]


def test_lost_nodes_cost_no_carried_row_and_no_retry(folder: Path, monkeypatch: pytest.MonkeyPatch):
    run, december = earlier_run(folder, a=None), OutputFolder(str(folder / "december"))
    row = {"video_id": "d", "product_id": None, "status": "failed", "error_code": "not_found"}
    december.write(ScoreRow.table([ScoreRow(row, {})], PROVENANCE, with_maps=False))
    left, carried = videos(folder, d=None), run.rows().select(["video_id", "part"])
    plan = Plan(
        left, pa.array(["a", "d"]), {}, 0, 0, december, december.rows(), frozenset("d"), CONFIG, "hash-a", 112,
        since=run, carried=carried,
    )  # fmt: skip
    seen = []

    def scoring_job(plan: Plan, *rest: object) -> None:
        seen.append((plan.videos["video_id"].to_pylist(), plan.output.rows()["video_id"].to_pylist()))
        if len(seen) == 1:
            raise NodesLostError({"CPU": 1.0})  # before any video was scored
        plan.output.write(ScoreRow.table([ScoreRow(row | {"status": "ok"}, {})], PROVENANCE, with_maps=False))

    monkeypatch.setattr(job, "run_scoring", scoring_job)
    config, model = ScoreConfig("videos", december.uri), StoredModel("model.pt", "1", "digest", b"")
    assert job._score(config, plan, model, Run(None), Resources(1, 1, 1, 1, 0.5, 0.0), 1.0) == 0
    assert seen == [(["d"], ["a"])] * 2
    assert {r["video_id"]: r["status"] for r in read_scores(december.uri).to_pylist()} == {"a": "ok", "d": "ok"}


def test_another_model_or_no_scores_at_all_are_refused(folder: Path):
    run = earlier_run(folder, a=None)
    table = videos(folder, a=None)
    with pytest.raises(Refused, match=r"another model or config \(model was 'aaaa', is 'bbbb'\).*leave --since out"):
        unchanged(run, {"scores_depend_on": {"model": "bbbb"}}, "hash-b", table, {}, False)
    with pytest.raises(Refused, match="holds no scores"):
        unchanged(OutputFolder(str(folder / "absent")), CONFIG, "hash-a", table, {}, False)
    run.begin(CONFIG | {"save_maps": False}, "hash-a", run.rows(), frozenset())
    with pytest.raises(Refused, match="without --save-maps"):
        unchanged(run, CONFIG, "hash-a", table, {}, False)


def test_rows_of_a_run_that_knew_no_fingerprints_are_scored_again(folder: Path):
    run = OutputFolder(str(folder / "october"))
    row = ScoreRow({"video_id": "a", "product_id": None, "status": "ok"}, {})
    run.write(ScoreRow.table([row], PROVENANCE, with_maps=False))
    assert unchanged(run, {"scores_depend_on": {}}, "hash-a", videos(folder, a=None), {}, False).num_rows == 0
