"""Counts and durations as platforms write them: their exact values, and the job that makes a table of them."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.counts import is_rounded, parse_counts, parse_durations
from catalog.errors import Refused
from catalog.tables import read_videos
from jobs.command import parse
from jobs.import_counts import ImportCountsConfig, main

ROOT = Path(__file__).parents[1]
CRAWLS = ROOT / "../shared/data/tiktok_vn"
NEW_NAMES = {
    "vid_id": "video_id",
    "user_nfollower": "followers",
    "vid_postTime": "posted_at",
    "vid_scrapeTime": "scraped_at",
    "vid_duration": "duration",
    "vid_nview": "views",
    "vid_nlike": "likes",
    "vid_ncomment": "comments",
    "vid_nshare": "shares",
    "vid_nsave": "saves",
}


def crawl(name: str) -> Path:
    path = CRAWLS / name
    if not path.exists():
        pytest.skip("the folder of real test data is not here")
    return path


def text(*cells: str | None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, pa.string())])


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def imported(tmp_path: Path, content: str, *flags: str) -> pa.Table:
    source, output = write(tmp_path / "crawl.csv", content), tmp_path / "videos.parquet"
    arguments = ["--input", source, "--output", str(output), *flags]
    assert main(parse(ImportCountsConfig, arguments, "")) == 0
    return pq.read_table(output)


def refusal(tmp_path: Path, content: str, *flags: str) -> str:
    with pytest.raises(Refused) as refused:
        imported(tmp_path, content, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["crawl.csv"]
    return str(refused.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ("541.2K", 541_200),
        ("1.005M", 1_005_000),
        ("1.4M", 1_400_000),
        ("27.7k", 27_700),
        ("30K", 30_000),
        ("2.3B", 2_300_000_000),
        ("1.234567891B", 1_234_567_891),
        ("0.1K", 100),
        ("1,234", 1234),
        ("12,345.6K", 12_345_600),
        (" 454\t", 454),
        ("454 K", 454_000),
        ("0", 0),
        ("007", 7),
        ("12.0", 12),
        ("9007199254740993", 2**53 + 1),
        ("999999999999999999", 10**18 - 1),
        ("9223372036.854775807B", 2**63 - 1),
    ],
)
def test_counts_are_exactly_what_is_written(cell, count):
    counts, bad = parse_counts(text(cell))
    assert (counts.type, counts.to_pylist(), bad.to_pylist()) == (pa.int64(), [count], [False])


def test_every_count_of_one_digit_after_the_point_is_exact():
    cells = [f"{n // 10}.{n % 10}K" for n in range(100_000)]
    assert parse_counts(text(*cells))[0].to_pylist() == [100 * n for n in range(100_000)]


@pytest.mark.parametrize("cell", [None, "", "  ", "-", "N/A", "NA", "null", " None "])
def test_a_cell_without_a_value_is_null(cell):
    for parsed in (parse_counts, parse_durations):
        values, bad = parsed(text(cell))
        assert (values.to_pylist(), bad.to_pylist()) == ([None], [False])


@pytest.mark.parametrize(
    "cell",
    [
        *("-5", "+5", "-1.2K", "many", "Share", "K", "1.2.3K", "1.2KM", "541.2K+", "1e3", "nan K", "½", "٣"),
        *("12.5", "1.0005K", "1.234", "1,2K", "12,34", "1,2345", ",123", "1 234", ".5K", "5.", "1.2T"),
        *("1234567890123456789", "9223372036.854775808B", "99999999999B"),
    ],
)
def test_what_is_no_count_is_bad(cell):
    counts, bad = parse_counts(text("1K", cell, None))
    assert (counts.to_pylist(), bad.to_pylist()) == ([1000, None, None], [False, True, False])


def test_counts_with_a_suffix_are_the_rounded_ones():
    assert is_rounded(text("1K", "1.2 m ", "454", "1,234", "-", None, "OK")).to_pylist() == [True, True] + [False] * 5


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [("00:31", 31), ("01:02:03", 3723), ("1:5", 65), ("75:10", 4510), ("31", 31), (" 0.5 ", 0.5), ("00:07.25", 7.25)],
)
def test_durations_are_seconds(cell, seconds):
    durations, bad = parse_durations(text(cell))
    assert (durations.type, durations.to_pylist(), bad.to_pylist()) == (pa.float64(), [seconds], [False])


@pytest.mark.parametrize("cell", ["00:60", "1:60:00", "-1", "1:2:3:4", ":30", "30:", "PT31S", "31 s", "inf", "1,5"])
def test_what_is_no_duration_is_bad(cell):
    durations, bad = parse_durations(text(cell, "00:31"))
    assert (durations.to_pylist(), bad.to_pylist()) == ([None, 31], [True, False])


def test_a_scraped_table_becomes_one_of_this_project(tmp_path):
    content = (
        "id,user_id,hearts,views,time,duration,price,own_music\n"
        "7506832682593094928,0007,541.2K,1.4M,2025-05-21 09:44:45,00:31,9.5,True\n"
        '7506832682593094929,8,-,"1,234",2025-05-21T09:44:45+07:00,,,\n'
    )
    table = imported(tmp_path, content, "--rename", "id=video_id", "hearts=likes", "time=posted_at")
    assert table.to_pydict() == {
        "video_id": ["7506832682593094928", "7506832682593094929"],
        "user_id": ["0007", "8"],
        "likes": [541_200, None],
        "views": [1_400_000, 1234],
        "posted_at": [datetime(2025, 5, 21, 9, 44, 45, tzinfo=UTC), datetime(2025, 5, 21, 2, 44, 45, tzinfo=UTC)],
        "duration": [31.0, None],
        "price": [9.5, None],
        "own_music": [True, None],
    }
    assert table.schema.field("posted_at").type == pa.timestamp("us", tz="UTC")
    assert read_videos(str(tmp_path / "videos.parquet"), required=["video_id"])["likes"].to_pylist() == [541_200, None]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_values_that_are_numbers_already_stay_what_they_are(tmp_path, suffix):
    rows = [{"video_id": 7506832682593094928, "likes": 5.0, "views": 7}, {"video_id": 2, "likes": None, "views": 8}]
    source = tmp_path / f"crawl{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"video_id": "3", "likes": "1.2K"}]))
    main(ImportCountsConfig(str(source), str(tmp_path / "out/videos.parquet")))
    table = pq.read_table(tmp_path / "out/videos.parquet")
    assert table["video_id"].to_pylist()[:2] == ["7506832682593094928", "2"]
    assert table["likes"].to_pylist() == [5, None] + [1200] * (suffix == ".jsonl")
    assert table["views"].to_pylist()[:2] == [7, 8]


def test_video_uris_still_name_the_same_files(tmp_path):
    (tmp_path / "crawl").mkdir()
    source = write(tmp_path / "crawl/t.csv", "video_id,video_uri,likes\na,clips/a.mp4,1K\nb,s3://x/b.mp4,2\nc,,3\n")
    main(ImportCountsConfig(source, str(tmp_path / "elsewhere/t.parquet")))
    uris = pq.read_table(tmp_path / "elsewhere/t.parquet")["video_uri"].to_pylist()
    assert uris == [f"{tmp_path}/crawl/clips/a.mp4", "s3://x/b.mp4", None]


def test_cells_that_cannot_be_read_are_refused_with_row_and_column_and_nothing_is_written(tmp_path):
    content = "vid,hearts,duration,posted_at\na,1K,00:31,2025-05-21\nb,many,00:61,2025-05-21\nc,-5,5,yesterday\n,1,5,\n"
    lines = refusal(tmp_path, content, "--rename", "vid=video_id", "hearts=likes").splitlines()
    assert lines[0] == "crawl.csv has 5 problems (rows are counted from 1 after the header):"
    advice = "correct it, or name it with --null-words where it stands for no value"
    duration = "a duration such as 00:31, 01:02:03 or 31 (seconds)"
    assert sorted(lines[1:]) == sorted(
        [
            f'  crawl.csv row 2: hearts is "many", expected a count such as 541.2K, 1,234 or 454; {advice}',
            f'  crawl.csv row 2: duration is "00:61", expected {duration}; {advice}',
            f'  crawl.csv row 3: hearts is "-5", expected a count such as 541.2K, 1,234 or 454; {advice}',
            f'  crawl.csv row 3: posted_at is "yesterday", expected a time such as 2024-05-01T12:00:00Z; {advice}',
            "  crawl.csv row 4: vid is null; every row needs one",
        ]
    )


def test_a_negative_or_split_number_of_a_typed_column_is_refused(tmp_path):
    pq.write_table(pa.table({"video_id": ["a", "b", "c"], "likes": [1.0, -2.0, 0.5]}), tmp_path / "t.parquet")
    with pytest.raises(Refused, match=r'(?s)has 2 problems.*row 2: likes is "-2".*row 3: likes is "0.5", expected'):
        main(ImportCountsConfig(str(tmp_path / "t.parquet"), str(tmp_path / "out.parquet")))


def test_words_that_a_platform_shows_for_no_count_can_be_named(tmp_path):
    content = "video_id,shares,duration\na,Share,live\nb,1K,00:05\n"
    assert 'row 1: shares is "Share", expected a count' in refusal(tmp_path, content, "--null-words", "live")
    table = imported(tmp_path, content, "--null-words", "Share", "live")
    assert table["shares"].to_pylist() == [None, 1000]
    assert table["duration"].to_pylist() == [None, 5.0]


@pytest.mark.parametrize("damaged", ["7.506832682593095e+18", "7.50683E+18", "7506832682593094656.0", "7E+18"])
def test_ids_that_were_numbers_for_a_while_are_refused(tmp_path, damaged):
    message = refusal(tmp_path, f"video_id,likes\n7506832682593094928,1\n{damaged},2\n")
    assert (
        message
        == f'crawl.csv row 2: video_id is "{damaged}", an id that was taken for a number; write it again as text'
    )
    pq.write_table(pa.table({"video_id": [7.5e18], "likes": ["1K"]}), tmp_path / "t.parquet")
    with pytest.raises(Refused, match="column video_id holds double, in which long ids lose digits"):
        main(ImportCountsConfig(str(tmp_path / "t.parquet"), str(tmp_path / "out.parquet")))


TWICE = (
    "video_id,likes,scraped_at\n"
    "a,1K,2025-05-02\nb,2K,2025-05-01\na,3K,2025-05-03\na,4K,\na,5K,2025-05-03\na,6K,2025-05-01\n"
)


def test_a_video_with_several_rows_is_refused_with_the_rows(tmp_path):
    lines = refusal(tmp_path, TWICE).splitlines()
    assert lines[0] == "crawl.csv has 5 problems (rows are counted from 1 after the header):"
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"  crawl.csv row {row}" for row in (1, 3, 4, 5, 6)]
    assert lines[1].endswith('video_id "a" is in 5 rows; choose with --keep newest (by scraped_at), first or last')


@pytest.mark.parametrize(
    ("keep", "ids", "likes"),
    [
        ("first", ["a", "b"], [1000, 2000]),
        ("last", ["b", "a"], [2000, 6000]),
        ("newest", ["b", "a"], [2000, 5000]),
    ],
)
def test_one_row_of_a_video_is_kept_as_asked(tmp_path, keep, ids, likes):
    table = imported(tmp_path, TWICE, "--keep", keep)
    assert (table["video_id"].to_pylist(), table["likes"].to_pylist()) == (ids, likes)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rename", "likes"], "--rename likes: expected OLD=NEW"),
        (["--rename", "a=b", "a=c"], "--rename a=c: expected OLD=NEW, each OLD once"),
        (["--rename", "hearts=likes"], "--rename: crawl.csv has no column hearts; its columns are: video_id, likes, n"),
        (["--rename", "n=likes"], "crawl.csv would have two columns likes: likes and n; drop one"),
        (["--rename", "video_id=id"], "crawl.csv has no column video_id; its columns are: video_id"),
        (
            ["--counts", "likes", "share"],
            "--counts: crawl.csv has no column share; its columns are: video_id, likes, n",
        ),
        (["--counts", "likes", "--times", "likes"], "likes is both in --counts and in --times; name it in one"),
        (["--rename", "likes=hearts"], "crawl.csv has no column to convert; its columns are: video_id, hearts, n"),
        (["--keep", "newest"], "--keep newest needs the time in scraped_at"),
        (["--output", "videos.csv"], "videos.csv is no Parquet file; end its name in .parquet"),
    ],
)
def test_flags_that_do_not_fit_the_table_are_refused(tmp_path, flags, words):
    assert words in refusal(tmp_path, "video_id,likes,n\na,1K,5\n", *flags)


def test_the_input_is_never_written_over(tmp_path):
    folder = tmp_path / "crawl"
    folder.mkdir()
    pq.write_table(pa.table({"video_id": ["a"], "likes": ["1K"]}), folder / "1.parquet")
    for source, output in ((folder / "1.parquet", folder / "1.parquet"), (folder, folder / "2.parquet")):
        with pytest.raises(Refused, match="would change --input"):
            main(ImportCountsConfig(str(source), str(output)))
    with pytest.raises(Refused, match=r"d.parquet is a folder; name a file"):
        (tmp_path / "d.parquet").mkdir()
        main(ImportCountsConfig(str(folder), str(tmp_path / "d.parquet")))


def test_exit_codes_and_what_is_printed(tmp_path):
    write(tmp_path / "crawl.csv", "video_id,likes,posted_at\na,541.2K,2025-05-21 09:44:45\nb,454,\nc,,\n")
    write(tmp_path / "bad.csv", "video_id,likes\na,many\n")

    def job(source: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.import_counts", "--input", source, "--output", "out.parquet"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    refused = job("bad.csv")
    assert (refused.returncode, refused.stderr.splitlines()[0].partition(",")[0]) == (
        2,
        'refused: bad.csv row 1: likes is "many"',
    )
    assert not (tmp_path / "out.parquet").exists()
    done = job("crawl.csv")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["likes", "3", "1", "454", "270,827", "541,200", "1"] in rows
    assert ["posted_at", "3", "2", "2025-05-21", "2025-05-21", "2025-05-21"] in rows
    assert f"table: {tmp_path}/out.parquet" in done.stdout
    assert "next:  add video_uri, creator_id, shares, which training needs, then python -m jobs.train" in done.stdout
    assert pq.read_table(tmp_path / "out.parquet")["likes"].to_pylist() == [541_200, 454, None]


def in_decimals(cell: str) -> int | None:
    """Of a real cell, by another way than the converter's."""
    if not cell or cell == "Share":
        return None
    count = Decimal(cell.rstrip("KM")).scaleb({"K": 3, "M": 6}.get(cell[-1], 0))
    assert count == int(count)
    return int(count)


@pytest.mark.parametrize(
    ("name", "rows", "nulls"),
    [
        ("vn_raw_no_usernames.csv", 10_102, {"followers": 5, "comments": 41}),
        ("vn_recrawl_no_usernames.csv", 2409, {"views": 357, "shares": 1}),
    ],
)
def test_real_crawls_are_converted_exactly(tmp_path, name, rows, nulls):
    source, output = crawl(name), tmp_path / "videos.parquet"
    rename = tuple(f"{old}={new}" for old, new in NEW_NAMES.items())
    main(ImportCountsConfig(str(source), str(output), rename, null_words=("Share",)))
    table = pq.read_table(output)
    raw = pd.read_csv(source, dtype=str, keep_default_na=False)
    assert table.column_names == [*NEW_NAMES.values(), "music_originality"]
    assert table.num_rows == len(raw) == rows
    assert {name: table[name].null_count for name in NEW_NAMES.values() if table[name].null_count} == nulls
    assert table["video_id"].to_pylist() == raw["vid_id"].to_list()
    for old in ("user_nfollower", "vid_nview", "vid_nlike", "vid_ncomment", "vid_nshare", "vid_nsave"):
        assert table[NEW_NAMES[old]].to_pylist() == [in_decimals(cell) for cell in raw[old]]
    clock = pd.to_datetime(raw["vid_duration"], format="%M:%S") - pd.Timestamp("1900-01-01")
    assert table["duration"].to_pylist() == clock.dt.total_seconds().to_list()
    posted = [datetime.fromtimestamp(int(video_id) >> 32, UTC) for video_id in raw["vid_id"]]  # told by TikTok's ids
    assert table["posted_at"].to_pylist() == posted
    assert [f"{time:%F %T}" for time in table["scraped_at"].to_pylist()] == raw["vid_scrapeTime"].to_list()
    assert table["music_originality"].type == pa.bool_()


def test_the_word_that_a_real_crawl_has_for_no_shares_is_refused_by_row(tmp_path):
    with pytest.raises(Refused, match=r'row 2199: vid_nshare is "Share", expected a count'):
        main(
            ImportCountsConfig(
                str(crawl("vn_recrawl_no_usernames.csv")),
                str(tmp_path / "t.parquet"),
                ("vid_id=video_id", "vid_nshare=shares"),
            )
        )


def test_the_newest_of_two_real_crawls_is_kept(tmp_path):
    recrawl = pd.read_csv(crawl("vn_recrawl_no_usernames.csv"), dtype=str)
    rename = tuple(f"{old}={new}" for old, new in NEW_NAMES.items())
    main(ImportCountsConfig(str(CRAWLS), str(tmp_path / "t.parquet"), rename, null_words=("Share",), keep="newest"))
    table = pq.read_table(tmp_path / "t.parquet", columns=["video_id", "scraped_at"]).to_pandas()
    assert len(table) == 10_102
    assert set(table.loc[table["scraped_at"] >= "2025-06-01", "video_id"]) == set(recrawl["vid_id"])
