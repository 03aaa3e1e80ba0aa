"""What jobs.import_counts does."""

import io
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table

from catalog import storage
from catalog.counts import NO_VALUE, is_rounded, parse_counts, parse_durations, without_words
from catalog.errors import Refused
from catalog.table_casts import Converted, convert, wanted
from catalog.table_files import Part, read_parts
from catalog.tables import Problems
from jobs.command import DONE, console, print_config, resolved
from jobs.import_counts import ImportCountsConfig

_UTC = pa.timestamp("us", tz="UTC")
_TRAINING_NEEDS = ("video_uri", "creator_id", "shares")
_DAMAGED_ID = r"^\d+\.\d*([eE]\+?\d+)?$|^\d+[eE]\+\d+$"  # 7.5068E+18: a spreadsheet or pandas took it for a number


class _Reading(NamedTuple):
    """How a column is read: from text, from other types, and in words."""

    flag: str
    parse: Callable[[pa.ChunkedArray], Converted | None]
    kind: pa.DataType
    expected: str


_READINGS = (
    _Reading("counts", parse_counts, pa.int64(), "a count such as 541.2K, 1,234 or 454"),
    _Reading("durations", parse_durations, pa.float64(), "a duration such as 00:31, 01:02:03 or 31 (seconds)"),
    _Reading("times", lambda text: convert(text, _UTC), _UTC, wanted(_UTC)),
)


class _Source(NamedTuple):
    """The table as it was read, under its new names."""

    table: pa.Table
    parts: Sequence[Part]
    old_names: dict[str, str]  # by new name


def main(config: ImportCountsConfig) -> int:
    print_config(resolved(config))
    output = storage.absolute(config.output)
    _check_output(output, storage.absolute(config.input))
    source = _read(config)
    readings = _readings(config, source)
    table = _converted(config, source, readings)
    kept = _kept(config.keep, table["video_id"], table["scraped_at"] if "scraped_at" in readings else None)
    table, written = table.filter(kept), source.table.filter(kept)
    file = io.BytesIO()
    pq.write_table(table, file)
    storage.write_bytes_atomically(output, file.getvalue())
    console.print(_summary(table, written, readings))
    left_out = source.table.num_rows - table.num_rows
    if left_out:
        console.print(f"{left_out:,} of {source.table.num_rows:,} rows left out: the {config.keep} of a video is kept")
    console.print(f"table: {output}")
    missing = [name for name in _TRAINING_NEEDS if name not in table.column_names]
    first = f"add {', '.join(missing)}, which training needs, then " if missing else ""
    console.print(f"next:  {first}python -m jobs.train --videos {output}")
    return DONE


def _check_output(output: str, source: str) -> None:
    if not output.lower().endswith(".parquet"):
        raise Refused(f"--output {output} is no Parquet file; end its name in .parquet")
    if output == source or output.startswith(f"{source.rstrip('/')}/"):
        raise Refused(f"--output {output} would change --input {source}; name another file")
    storage.check_writable(output.rpartition("/")[0] or "/")
    try:
        is_folder = storage.files_in(output) is not None
    except FileNotFoundError:
        return
    except OSError as error:
        raise Refused(f"--output {output} cannot be written: {storage.reason(error)}; name another file") from error
    if is_folder:
        raise Refused(f"--output {output} is a folder; name a file")


def _read(config: ImportCountsConfig) -> _Source:
    new_names = _new_names(config.rename)
    converted = {"video_id", "video_uri", *config.counts, *config.durations, *config.times}
    as_text = (converted - new_names.keys()) | {
        old for old, new in new_names.items() if new in converted or new.endswith("_id")
    }
    table, parts = read_parts(config.input, as_text)
    for old in new_names:
        if old not in table.column_names:
            raise Refused(f"--rename: {config.input} has no column {old}; its columns are: {_list(table)}")
    old_names: dict[str, str] = {}
    for old in map(str, table.column_names):
        new = new_names.get(old, old)
        if new in old_names:
            raise Refused(
                f"--rename: {config.input} would have two columns {new}: {old_names[new]} and {old}; drop one"
            )
        old_names[new] = old
    if "video_id" not in old_names:
        raise Refused(
            f"{config.input} has no column video_id; its columns are: {_list(table)};"
            " name the one with ids by --rename OLD=video_id"
        )
    if not table.num_rows:
        raise Refused(f"{config.input} has no rows; nothing can be done with an empty table")
    return _Source(table.rename_columns(list(old_names)), parts, old_names)


def _new_names(rename: Sequence[str]) -> dict[str, str]:
    new_names = {}
    for pair in rename:
        old, _, new = pair.rpartition("=")
        if not old or not new or old in new_names:
            raise Refused(f"--rename {pair}: expected OLD=NEW, each OLD once, e.g. vid_id=video_id")
        new_names[old] = new
    return new_names


def _readings(config: ImportCountsConfig, source: _Source) -> dict[str, _Reading]:
    """How to read which column, by its new name."""
    readings: dict[str, _Reading] = {}
    for reading in _READINGS:
        names = getattr(config, reading.flag)
        is_default = names == getattr(ImportCountsConfig, reading.flag)
        for name in dict.fromkeys(names):
            if name in readings:
                raise Refused(f"{name} is both in --{readings[name].flag} and in --{reading.flag}; name it in one")
            if name in source.table.column_names:
                readings[name] = reading
            elif not is_default:
                raise Refused(
                    f"--{reading.flag}: {config.input} has no column {name}; its columns are: {_list(source.table)}"
                )
    if not readings:
        raise Refused(
            f"{config.input} has no column to convert; its columns are: {_list(source.table)}; name the counts with"
            " --rename OLD=likes or with --counts"
        )
    if config.keep == "newest" and readings.get("scraped_at") is not _READINGS[-1]:
        raise Refused("--keep newest needs the time in scraped_at; name it with --rename OLD=scraped_at")
    return readings


def _converted(config: ImportCountsConfig, source: _Source, readings: dict[str, _Reading]) -> pa.Table:
    problems = Problems(source.parts)
    columns = {name: source.table[name] for name in source.table.column_names}
    columns["video_id"] = _ids(config, source, problems)
    if "video_uri" in columns:
        columns["video_uri"] = _absolute(columns["video_uri"], config.input, source.parts)
    for name, reading in readings.items():
        columns[name] = _values(config, source, name, reading, problems)
    problems.refuse_any(config.input)
    return pa.table(columns)


def _ids(config: ImportCountsConfig, source: _Source, problems: Problems) -> pa.ChunkedArray:
    old, values = source.old_names["video_id"], source.table["video_id"]
    converted = convert(values, pa.string())
    if converted is None:
        raise Refused(
            f"{config.input}: column {old} holds {values.type}, in which long ids lose digits; write it again as text"
        )
    ids = converted[0]
    problems.add(pc.is_null(ids), lambda row: f"{old} is null; every row needs one")
    problems.add(pc.equal(pc.utf8_trim_whitespace(ids), ""), lambda row: f"{old} is empty; every row needs one")
    problems.add(
        pc.match_substring_regex(ids, _DAMAGED_ID),
        lambda row: f"{old} is {_show(ids[row])}, an id that was taken for a number; write it again as text",
    )
    if config.keep is None:
        frame = ids.to_pandas()
        times = frame.groupby(frame).transform("size").fillna(0)
        problems.add(
            pa.chunked_array([pa.array((times > 1).to_numpy())]),
            lambda row: (
                f"{old} {_show(ids[row])} is in {int(times[row])} rows; choose with --keep newest (by scraped_at),"
                " first or last"
            ),
        )
    return ids


def _absolute(uris: pa.ChunkedArray, table_uri: str, parts: Sequence[Part]) -> pa.ChunkedArray:
    """Relative ones are relative to the table, and that is written somewhere else."""
    whole = storage.absolute(table_uri)
    folder = whole.rpartition("/")[0] if parts[0][0] == table_uri else whole
    converted = convert(uris, pa.string())
    if converted is None:
        raise Refused(f"{table_uri}: column video_uri holds {uris.type}, expected text; write it again as text")
    return pa.chunked_array([[uri and storage.absolute(uri, folder) for uri in converted[0].to_pylist()]], pa.string())


def _values(
    config: ImportCountsConfig, source: _Source, name: str, reading: _Reading, problems: Problems
) -> pa.ChunkedArray:
    old, values = source.old_names[name], source.table[name]
    as_text = convert(values, pa.string())
    text = None if as_text is None else without_words(as_text[0], (*NO_VALUE, *config.null_words))
    converted = convert(values, reading.kind) if text is None else reading.parse(text)
    if converted is None:
        raise Refused(
            f"{config.input}: column {old} holds {values.type}, expected {reading.expected}; convert it first"
        )
    result, bad = converted
    if text is None and reading.kind != _UTC:
        bad = pc.or_(bad, pc.fill_null(pc.less(result, 0), False))
    advice = "correct it, or name it with --null-words where it stands for no value"
    shown = values if text is None else text
    problems.add(bad, lambda row: f"{old} is {_show(shown[row])}, expected {reading.expected}; {advice}")
    return result


def _kept(keep: str | None, ids: pa.ChunkedArray, scraped_at: pa.ChunkedArray | None) -> pa.Array:
    """Mask of the rows to keep; all where no video has several."""
    frame = pd.DataFrame({"video_id": ids.to_pandas()})
    if keep == "newest" and scraped_at is not None:
        frame["scraped_at"] = scraped_at.to_pandas()
        frame = frame.sort_values("scraped_at", kind="stable", na_position="first")
    repeated = frame.duplicated("video_id", keep="first" if keep == "first" else "last")
    return pa.array(~repeated.sort_index().to_numpy())


def _summary(table: pa.Table, written: pa.Table, readings: dict[str, _Reading]) -> Table:
    summary = Table(title=f"{table.num_rows:,} videos", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("column", "rows", "nulls", "min", "median", "max", "rounded"):
        summary.add_column(column, justify="left" if column == "column" else "right", overflow="fold")
    for name, reading in readings.items():
        values, text = table[name], convert(written[name], pa.string())
        known = values.drop_null().to_pandas()
        figures = [_figure(f) for f in (known.min(), known.median(), known.max())] if len(known) else ["", "", ""]
        rounded = f"{pc.sum(is_rounded(text[0])).as_py():,}" if reading.flag == "counts" and text else ""
        summary.add_row(name, f"{len(values):,}", f"{values.null_count:,}", *figures, rounded)
    summary.caption = "rounded: written with K, M or B"
    return summary


def _figure(value: float | pd.Timestamp) -> str:
    return f"{value:%Y-%m-%d}" if isinstance(value, pd.Timestamp) else f"{value:,.12g}"


def _show(cell: pa.Scalar) -> str:
    text = json.dumps(cell.cast(pa.string()).as_py(), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(table: pa.Table) -> str:
    return ", ".join(table.column_names) or "none"
