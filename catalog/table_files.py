"""Table files as they are: Parquet with its own types, the schema's columns as text from CSV and JSON."""

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from catalog import storage
from catalog.errors import Refused
from catalog.table_casts import NULL_WORDS

FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson", ".json")
MAX_TEXT_BYTES = 2**31 - 2  # one block of pyarrow's CSV reader, so that types come from all rows
READ_TIMEOUT_S = 600.0
JSON_BLOCK_ROWS = 50_000
_SHOWN = 5

Part = tuple[str, int]


def read_parts(uri: str, columns: Collection[str]) -> tuple[pa.Table, list[Part]]:
    """The table at ``uri`` (a file, or a folder of part files in name order) and each file's number of rows.

    ``columns`` are read as text from CSV and JSON Lines. Refused: missing, unreadable or malformed.
    """
    tables = []
    files = _files(uri)
    for file in files:
        read = {".parquet": _read_parquet, ".csv": _read_csv}.get(_extension(file), _read_json_lines)
        table = read(file, columns)
        repeated = [name for name, times in Counter(table.column_names).items() if times > 1]
        if repeated:
            raise Refused(f"{file} has the column {repeated[0]!r} more than once; keep one of them")
        tables.append(table)
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise Refused(f"{uri}: its part files differ: {error}; write them with one schema") from error
    return whole, [(file, table.num_rows) for file, table in zip(files, tables, strict=True)]


def _extension(uri: str) -> str:
    return posixpath.splitext(uri.rstrip("/"))[1].lower()


def _files(uri: str) -> list[str]:
    try:
        files = storage.files_in(uri)
        folders = storage.folders_in(uri) or []
    except OSError as error:
        raise _unreadable(uri, error) from error
    if files is None:
        if _extension(uri) not in FORMATS:
            raise Refused(f"{uri} is no known kind of table; its name must end in one of {', '.join(FORMATS)}")
        return [uri]
    files = [file for file in files if not posixpath.basename(file).startswith((".", "_"))]
    extensions = sorted({_extension(file) for file in files})
    if not files or not set(extensions) <= set(FORMATS) or len(extensions) > 1:
        found = ", ".join(extension or "no extension" for extension in extensions) or "no files"
        raise Refused(f"{uri} holds {found}; expected part files of one kind: {', '.join(FORMATS)}")
    folders = [folder for folder in folders if not posixpath.basename(folder).startswith((".", "_"))]
    if folders:  # part files in there would be rows that are silently left out
        raise Refused(f"{uri} holds folders too, such as {folders[0]}; give one folder of part files, or one file")
    return files


def _unreadable(uri: str, error: OSError) -> Refused:
    return Refused(f"{uri} cannot be read: {storage.reason(error)}; check the path and its permissions")


def _read_parquet(uri: str, columns: Collection[str]) -> pa.Table:
    fs, path = storage.filesystem_of(uri)
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            table = parquet.read()
    except pa.ArrowException as error:
        raise Refused(f"{uri} is not a readable Parquet file: {error}; write it again") from error
    except OSError as error:
        raise _unreadable(uri, error) from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        row = _first_invalid(column)
        if row is not None:
            raise Refused(f"{uri} row {row + 1}: {name} is not valid UTF-8 text; write it again as UTF-8")
    return table


def _first_invalid(column: pa.ChunkedArray) -> int | None:
    """The first row that fails Arrow's full validation, found by halving."""
    if _is_valid(column):
        return None
    start, stop = 0, len(column)
    while stop - start > 1:
        middle = (start + stop) // 2
        start, stop = (middle, stop) if _is_valid(column.slice(start, middle - start)) else (start, middle)
    return start


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _read_text(uri: str) -> bytes:
    try:
        data = storage.read_bytes(uri, max_bytes=MAX_TEXT_BYTES, timeout_s=READ_TIMEOUT_S)
    except storage.TooLargeError as error:
        raise Refused(f"{uri} {error}; write it as Parquet or as several part files") from error
    except OSError as error:
        raise _unreadable(uri, error) from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refused(
            f"{uri} line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    return data


def _read_csv(uri: str, columns: Collection[str]) -> pa.Table:
    data = _read_text(uri)
    if not data.strip():
        raise Refused(f"{uri} is empty; expected a header and rows")
    if data.count(b'"') % 2:
        raise Refused(f'{uri}: a quotation mark (") is opened and never closed; close or double it')
    first_lines = io.StringIO(data[: 2**20].decode("utf-8", errors="ignore"))
    try:
        header = next(row for row in csv.reader(first_lines) if row)
    except csv.Error as error:
        raise Refused(f"{uri} has no readable header: {error}") from error
    text = {name: pa.string() for name in header if name in columns or name.lower().endswith("_id")}
    misfits: list[pacsv.InvalidRow] = []

    def note(row: pacsv.InvalidRow) -> str:
        misfits.append(row)
        return "skip"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pacsv.ConvertOptions(column_types=text, null_values=NULL_WORDS, strings_can_be_null=True),
        )
    except pa.ArrowException as error:
        raise Refused(f"{uri} is not a readable CSV file: {error}") from error
    if misfits:
        lines = [
            f"row {row.number - 1} has {row.actual_columns} values, the header {row.expected_columns}"
            for row in misfits
        ]
        advice = "quote the values that contain commas"
        raise Refused(_several(uri, lines, advice))
    return table


def _read_json_lines(uri: str, columns: Collection[str]) -> pa.Table:
    data = _read_text(uri)
    if not data.strip():
        raise Refused(f"{uri} is empty; expected one JSON object a line")
    if data.lstrip()[:1] == b"[":
        raise Refused(f"{uri} is a JSON array, expected JSON Lines; write one object a line")
    lines, wrong, tables = data.decode().split("\n"), [], []
    for start in range(0, len(lines), JSON_BLOCK_ROWS):  # a million dictionaries at once would fill the memory
        rows = list(_json_rows(lines, start, wrong))
        names = dict.fromkeys(name for row in rows for name in row)
        tables.append(pa.table({name: _json_column(uri, name, rows, name in columns) for name in names}))
    if wrong:
        raise Refused(_several(uri, wrong, "write one complete object a line"))
    try:
        filled = [table for table in tables if table.num_rows] or tables[:1]
        return pa.concat_tables(filled, promote_options="permissive")
    except pa.ArrowException as error:
        raise Refused(f"{uri}: its values do not make one table: {error}; write them alike") from error


def _json_rows(lines: list[str], start: int, wrong: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of one block of lines; what is not one goes to ``wrong``."""
    for number, line in enumerate(lines[start : start + JSON_BLOCK_ROWS], start=start + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            wrong.append(f"line {number} is not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield row
        else:
            wrong.append(f"line {number} is not a JSON object")


def _json_column(uri: str, name: str, rows: list[dict], as_text: bool) -> pa.Array:
    cells = [row.get(name) for row in rows]
    if as_text:
        cells = [cell if cell is None or isinstance(cell, str) else _as_text(cell) for cell in cells]
    elif name.lower().endswith("_id"):
        cells = [str(cell) if isinstance(cell, int) else cell for cell in cells]
    try:
        return pa.array(cells)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise Refused(f"{uri}: the values of {name} do not make one column: {error}; write them alike") from error


def _as_text(cell: Any) -> str:
    return str(cell) if type(cell) in (int, float) else json.dumps(cell)


def _several(uri: str, problems: list[str], advice: str) -> str:
    more = f" (and {len(problems) - _SHOWN:,} more)" if len(problems) > _SHOWN else ""
    return f"{uri} {'; '.join(problems[:_SHOWN])}{more}; {advice}"
