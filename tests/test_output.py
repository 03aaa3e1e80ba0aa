"""The output folder holds whole files of one config, and every row once, whatever happened before."""

import dataclasses
import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import ErrorCode, Refused, Stage, VideoError
from catalog.schemas import MAPS, SCORES, Status
from scoring.output import OutputFolder, read_scores
from scoring.rows import Provenance, ScoreRow, failed_row
from scoring.run import LostRowsError, Plan, verify

CONFIG = {"max_seconds": 60.0, "scores_depend_on": {"model": "aaaa", "max_seconds": 60.0, "method": "gradient"}}
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
        rows.append(ScoreRow(scores, {"decode": 1.0, "locate": 0.0, "engage": 2.0}, a_map))
    return ScoreRow.table(rows, PROVENANCE, with_maps)


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out"))


def files(output: OutputFolder) -> dict[str, bytes]:
    folder = Path(output.uri)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def doubled_part(output: OutputFolder, *video_ids: str) -> None:
    """Rows in a further file, as a changed cut into blocks would leave them."""
    part = Path(output.uri) / "scores" / "zzz.parquet"
    pq.write_table(scored(*video_ids).select(SCORES.names), part)


def test_written_rows_are_read_back_with_every_column(output: OutputFolder):
    tally = output.write(scored("a", "b"))
    output.write(scored("c", status=Status.FAILED))
    table = read_scores(output.uri)
    assert table.schema.names == SCORES.names
    assert sorted(table["video_id"].to_pylist()) == sorted(output.ids()) == ["a", "b", "c"]
    assert set(table["config_hash"].to_pylist()) == {"hash-a"}
    assert tally["core_s"].to_pylist() == [{"decode": 1.0, "locate": 0.0, "engage": 2.0}] * 2
    assert tally["status"].to_pylist() == ["no_product"] * 2


def test_the_same_rows_written_again_change_nothing(output: OutputFolder):
    rows = scored("a", "b", with_maps=True)
    output.write(rows)
    before = files(output)
    output.write(rows)
    assert files(output) == before
    assert sorted(output.ids()) == ["a", "b"]


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
    output.claim(CONFIG, "hash-a", set())
    assert json.loads(files(output)["config.json"])["max_seconds"] == 60.0
    output.claim(CONFIG, "hash-a", set())
    assert list(files(output)) == ["config.json"]


def test_another_config_is_refused_naming_what_differs(output: OutputFolder):
    output.claim(CONFIG, "hash-a", set())
    output.write(scored("a"))
    before = files(output)
    other = {"scores_depend_on": {"model": "bbbb", "max_seconds": 60.0, "decoder": "pyav"}}
    with pytest.raises(Refused) as refused:
        output.claim(other, "hash-b", set())
    message = str(refused.value)
    assert output.uri in message
    assert "model was 'aaaa', is 'bbbb'" in message
    assert "method was 'gradient', is None" in message
    assert "decoder was None, is 'pyav'" in message
    assert "max_seconds" not in message
    assert "--output" in message
    assert files(output) == before


def test_a_broken_config_file_is_refused(output: OutputFolder):
    output.claim(CONFIG, "hash-a", set())
    (Path(output.uri) / "config.json").write_text('{"model": ')
    with pytest.raises(Refused, match=r"config\.json cannot be read"):
        output.claim(CONFIG, "hash-a", set())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Refused, match="cannot be written"):
        OutputFolder(str(tmp_path / "file" / "out")).claim(CONFIG, "hash-a", set())


def test_a_new_folder_has_nothing_finished(output: OutputFolder):
    output.claim(CONFIG, "hash-a", set())
    assert output.reopen(retry_failed=False) == (set(), 0)
    assert output.ids() == []
    with pytest.raises(Refused, match="holds no scores"):
        read_scores(output.uri)


def test_finished_ids_are_known_and_failed_rows_counted(output: OutputFolder):
    output.write(scored("a", "b"))
    output.write(scored("c", "d", "e", status=Status.FAILED))
    before = files(output)
    assert output.reopen(retry_failed=False) == ({"a", "b", "c", "d", "e"}, 3)
    assert files(output) == before


def test_rows_that_are_there_twice_are_cut_to_one(output: OutputFolder):
    output.write(scored("a", "b", "c"))
    doubled_part(output, "b", "d", "d")
    finished, _ = output.reopen(retry_failed=False)
    assert finished == {"a", "b", "c", "d"}
    assert sorted(output.ids()) == ["a", "b", "c", "d"]


def test_a_video_has_one_map_whatever_the_crash_was_between(output: OutputFolder):
    output.write(scored("a", "b", "c", with_maps=True))
    (maps,) = (Path(output.uri) / "maps").glob("*.parquet")
    output.write(scored("b", "d", with_maps=True))
    pq.write_table(pq.read_table(maps), maps.with_name("of_no_scores.parquet"))
    output.reopen(retry_failed=False)
    assert sorted(output.ids()) == ["a", "b", "c", "d"]
    assert sorted(pq.read_table(maps.parent)["video_id"].to_pylist()) == ["a", "b", "c", "d"]


def test_rows_of_videos_that_left_the_table_are_refused(output: OutputFolder):
    output.claim(CONFIG, "hash-a", {"a", "b"})
    output.write(scored("a", "b"))
    before = files(output)
    with pytest.raises(Refused, match="scores of 1 videos that the videos table does not have"):
        output.claim(CONFIG | {"limit": 1}, "hash-a", {"a", "c"})
    assert files(output) == before
    output.claim(CONFIG, "hash-a", {"a", "b", "c"})


def test_retry_takes_out_failed_rows_and_no_others(output: OutputFolder):
    output.write(pa.concat_tables([scored("a", "b"), scored("c", status=Status.FAILED)]))
    output.write(scored("d", "e", status=Status.FAILED))
    output.write(scored("f"))
    output.finish({"rows": 6})
    kept = read_scores(output.uri).to_pylist()
    finished, failed = output.reopen(retry_failed=True)
    assert "run.json" not in files(output)
    assert (finished, failed) == ({"a", "b", "f"}, 0)
    left = {row["video_id"]: row for row in read_scores(output.uri).to_pylist()}
    assert left == {row["video_id"]: row for row in kept if row["status"] != "failed"}


def test_rows_tried_again_are_found_beside_the_old_ones(output: OutputFolder):
    output.write(scored("a", "b", status=Status.FAILED))
    output.reopen(retry_failed=True)
    output.write(scored("a", "b"))
    assert output.reopen(retry_failed=False) == ({"a", "b"}, 0)
    assert sorted(output.ids()) == ["a", "b"]


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
    assert output.reopen(retry_failed=False) == ({"a"}, 0)
    assert "scores/notes.txt" in files(output)


def test_the_folder_is_finished_only_while_its_summary_is_there(output: OutputFolder):
    output.unfinish()
    output.finish({"rows": 2})
    assert json.loads(files(output)["run.json"]) == {"rows": 2}
    output.unfinish()
    assert "run.json" not in files(output)


def plan(output: OutputFolder, *video_ids: str) -> Plan:
    return Plan(pa.table({}), frozenset(video_ids), {}, 0, output, "hash-a", 112)


def test_lost_and_doubled_rows_are_found(output: OutputFolder):
    output.write(scored("a", "b"))
    verify(plan(output, "a", "b"))
    with pytest.raises(LostRowsError, match=r"1 videos have no row \(such as \['c'\]\), 0 have several"):
        verify(plan(output, "a", "b", "c"))
    doubled_part(output, "b")
    with pytest.raises(LostRowsError, match=r"0 videos have no row .*1 have several \(such as \['b'\]\)"):
        verify(plan(output, "a", "b"))
    output.reopen(retry_failed=False)
    verify(plan(output, "a", "b"))


def test_rows_of_a_longer_run_than_the_present_one_are_no_error(output: OutputFolder):
    output.write(scored("a", "b", "c"))
    verify(dataclasses.replace(plan(output, "a"), finished=1))
