"""In which order a catalogue is scored, and that its results can be read meanwhile."""

import datetime
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_output import scored

from catalog.errors import Refused
from catalog.schemas import VIDEOS
from scoring.order import ordered
from scoring.output import OutputFolder

DAYS = [3, None, 9, 3, 1]


def videos(**columns: list) -> pa.Table:
    given = {"video_id": list("abcde"), "video_uri": ["x.mp4"] * 5} | columns
    return pa.table({f.name: pa.array(given.pop(f.name, [None] * 5), f.type) for f in VIDEOS} | given)


def posted() -> list[datetime.datetime | None]:
    return [day and datetime.datetime(2026, 11, day, tzinfo=datetime.UTC) for day in DAYS]


def order_of(table: pa.Table, order: str, seed: int = 0) -> str:
    return "".join(ordered(table, order, seed, "videos.parquet")["video_id"].to_pylist())  # pyright: ignore


def test_newest_first_with_ties_as_in_the_table_and_unknowns_last():
    assert order_of(videos(posted_at=posted()), "newest") == "cadeb"


def test_reach_is_views_or_where_they_are_unknown_followers():
    views = [10, 500, None, None, 20]
    assert order_of(videos(views=views), "largest-reach") == "beacd"
    assert order_of(videos(views=views, followers=[9, 9, 100, None, 9]), "largest-reach") == "bcead"


def test_a_random_order_is_the_seeds_and_holds_every_row_once():
    table = videos()
    first, again, other = order_of(table, "random", 1), order_of(table, "random", 1), order_of(table, "random", 2)
    assert first == again != other
    assert sorted(first) == sorted(other) == list("abcde")
    assert order_of(table, "table") == "abcde"


def test_an_order_by_what_nobody_knows_is_refused():
    with pytest.raises(Refused, match=r"--order newest: videos.parquet has no posted_at; add the column"):
        order_of(videos(), "newest")
    with pytest.raises(Refused, match="has no views or followers"):
        order_of(videos(followers=[None] * 5), "largest-reach")
    with pytest.raises(Refused, match="followers are no counts"):
        order_of(videos(followers=["many"] * 5), "largest-reach")


def test_a_reader_that_polls_the_folder_meets_whole_files_only(tmp_path: Path):
    output, rows, parts = OutputFolder(str(tmp_path)), 500, 40
    read, problems = set(), []
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            for part in (tmp_path / "scores").glob("*.parquet"):
                try:
                    if part not in read and pq.read_table(part).num_rows == rows:
                        read.add(part)
                except (OSError, pa.ArrowException) as error:
                    problems.append(f"{part}: {error}")

    reader = threading.Thread(target=poll)
    reader.start()
    for part in range(parts):
        output.write(scored(*(f"{part}-{row}" for row in range(rows))))
    ended.set()
    reader.join()
    assert problems == []
    assert len(read) >= parts // 2  # it did read while they were written
