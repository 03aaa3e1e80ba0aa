"""The output folder holds whole files of one config, and every row once, whatever happened before."""

import dataclasses
import json
import threading
import uuid
from collections.abc import Set
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.steps.score as job
from catalog.errors import ErrorCode, Refused, Stage, VideoError
from catalog.schemas import MAPS, SCORES, Status
from jobs.score import ScoreConfig
from scoring.output import OutputFolder, read_scores
from scoring.plan import Plan, sampled
from scoring.rows import Provenance, ScoreRow, failed_row
from scoring.run import LostRowsError, finish, verify
from scoring.tally import Tally
from tracking.registry import StoredModel

CONFIG = {
    "max_seconds": 60.0,
    "save_maps": False,
    "scores_depend_on": {"model": "aaaa", "max_seconds": 60.0, "method": "gradient"},
}
PROVENANCE = Provenance("model.pt", "1", None, "hash-a", "commit")


def scored(*video_ids: str, status: Status = Status.NO_PRODUCT, with_maps: bool = False) -> pa.Table:
    """A block's rows as the sink takes them."""
    rows = []
    for number, video_id in enumerate(video_ids):
        video = {"video_id": video_id, "product_id": None}
        if status == Status.FAILED:
            failure = VideoError(ErrorCode.NOT_FOUND, f"{video_id}.mp4: no such file", Stage.FETCH)
            rows.append(ScoreRow.failed(failed_row(video, failure)))
            continue
        a_map = {"video_id": video_id, "e_uint8": b"\0", "e_min": 0.0, "e_max": 1.0}
        a_map |= {"seconds": 1, "height": 1, "width": 1, "product_quads": None}
        scores = {**video, "status": str(status), "e_score": float(number), "seconds": 3}
        rows.append(ScoreRow(scores, {"fetch": 0.5, "decode": 1.0, "locate": 0.0, "engage": 2.0}, a_map))
    return ScoreRow.table(rows, PROVENANCE, with_maps)


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out"))


def files(output: OutputFolder) -> dict[str, bytes]:
    folder = Path(output.uri)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ids(output: OutputFolder) -> list[str]:
    return sorted(output.rows()["video_id"].to_pylist())


def table(*video_ids: str, product_id: str | None = None) -> pa.Table:
    ids = pa.array(video_ids, pa.string())
    return pa.table({"video_id": ids, "product_id": pa.array([product_id] * len(ids), pa.string())})


def check(
    output: OutputFolder,
    *video_ids: str,
    config: dict = CONFIG,
    config_hash: str = "hash-a",
    retry_failed: bool = False,
) -> pa.Table:
    return output.check(config, config_hash, table(*video_ids), retry_failed)


def begin(output: OutputFolder, config: dict = CONFIG, retried: Set[str] = frozenset()) -> None:
    output.begin(config, "hash-a", output.rows(), retried)


def doubled_part(output: OutputFolder, *video_ids: str) -> None:
    """Rows in a further file, as a changed cut into blocks would leave them."""
    part = Path(output.uri) / "scores" / "zzz.parquet"
    pq.write_table(scored(*video_ids).select(SCORES.names), part)


def test_written_rows_are_read_back_with_every_column(output: OutputFolder):
    tally = output.write(scored("a", "b"))
    output.write(scored("c", status=Status.FAILED))
    table = read_scores(output.uri)
    assert table.schema.names == SCORES.names
    assert sorted(table["video_id"].to_pylist()) == ids(output) == ["a", "b", "c"]
    assert set(table["config_hash"].to_pylist()) == {"hash-a"}
    assert tally["core_s"].to_pylist() == [{"fetch": 0.5, "decode": 1.0, "locate": 0.0, "engage": 2.0}] * 2
    assert tally["status"].to_pylist() == ["no_product"] * 2


def test_the_same_rows_written_again_change_nothing(output: OutputFolder):
    rows = scored("a", "b", with_maps=True)
    output.write(rows)
    before = files(output)
    output.write(rows)
    assert files(output) == before
    assert ids(output) == ["a", "b"]


def test_maps_are_written_beside_the_scores_only_where_there_are_any(output: OutputFolder):
    output.write(scored("a", "b", with_maps=True))
    output.write(scored("c"))
    output.write(scored("d", status=Status.FAILED, with_maps=True))
    (maps,) = (Path(output.uri) / "maps").glob("*.parquet")
    table = pq.read_table(maps)
    assert table.schema.names == MAPS.names
    assert table["video_id"].to_pylist() == ["a", "b"]
    assert "map" not in read_scores(output.uri).column_names


def test_the_folder_goes_on_with_the_config_it_was_begun_with(output: OutputFolder):
    begin(output)
    assert json.loads(files(output)["config.json"])["max_seconds"] == 60.0
    output.write(scored("a"))
    assert check(output, "a").num_rows == 1
    begin(output)
    assert ids(output) == ["a"]


def test_checking_writes_nothing(output: OutputFolder):
    assert check(output, "a").num_rows == 0
    assert not Path(output.uri).exists()
    output.write(scored("a", "b", status=Status.FAILED))
    doubled_part(output, "a")
    output.finish({"rows": 2})
    before = files(output)
    check(output, "a", "b", retry_failed=True)
    assert files(output) == before


def test_another_config_is_refused_naming_what_differs(output: OutputFolder):
    begin(output)
    output.write(scored("a"))
    before = files(output)
    other = CONFIG | {"scores_depend_on": {"model": "bbbb", "max_seconds": 60.0, "decoder": "pyav"}}
    with pytest.raises(Refused) as refused:
        check(output, "a", config=other, config_hash="hash-b")
    message = str(refused.value)
    assert output.uri in message
    assert "model was 'aaaa', is 'bbbb'" in message
    assert "method was 'gradient', is None" in message
    assert "decoder was None, is 'pyav'" in message
    assert "max_seconds" not in message
    assert "--output" in message
    assert files(output) == before


def test_the_rows_themselves_say_of_which_config_they_are(output: OutputFolder):
    output.write(scored("a"))
    with pytest.raises(Refused, match=r"another config \(config.json does not say which\)"):
        check(output, "a", config_hash="hash-b")


def test_a_folder_without_any_row_takes_any_config(output: OutputFolder):
    begin(output)
    check(output, "a", config=CONFIG | {"scores_depend_on": {"model": "bbbb"}}, config_hash="hash-b")


def test_maps_of_some_videos_only_are_refused(output: OutputFolder):
    begin(output)
    output.write(scored("a"))
    with pytest.raises(Refused, match="was begun without --save-maps"):
        check(output, "a", "b", config=CONFIG | {"save_maps": True})


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", '{"model": '), ("config.json", "[]"), ("scores/half.parquet", "PAR1")]
)
def test_a_broken_file_is_refused_by_name(output: OutputFolder, name: str, content: str):
    begin(output)
    output.write(scored("a"))
    (Path(output.uri) / name).write_text(content)
    with pytest.raises(Refused, match=name):
        check(output, "a")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Refused, match="cannot be written"):
        check(OutputFolder(str(tmp_path / "file" / "out")), "a")


def test_a_new_folder_holds_nothing(output: OutputFolder):
    begin(output)
    assert ids(output) == []
    with pytest.raises(Refused, match="holds no scores"):
        read_scores(output.uri)


def test_a_folder_in_order_is_gone_on_with_as_it_is(output: OutputFolder):
    begin(output)
    output.write(scored("a", "b", with_maps=True))
    output.write(scored("c", "d", "e", status=Status.FAILED))
    before = files(output)
    begin(output)
    assert files(output) == before


def test_rows_that_are_there_twice_are_cut_to_one(output: OutputFolder):
    output.write(scored("a", "b", "c"))
    doubled_part(output, "b", "d", "d")
    begin(output)
    assert ids(output) == ["a", "b", "c", "d"]


def test_a_video_has_one_map_whatever_the_crash_was_between(output: OutputFolder):
    output.write(scored("a", "b", "c", with_maps=True))
    (maps,) = (Path(output.uri) / "maps").glob("*.parquet")
    output.write(scored("b", "d", with_maps=True))
    pq.write_table(pq.read_table(maps), maps.with_name("of_no_scores.parquet"))
    begin(output)
    assert ids(output) == ["a", "b", "c", "d"]
    assert sorted(pq.read_table(maps.parent)["video_id"].to_pylist()) == ["a", "b", "c", "d"]


def test_rows_of_videos_that_left_the_table_are_refused(output: OutputFolder):
    output.write(scored("a", "b"))
    before = files(output)
    with pytest.raises(Refused, match=r"scores of 1 videos that the videos table does not have \(such as b\)"):
        check(output, "a", "c")
    assert files(output) == before
    check(output, "a", "b", "c")


def test_another_product_of_a_scored_video_is_refused(output: OutputFolder):
    output.write(pa.concat_tables([scored("a"), scored("b", status=Status.FAILED)]))
    with pytest.raises(Refused, match=r"2 videos with another product_id .* \(such as a\)"):
        output.check(CONFIG, "hash-a", table("a", "b", product_id="p1"), False)
    with pytest.raises(Refused, match=r"1 videos with another product_id"):  # the other is scored again
        output.check(CONFIG, "hash-a", table("a", "b", product_id="p1"), True)


def test_other_images_of_a_scored_product_are_refused_and_further_products_are_not(output: OutputFolder):
    rows = scored("a")
    rows = rows.set_column(rows.schema.get_field_index("product_id"), "product_id", pa.array(["p1"]))
    begin(output, CONFIG | {"product_images": {"p1": "1111"}})
    output.write(rows)
    videos = table("a", product_id="p1")
    output.check(CONFIG | {"product_images": {"p1": "1111", "p2": "2222"}}, "hash-a", videos, False)
    with pytest.raises(Refused, match=r"other images of 1 products \(such as p1\)"):
        output.check(CONFIG | {"product_images": {"p1": "9999"}}, "hash-a", videos, False)


def test_retry_takes_out_the_rows_of_the_given_videos_and_no_others(output: OutputFolder):
    output.write(pa.concat_tables([scored("a", "b"), scored("c", status=Status.FAILED)]))
    output.write(scored("d", "e", status=Status.FAILED))
    output.write(scored("f"))
    output.finish({"rows": 6})
    kept = read_scores(output.uri).to_pylist()
    begin(output, retried={"c", "d"})
    assert "run.json" not in files(output)
    left = {row["video_id"]: row for row in read_scores(output.uri).to_pylist()}
    assert left == {row["video_id"]: row for row in kept if row["video_id"] not in "cd"}


def test_rows_tried_again_are_found_beside_the_old_ones(output: OutputFolder):
    output.write(scored("a", "b", status=Status.FAILED))
    begin(output, retried={"a", "b"})
    output.write(scored("a", "b"))
    begin(output)
    assert output.rows()["status"].to_pylist() == ["no_product", "no_product"]


def test_readers_never_see_part_of_a_file(output: OutputFolder):
    rows = scored(*(f"v{n}" for n in range(300)))
    output.write(rows)
    (part,) = (Path(output.uri) / "scores").glob("*.parquet")
    stop, seen, problems = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(pq.read_table(part).num_rows)
            except Exception as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        output.write(rows)
    stop.set()
    reader.join()
    assert problems == []
    assert set(seen) == {300}
    assert [p.name for p in part.parent.iterdir()] == [part.name]


def test_files_of_other_kinds_are_left_alone(output: OutputFolder):
    output.write(scored("a"))
    (Path(output.uri) / "scores" / ".leftover.part").write_bytes(b"half")
    (Path(output.uri) / "scores" / "notes.txt").write_text("mine")
    begin(output)
    assert ids(output) == ["a"]
    assert "scores/notes.txt" in files(output)


def test_what_killed_writers_left_behind_goes_when_the_folder_is_opened(output: OutputFolder):
    rows = scored("a", with_maps=True)
    output.write(rows)
    whole = files(output)
    begin(output)
    for folder in ("scores", "maps"):
        (Path(output.uri) / folder / f".{uuid.uuid4().hex}.part").write_bytes(b"half")
    begin(output)
    assert files(output).keys() == whole.keys() | {"config.json"}


def test_the_folder_is_finished_only_while_its_summary_is_there(output: OutputFolder):
    output.unfinish()
    output.finish({"rows": 2})
    assert json.loads(files(output)["run.json"]) == {"rows": 2}
    output.unfinish()
    assert "run.json" not in files(output)


def plan(output: OutputFolder, *video_ids: str) -> Plan:
    there, all_ids = output.rows(), pa.array(video_ids, pa.string())
    return Plan(pa.table({}), all_ids, {}, 0, 0, output, there, frozenset(), CONFIG, "hash-a", 112)


def test_lost_rows_are_found(output: OutputFolder):
    output.write(scored("a", "b"))
    assert verify(plan(output, "a", "b")).num_rows == 2
    with pytest.raises(LostRowsError, match=r"1 videos have no row \(such as \['c'\]\)"):
        verify(plan(output, "a", "b", "c"))


def test_rows_that_workers_of_a_killed_job_wrote_late_are_cut_to_one(output: OutputFolder):
    output.write(scored("a", "b"))
    doubled_part(output, "b", "c")
    assert verify(plan(output, "a", "b", "c"))["video_id"].to_pylist() == ["a", "b", "c"]
    assert ids(output) == ["a", "b", "c"]


def test_a_finished_folder_that_a_late_worker_wrote_to_is_mended_by_the_same_command(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch
):
    output.write(scored("a", "b"))
    output.finish({"rows": 3, "videos": {"failed": 1}, "errors": {"not_found": 1}, "wall_seconds": 7.0})
    doubled_part(output, "b")
    monkeypatch.setattr(job.registry, "load", lambda uri: StoredModel(uri, "1", "digest", b""))
    monkeypatch.setattr(job, "plan_scoring", lambda *_: plan(output, "a", "b"))
    assert job.main(ScoreConfig("videos", output.uri)) == 0
    assert ids(output) == ["a", "b"]
    summary = output.summary()
    assert summary is not None
    assert (summary["rows"], summary["errors"], summary["wall_seconds"]) == (2, {}, 7.0)
    assert {status: n for status, n in summary["videos"].items() if n} == {"no_product": 2}
    before = files(output)
    assert job.main(ScoreConfig("videos", output.uri)) == 0
    assert files(output) == before


def test_a_folder_that_another_job_wrote_to_meanwhile_is_refused(output: OutputFolder):
    output.write(scored("a"))
    rows = output.rows()
    output.check_unchanged(rows)
    output.write(scored("b"))
    with pytest.raises(Refused, match="another job has written"):
        output.check_unchanged(rows)


def test_a_sample_is_few_and_always_the_same():
    ids = [f"video {i}" for i in range(75)]
    assert len(sampled(ids, 100)) == 8  # one in ten
    assert sampled(ids, 3) == sampled(ids[::-1], 3) < set(ids)
    assert len(sampled(ids[:2], 8)) == 1
    assert sampled(ids, 0) == sampled([], 8) == frozenset()


def test_a_smaller_sample_of_a_later_run_does_not_replace_a_larger_one(output: OutputFolder):
    output.write(scored("a", "b"))
    tally, earlier = Tally(), {"videos": 2, "gains": []}
    figures = {f"{what}/blur/{order}/1": 0.5 for what in ("deletion", "insertion") for order in ("E", "random")}
    tally.figures = [figures]

    def finished(evidence: dict | None) -> dict:
        planned = dataclasses.replace(plan(output, "a", "b"), evidence=evidence)
        return finish(planned, verify(planned), tally, PROVENANCE, CONFIG, 2)["faithfulness"]

    assert finished(earlier) == earlier
    assert finished(None)["videos"] == finished({"videos": 1})["videos"] == 1
    tally.figures = []
    assert finished(None) is None


def test_rows_of_a_longer_run_than_the_present_one_are_no_error(output: OutputFolder):
    output.write(scored("a", "b", "c"))
    verify(dataclasses.replace(plan(output, "a"), finished=1))
