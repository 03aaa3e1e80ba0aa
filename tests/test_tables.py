"""Tables at the door: what is read from each format, and what is refused with which words."""

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from catalog import schemas
from catalog.errors import Refused
from catalog.tables import check_references, read_products, read_sales, read_videos

SHARED_DATA = Path(__file__).parents[1] / "../shared/data"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def refusal(read, uri: str, **options) -> str:
    with pytest.raises(Refused) as refused:
        read(uri, **options)
    return str(refused.value)


VIDEO_ROWS = [
    {"video_id": "7269813292082760993", "video_uri": "a.mp4", "product_id": "p1", "likes": 5, "mood": "calm"},
    {
        "video_id": "0007",
        "video_uri": "s3://bucket/b c.mp4",
        "product_id": None,
        "likes": None,
        "mood": "wild",
    },
]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".ndjson", ".json"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    path = tmp_path / f"videos{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(VIDEO_ROWS), path)
    elif suffix == ".csv":
        pacsv.write_csv(pa.Table.from_pylist(VIDEO_ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in VIDEO_ROWS))
    table = read_videos(str(path))
    assert table.column_names == [*schemas.VIDEOS.names, "mood"]
    assert [field.type for field in table.schema][:-1] == schemas.VIDEOS.types
    assert table["video_id"].to_pylist() == ["7269813292082760993", "0007"]
    assert table["video_uri"].to_pylist() == [f"{tmp_path}/a.mp4", "s3://bucket/b c.mp4"]
    assert table["product_id"].to_pylist() == ["p1", None]
    assert table["likes"].to_pylist() == [5, None]
    assert table["mood"].to_pylist() == ["calm", "wild"]
    assert table["posted_at"].null_count == 2


def test_part_files_of_a_folder_are_one_table_in_name_order(tmp_path):
    for part, likes in ((2, [3.0]), (1, [1.0, None])):
        ids = [f"v{part}{i}" for i in range(len(likes))]
        table = pa.table({"video_id": ids, "video_uri": [f"{name}.mp4" for name in ids], "likes": likes})
        pq.write_table(table, tmp_path / f"part-{part}.parquet")
    (tmp_path / "_SUCCESS").touch()
    table = read_videos(str(tmp_path))
    assert table["video_id"].to_pylist() == ["v10", "v11", "v20"]
    assert table["likes"].to_pylist() == [1, None, 3]
    assert table["video_uri"][2].as_py() == f"{tmp_path}/v20.mp4"


def test_folders_within_a_folder_of_part_files_are_refused(tmp_path):
    folder = tmp_path / "videos"
    (folder / "day=2").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    (folder / "part.csv").write_text("video_id,video_uri\na,a.mp4\n")
    with pytest.raises(Refused, match=r"holds folders too, such as .*day=2"):
        read_videos(str(folder))
    (folder / "day=2").rmdir()
    assert read_videos(str(folder)).num_rows == 1


def test_a_problem_in_a_folder_names_the_part_file_and_its_own_row(tmp_path):
    write(tmp_path / "1.csv", "video_id,video_uri\na,a.mp4\nb,b.mp4\n")
    write(tmp_path / "2.csv", "video_id,video_uri\nc,c.mp4\na,a.mp4\n")
    assert refusal(read_videos, str(tmp_path)) == (
        f'{tmp_path}/2.csv row 2: video_id "a" was already given in {tmp_path}/1.csv row 1; keep one of the rows'
    )


def test_relative_uris_are_relative_to_the_table_not_to_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "world").mkdir()
    write(
        tmp_path / "world/videos.csv",
        "video_id,video_uri\n1,clips/a b#1%20.mp4\n2,../c.mp4\n3,/abs/d.mp4\n4,file:///abs/e%20f.mp4\n",
    )
    monkeypatch.chdir(tmp_path)
    assert read_videos("world/videos.csv")["video_uri"].to_pylist() == [
        f"{tmp_path}/world/clips/a b#1%20.mp4",
        f"{tmp_path}/c.mp4",
        "/abs/d.mp4",
        "/abs/e f.mp4",
    ]


def test_integer_ids_become_text_with_all_their_digits(tmp_path):
    number = 7346756448103288107
    lines = write(tmp_path / "v.jsonl", f'{{"video_id": {number}, "video_uri": "a.mp4", "sound_id": {number}}}')
    table = read_videos(lines)
    assert table["video_id"].to_pylist() == table["sound_id"].to_pylist() == [str(number)]
    pq.write_table(pa.table({"video_id": [number], "video_uri": ["a"]}), tmp_path / "v.parquet")
    assert read_videos(str(tmp_path / "v.parquet"))["video_id"].to_pylist() == [str(number)]
    cells = write(tmp_path / "v.csv", f"video_id,video_uri,sound_id\n{number},a.mp4,00{number}\n")
    assert read_videos(cells)["sound_id"].to_pylist() == [f"00{number}"]


def test_ids_stored_as_floats_are_refused_because_digits_are_lost(tmp_path):
    pq.write_table(pa.table({"video_id": [7.3e18], "video_uri": ["a"]}), tmp_path / "v.parquet")
    message = refusal(read_videos, str(tmp_path / "v.parquet"))
    assert "v.parquet: column video_id holds double" in message
    assert "expected text; convert it first" in message


def test_whole_floats_are_counts_and_nan_is_null_as_pandas_writes_them(tmp_path):
    frame = pd.DataFrame({"video_id": ["a", "b"], "video_uri": ["a", "b"], "likes": [12.0, float("nan")]})
    frame.to_parquet(tmp_path / "v.parquet")
    frame.to_csv(tmp_path / "v.csv", index=False)
    frame.to_json(tmp_path / "v.jsonl", orient="records", lines=True)
    for name in ("v.parquet", "v.csv", "v.jsonl"):
        assert read_videos(str(tmp_path / name))["likes"].to_pylist() == [12, None]


@pytest.mark.parametrize(
    ("likes", "shown"),
    [
        ("541.2K", '"541.2K"'),
        ("3.5", '"3.5"'),
        ('"1,200"', '"1,200"'),
        ("1e400", '"1e400"'),
        ("inf", '"inf"'),
    ],
)
def test_a_count_that_is_not_a_whole_number_is_refused_with_its_row(tmp_path, likes, shown):
    uri = write(tmp_path / "videos.csv", f"video_id,video_uri,likes\na,a.mp4,1e3\nb,b.mp4,{likes}\n")
    assert (
        refusal(read_videos, uri)
        == f"{uri} row 2: likes is {shown}, expected a whole number such as 541200; convert it first"
    )


def test_a_fraction_or_a_bool_in_a_parquet_count_is_refused(tmp_path):
    uri = str(tmp_path / "v.parquet")
    pq.write_table(pa.table({"video_id": ["a", "b"], "video_uri": ["a", "b"], "likes": [1.0, 3.5]}), uri)
    assert f"{uri} row 2: likes is 3.5, expected a whole number" in refusal(read_videos, uri)
    pq.write_table(pa.table({"video_id": ["a"], "video_uri": ["a"], "likes": [True]}), uri)
    assert "column likes holds bool (row 1: true), expected a whole number" in refusal(read_videos, uri)


def test_a_negative_count_is_refused(tmp_path):
    uri = write(tmp_path / "v.jsonl", '{"video_id": "a", "video_uri": "a", "shares": -3}\n')
    assert refusal(read_videos, uri) == (f"{uri} row 1: shares is -3, which no count is; correct it or write null")


def test_a_missing_column_is_refused_with_the_columns_that_are_there(tmp_path):
    uri = write(tmp_path / "videos.csv", "id,video_uri\n1,a.mp4\n")
    message = refusal(read_videos, uri)
    assert message == f"{uri} has no column video_id; its columns are: id, video_uri; add it or rename one"
    uri = write(tmp_path / "more.csv", "video_id,video_uri\n1,a.mp4\n")
    assert "has no column posted_at" in refusal(read_videos, uri, required=("video_id", "posted_at"))


def test_null_empty_and_duplicate_ids_are_refused_with_their_rows(tmp_path):
    rows = [{"video_id": name, "video_uri": "a.mp4"} for name in ("a", None, " ", "a", "b")]
    uri = write(tmp_path / "v.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert refusal(read_videos, uri).splitlines() == [
        f"{uri} has 3 problems (rows are counted from 1 after the header):",
        f"  {uri} row 2: video_id is null; every row needs one",
        f"  {uri} row 3: video_id is empty; every row needs one",
        f'  {uri} row 4: video_id "a" was already given in {uri} row 1; keep one of the rows',
    ]


def test_only_the_first_five_problems_are_shown_with_the_count_of_all(tmp_path):
    body = "".join(f"v{i},v{i}.mp4,{'many' if i % 2 else -i}\n" for i in range(1, 301))
    uri = write(tmp_path / "v.csv", "video_id,video_uri,views\n" + body)
    lines = refusal(read_videos, uri).splitlines()
    assert lines[0].startswith(f"{uri} has 300 problems")
    assert [line.split(":")[0] for line in lines[1:6]] == [f"  {uri} row {row}" for row in range(1, 6)]
    assert lines[6:] == ["  and 295 more"]


def test_times_without_a_zone_are_utc_and_others_are_converted(tmp_path):
    times = ["2024-05-01", "2024-05-01 10:00:00", "2024-05-01T10:00:00+02:00", "2024-05-01T10:00:00.5Z", ""]
    body = "".join(f"v{i},v.mp4,{time}\n" for i, time in enumerate(times))
    table = read_videos(write(tmp_path / "v.csv", "video_id,video_uri,posted_at\n" + body))
    assert [time and time.isoformat() for time in table["posted_at"].to_pylist()] == [
        "2024-05-01T00:00:00+00:00",
        "2024-05-01T10:00:00+00:00",
        "2024-05-01T08:00:00+00:00",
        "2024-05-01T10:00:00.500000+00:00",
        None,
    ]
    naive = pa.array([1_700_000_000_000_000_000], pa.timestamp("ns"))
    pq.write_table(pa.table({"video_id": ["a"], "video_uri": ["a"], "posted_at": naive}), tmp_path / "v.parquet")
    read = read_videos(str(tmp_path / "v.parquet"))["posted_at"][0].as_py()
    assert read.isoformat() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("time", ["yesterday", "2024-02-30", "1711012223", "01/05/2024", "2024-05-01T25:00"])
def test_times_that_are_not_times_are_refused(tmp_path, time):
    uri = write(tmp_path / "v.csv", f"video_id,video_uri,posted_at\na,a.mp4,{time}\n")
    assert refusal(read_videos, uri) == (
        f'{uri} row 1: posted_at is "{time}", expected a time such as 2024-05-01T12:00:00Z; convert it first'
    )


def test_a_missing_table_and_an_unknown_format_are_refused(tmp_path):
    missing = str(tmp_path / "none.parquet")
    assert refusal(read_videos, missing) == (
        f"{missing} cannot be read: no such file; check the path and its permissions"
    )
    excel = write(tmp_path / "videos.xlsx", "PK")
    assert refusal(read_videos, excel).startswith(f"{excel} is no known kind of table; its name must end in")
    assert "gs:// needs the package gcsfs" in refusal(read_videos, "gs://bucket/videos.parquet")
    (tmp_path / "empty").mkdir()
    assert "holds no files; expected part files" in refusal(read_videos, str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("v.parquet", b"", "is not a readable Parquet file"),
        ("v.parquet", b"PAR1 and then something else PAR1", "is not a readable Parquet file"),
        ("v.csv", b"", "is empty; expected a header and rows"),
        ("v.csv", b"video_id,video_uri\n", "has no rows"),
        ("v.csv", b"video_id,video_uri\na,b,c\nd,e\n", "row 1 has 3 values, the header 2; quote the values"),
        ("v.csv", b'video_id,video_uri\na,"b\nc,d\n', 'a quotation mark (") is opened and never closed'),
        (
            "v.csv",
            b"video_id,video_uri\na,\xff\xfe\n",
            "line 2: byte 0xff is not UTF-8; save the file as UTF-8",
        ),
        ("v.csv", b"video_id,video_uri,video_id\na,b,c\n", "has the column 'video_id' more than once"),
        ("v.jsonl", b"", "is empty; expected one JSON object a line"),
        ("v.jsonl", b'{"video_id": "a"}\n{"video_id": \n', "line 2 is not JSON: Expecting value"),
        (
            "v.jsonl",
            b'{"video_id": "a"}\n17\n',
            "line 2 is not a JSON object; write one complete object a line",
        ),
        ("v.json", b'[{"video_id": "a"}]', "is a JSON array, expected JSON Lines; write one object a line"),
        ("v.jsonl", b'{"video_id": "\xe9"}', "line 1: byte 0xe9 is not UTF-8"),
        ("v.jsonl", b'{"mood": 1}\n{"mood": "x"}', "the values of mood do not make one column"),
    ],
)
def test_malformed_files_are_refused_with_the_place(tmp_path, name, content, words):
    uri = write(tmp_path / name, content)
    message = refusal(read_videos, uri)
    assert message.startswith(uri)
    assert words in message


def test_text_in_parquet_that_is_not_utf8_is_refused_with_its_row(tmp_path):
    raw = pa.array([b"ok"] * 40 + [b"\xff"] + [b"ok"] * 9, pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    uri = str(tmp_path / "v.parquet")
    pq.write_table(pa.table({"video_id": broken, "video_uri": ["a"] * 50}), uri)
    assert refusal(read_videos, uri).startswith(f"{uri} row 41: video_id is not valid UTF-8")


def test_video_uris_of_unknown_or_missing_storage_are_refused_with_their_rows(tmp_path):
    uri = write(tmp_path / "v.csv", "video_id,video_uri\na,a.mp4\nb,gs://b/c.mp4\nc,tiktok://x\nd,file://host/x\n")
    lines = refusal(read_videos, uri).splitlines()
    assert lines[1].startswith(f"  {uri} row 2: video_uri: gs://b/c.mp4: gs:// needs the package gcsfs")
    assert lines[2].startswith(f"  {uri} row 3: video_uri: tiktok://x: tiktok:// cannot be read; use a local path")
    assert lines[3].startswith(f"  {uri} row 4: video_uri: file://host/x names the host 'host'")


def test_an_unknown_product_is_refused_and_null_is_allowed(tmp_path):
    videos = read_videos(
        write(tmp_path / "v.csv", "video_id,video_uri,product_id\na,a,p1\nb,b,\nc,c,p9\n"), ("product_id",)
    )
    products = read_products(write(tmp_path / "p.csv", "product_id,image_uris\np1,a.png\n"))
    with pytest.raises(Refused) as refused:
        check_references(videos, products, "v.csv", "p.csv")
    assert str(refused.value) == (
        'v.csv row 3: product_id is "p9" (video_id "c"), which is in no row of p.csv; add the product or set it to null'
    )
    check_references(videos.slice(0, 2), products, "v.csv", "p.csv")


def test_image_lists_are_read_from_parquet_json_and_csv(tmp_path):
    images = [["front.png", "s3://b/back.png"], ["one, two.png"]]
    expected = [[f"{tmp_path}/front.png", "s3://b/back.png"], [f"{tmp_path}/one, two.png"]]
    outlines = [[[0, 0, 9, 0, 9, 9], None], None]
    columns = {
        "product_id": ["p1", "p2"],
        "image_uris": images,
        "image_outlines": outlines,
        "price": [9.5, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write(tmp_path / "p.jsonl", "\n".join(json.dumps(row) for row in rows))
    pd.DataFrame(
        {
            "product_id": ["p1", "p2"],
            "image_uris": [json.dumps(images[0]), "one, two.png"],
            "image_outlines": [json.dumps(outlines[0]), None],
            "price": [9.5, None],
        }
    ).to_csv(tmp_path / "p.csv", index=False)
    for name in ("p.parquet", "p.jsonl", "p.csv"):
        table = read_products(str(tmp_path / name))
        assert table["image_uris"].to_pylist() == expected
        assert table["image_outlines"].to_pylist() == outlines
        assert table["price"].to_pylist() == [9.5, None]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"image_uris": []}, "image_uris is an empty list; give at least one image"),
        ({"image_uris": None}, "image_uris is null; every row needs one"),
        ({"image_uris": ["a.png", ""]}, 'image_uris has an empty entry: ["a.png", ""]; remove it'),
        ({"image_uris": [3]}, 'image_uris is "[3]", expected a list of texts'),
        ({"image_outlines": []}, "image_outlines has 0 polygons for 1 images; give one an image"),
        ({"image_outlines": [[0, 0, 9, 0, 9]]}, "image_outlines has a polygon of 5 numbers, expected x1, y1"),
        ({"image_outlines": [[0, 0, 9, 0]]}, "image_outlines has a polygon of 4 numbers, expected x1, y1"),
        (
            {"image_outlines": [[0, 0, 9, 0, 9, None]]},
            "image_outlines has a coordinate that is null or not finite; give numbers in px",
        ),
        ({"image_outlines": "round"}, 'image_outlines is "round", expected a list of polygons'),
        ({"price": "cheap"}, 'price is "cheap", expected a number such as 12.5; convert it first'),
        ({"product_id": "p0"}, 'product_id "p0" was already given in'),
    ],
)
def test_bad_products_are_refused_with_row_and_reason(tmp_path, cells, words):
    rows = [
        {"product_id": "p0", "image_uris": ["a.png"]},
        {"product_id": "p1", "image_uris": ["b.png"], **cells},
    ]
    uri = write(tmp_path / "products.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert refusal(read_products, uri).startswith(f"{uri} row 2: {words}")


def test_sales_are_one_row_a_product_and_day_with_a_revenue(tmp_path):
    good = write(tmp_path / "s.csv", "product_id,date,revenue_30d\np,2024-05-01,10\np,2024-05-02,-1.5\nq,2024-05-01,\n")
    table = read_sales(good)
    assert table["date"].type == pa.date32()
    assert table["revenue_30d"].to_pylist() == [10.0, -1.5, None]
    twice = write(tmp_path / "twice.csv", "product_id,date,revenue\np,2024-05-01,1\np,2024-05-01,2\n")
    assert f'row 2: product_id "p" and date "2024-05-01" was already given in {twice} row 1' in refusal(
        read_sales, twice
    )
    neither = write(tmp_path / "neither.csv", "product_id,date,units\np,2024-05-01,1\n")
    assert refusal(read_sales, neither).startswith(f"{neither} has values in neither revenue (that day) nor")


def test_every_column_of_every_schema_says_what_it_means():
    for schema in (schemas.VIDEOS, schemas.PRODUCTS, schemas.SALES, schemas.SCORES, schemas.MAPS):
        assert all(field.metadata[b"description"] for field in schema)
    assert [str(status) for status in schemas.Status] == ["ok", "not_localised", "no_product", "failed"]


def test_a_real_crawl_with_counts_in_words_is_refused_by_row(tmp_path):
    crawl = SHARED_DATA / "tiktok_vn/vn_raw_no_usernames.csv"
    if not crawl.exists():
        pytest.skip("the folder of real test data is not here")
    raw = pd.read_csv(crawl, dtype=str)
    likes = next(name for name in raw.columns if raw[name].str.fullmatch(r"[\d.]+K", na=False).any())
    ids = [str(row) for row in range(len(raw))]
    frame = pd.DataFrame({"video_id": ids, "video_uri": ids, "likes": raw[likes]})
    frame.to_csv(tmp_path / "videos.csv", index=False)
    first_bad = int(raw[likes].str.contains(r"[KM]", na=False).to_numpy().argmax())
    message = refusal(read_videos, str(tmp_path / "videos.csv"))
    assert f'row {first_bad + 1}: likes is "{raw[likes][first_bad]}", expected a whole number' in message


def test_words_for_a_missing_value_are_null_in_csv(tmp_path):
    uri = write(
        tmp_path / "v.csv",
        "video_id,video_uri,product_id,likes,followers\na,a.mp4,NA,NaN,NA\nb,b.mp4,p,3,9\n",
    )
    table = read_videos(uri)
    assert table["product_id"].to_pylist() == [None, "p"]
    assert table["likes"].to_pylist() == [None, 3]
    assert table["followers"].to_pylist() == [None, 9]


def test_a_time_far_outside_the_calendar_is_refused_as_a_wrong_unit(tmp_path):
    milliseconds_taken_for_seconds = pa.array([1_700_000_000_000], pa.timestamp("s"))
    columns = {"video_id": ["a"], "video_uri": ["a"], "posted_at": milliseconds_taken_for_seconds}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    message = refusal(read_videos, str(tmp_path / "v.parquet"))
    assert "row 1: posted_at is beyond the years that can be told, expected a time such as" in message


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "v.parquet")
    assert "is neither a file nor a folder" in refusal(read_videos, str(tmp_path / "v.parquet"))
