# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)
"""The input tables, read and checked at the door: refused with table, column, row and reason before any work.

A table is one file or a folder of part files of one format (taken in name order), local or remote:
Parquet, CSV or JSON Lines (.jsonl, .ndjson, .json). In the text formats
- columns of the schema and columns named ..._id are read as text first, so that 19-digit ids keep their
  digits; the types of other columns follow from their values;
- an empty CSV cell, NA, N/A, NaN, nan, null, NULL and None are null;
- a cell of a list column is a JSON list where it begins with "[", else the one value of the list.
Rows are counted from 1 in each file, the header not counted.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import schemas, storage
from catalog.errors import Refused
from catalog.table_casts import convert, wanted
from catalog.table_files import Part, read_parts

SHOWN_PROBLEMS = 5
_SCHEME = r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
_NEEDS_RESOLVING = r"^[Ff][Ii][Ll][Ee]://|(^|/)\.\.?(/|$)"


def read_videos(uri: str, required: Sequence[str] = ("video_id", "video_uri")) -> pa.Table:
    """The videos table with the columns of schemas.VIDEOS first, any others after them as they are.

    ``required`` columns must exist; other schema columns are checked where they exist and null where they do
    not. video_uri comes back absolute. Refused, naming row and reason.
    """
    return _read(uri, schemas.VIDEOS, required, unique=("video_id",))


def read_products(uri: str, required: Sequence[str] = ("product_id", "image_uris")) -> pa.Table:
    """The products table (schemas.PRODUCTS), as read_videos; every image URI comes back absolute."""
    return _read(uri, schemas.PRODUCTS, required, unique=("product_id",))


def read_sales(uri: str, required: Sequence[str] = ("product_id", "date")) -> pa.Table:
    """The sales table (schemas.SALES), as read_videos: one row a product and day, revenue or revenue_30d."""
    table = _read(uri, schemas.SALES, required, unique=("product_id", "date"))
    if table["revenue"].null_count == table["revenue_30d"].null_count == table.num_rows:
        raise Refused(f"{uri} has values in neither revenue (that day) nor revenue_30d (rolling 30-day sum); add one")
    return table


def check_references(videos: pa.Table, products: pa.Table, videos_uri: str, products_uri: str) -> None:
    """Refused where a video names a product that is in no row of the products table. Null is allowed."""
    problems = Problems([(videos_uri, videos.num_rows)])
    named, known = videos["product_id"], products["product_id"]
    unknown = pc.and_(pc.is_valid(named), pc.invert(pc.is_in(named, value_set=known.combine_chunks())))
    problems.add(
        unknown,
        lambda row: (
            f"product_id is {_show(named[row])} (video_id {_show(videos['video_id'][row])}),"
            f" which is in no row of {products_uri}; add the product or set it to null"
        ),
    )
    problems.refuse_any(videos_uri)


class Problems:
    """What is wrong in which rows: counts all, keeps the first few of each kind."""

    def __init__(self, parts: Sequence[Part]):
        self.parts, self.count = parts, 0
        self.first: list[tuple[int, str]] = []

    def add(self, bad: pa.ChunkedArray, describe: Callable[[int], str]) -> None:
        """``bad`` is a mask over the rows; ``describe`` says what is wrong in a row (0-based)."""
        rows = pc.indices_nonzero(pc.fill_null(bad, False)).to_numpy()
        self.count += len(rows)
        self.first += [(int(row), describe(int(row))) for row in rows[:SHOWN_PROBLEMS]]

    def refuse_any(self, table_uri: str) -> None:
        if not self.count:
            return
        lines = [f"{self._place(row)}: {what}" for row, what in sorted(self.first)[:SHOWN_PROBLEMS]]
        if self.count == 1:
            raise Refused(lines[0])
        more = [f"and {self.count - len(lines):,} more"] if self.count > len(lines) else []
        head = f"{table_uri} has {self.count:,} problems (rows are counted from 1 after the header):"
        raise Refused("\n  ".join([head, *lines, *more]))

    def _place(self, row: int) -> str:
        for uri, rows in self.parts:
            if row < rows:
                return f"{uri} row {row + 1}"
            row -= rows
        raise IndexError(row)


def _read(uri: str, schema: pa.Schema, required: Sequence[str], unique: Sequence[str]) -> pa.Table:
    table, parts = read_parts(uri, schema.names)
    for name in required:
        if name not in table.column_names:
            found = ", ".join(table.column_names) or "none"
            raise Refused(f"{uri} has no column {name}; its columns are: {found}; add it or rename one")
    if not table.num_rows:
        raise Refused(f"{uri} has no rows; nothing can be done with an empty table")
    problems = Problems(parts)
    columns = {}
    for field in schema:
        if field.name in table.column_names:
            columns[field.name] = _checked(uri, table[field.name], field, problems)
        else:
            columns[field.name] = pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    _check_unique(columns, [name for name in unique if name in table.column_names], problems)
    if schema is schemas.PRODUCTS:
        _check_images(columns["image_uris"], columns["image_outlines"], problems)
    uris = [name for name in ("video_uri", "image_uris") if name in columns and name in table.column_names]
    for name in uris:
        _check_uris(columns[name], name, problems)
    problems.refuse_any(uri)
    for name in uris:
        columns[name] = _resolve(columns[name], _folder_of(uri, parts))
    others = {name: table[name] for name in table.column_names if name not in columns}
    fields = [field.with_nullable(True) for field in schema]
    fields += [table.schema.field(name).with_nullable(True) for name in others]
    return pa.table({**columns, **others}, schema=pa.schema(fields))


def _checked(uri: str, values: pa.ChunkedArray, field: pa.Field, problems: Problems) -> pa.ChunkedArray:
    name = field.name
    converted = convert(values, field.type)
    if converted is None:
        raise Refused(
            f"{uri}: column {name} holds {values.type} (row 1: {_show(values[0])}),"
            f" expected {wanted(field.type)}; convert it first"
        )
    result, bad = converted
    problems.add(bad, lambda row: f"{name} is {_show(values[row])}, expected {wanted(field.type)}; convert it first")
    if not field.nullable:
        missing = pc.and_(pc.is_null(result), pc.invert(bad))
        problems.add(missing, lambda row: f"{name} is null; every row needs one")
    if name.endswith(("_id", "_uri")):
        advice = "write null where there is none" if field.nullable else "every row needs one"
        empty = pc.equal(pc.utf8_trim_whitespace(result), "")
        problems.add(empty, lambda row: f"{name} is empty; {advice}")
    if pa.types.is_integer(field.type):
        negative = pc.less(result, 0)
        problems.add(
            negative,
            lambda row: f"{name} is {result[row]}, which no count is; correct it or write null",
        )
    return result


def _check_unique(columns: dict[str, pa.ChunkedArray], key: list[str], problems: Problems) -> None:
    keys = pa.table({name: columns[name] for name in key})
    if not key or keys.group_by(key).aggregate([]).num_rows == keys.num_rows:
        return
    frame = keys.to_pandas()
    complete = frame.notna().all(axis="columns")
    repeated = frame.duplicated() & complete

    def describe(row: int) -> str:
        same = (frame == frame.iloc[row]).all(axis="columns").to_numpy()
        what = " and ".join(f"{name} {_show(columns[name][row])}" for name in key)
        return f"{what} was already given in {problems._place(int(np.argmax(same)))}; keep one of the rows"

    problems.add(pa.chunked_array([pa.array(repeated.to_numpy())]), describe)


def _check_images(uris: pa.ChunkedArray, outlines: pa.ChunkedArray, problems: Problems) -> None:
    images = pc.list_value_length(uris)
    problems.add(pc.equal(images, 0), lambda row: "image_uris is an empty list; give at least one image")
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(pc.list_flatten(uris)), ""), True)
    problems.add(
        _any_in_row(uris, blank),
        lambda row: f"image_uris has an empty entry: {_show(uris[row])}; remove it",
    )
    polygons = pc.list_value_length(outlines)
    problems.add(
        pc.not_equal(polygons, images),
        lambda row: (
            f"image_outlines has {polygons[row]} polygons for {images[row]} images; give one an image,"
            " null where the whole image is the product"
        ),
    )
    flat = pc.list_flatten(outlines)
    coordinates = pc.list_value_length(flat)
    misshapen = pc.or_(pc.less(coordinates, 6), pc.not_equal(pc.bit_wise_and(coordinates, 1), 0))
    problems.add(
        _any_in_row(outlines, misshapen),
        lambda row: (
            "image_outlines has a polygon of"
            f" {next(len(p) for p in outlines[row].as_py() if p is not None and (len(p) < 6 or len(p) % 2))}"
            " numbers, expected x1, y1, x2, y2, x3, y3, ...: an even count, at least 6"
        ),
    )
    unplaced = _any_in_row(flat, pc.fill_null(pc.invert(pc.is_finite(pc.list_flatten(flat))), True))
    problems.add(
        _any_in_row(outlines, unplaced),
        lambda row: "image_outlines has a coordinate that is null or not finite; give numbers in px",
    )


def _any_in_row(lists: pa.ChunkedArray, bad_items: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask over the lists: True where one of their items is bad."""
    parents = pc.filter(pc.list_parent_indices(lists), pc.fill_null(bad_items, False))
    mask = np.zeros(len(lists), dtype=bool)
    mask[parents.to_numpy()] = True
    return pa.chunked_array([pa.array(mask)])


def _check_uris(uris: pa.ChunkedArray, name: str, problems: Problems) -> None:
    """Adds the rows whose URIs name a storage that cannot be read at all."""
    is_list = pa.types.is_list(uris.type)
    flat = pc.list_flatten(uris) if is_list else uris
    schemes = pc.struct_field(pc.extract_regex(flat, _SCHEME), "scheme")
    for scheme in pc.unique(schemes.drop_null()).to_pylist():
        here = pc.equal(schemes, scheme)
        if scheme.lower() == "file":
            bad = pc.and_(here, pc.invert(pc.match_substring_regex(flat, r"^\w+://(localhost)?/")))
        elif _refusal(flat[pc.index(schemes, scheme).as_py()].as_py()):
            bad = here
        else:
            continue

        def describe(row: int) -> str:
            cells = uris[row].as_py() if is_list else [uris[row].as_py()]
            return f"{name}: {next(filter(None, map(_refusal, cells)))}"

        problems.add(_any_in_row(uris, bad) if is_list else bad, describe)


def _refusal(uri: str) -> str | None:
    try:
        storage.check_scheme(uri)
    except Refused as error:
        return str(error)
    return None


def _resolve(uris: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """URIs, or lists of them, made absolute against the table's folder."""
    if not pa.types.is_list(uris.type):
        return _absolute(uris, folder)
    lists = uris.combine_chunks()
    flat = _absolute(pa.chunked_array([lists.flatten()]), folder).combine_chunks()
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())])
    return pa.chunked_array([pa.ListArray.from_arrays(offsets.astype(np.int32), flat)])


def _absolute(uris: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    joined = pc.binary_join_element_wise(folder.rstrip("/"), uris, "/")
    is_absolute = pc.or_(pc.match_substring_regex(uris, _SCHEME), pc.starts_with(uris, "/"))
    simple = pc.if_else(is_absolute, uris, joined)
    odd = pc.fill_null(pc.match_substring_regex(uris, _NEEDS_RESOLVING), False)
    replaced = [storage.absolute(uri, folder) for uri in pc.filter(uris, odd).to_pylist()]
    return pc.replace_with_mask(simple, odd.combine_chunks(), pa.array(replaced, pa.string())) if replaced else simple


def _folder_of(uri: str, parts: Sequence[Part]) -> str:
    is_folder = parts[0][0] != uri
    whole = storage.absolute(uri)
    return whole.rstrip("/") if is_folder else whole.rpartition("/")[0]


def _show(value: pa.Scalar) -> str:
    try:
        text = json.dumps(value.as_py(), ensure_ascii=False, default=str)
    except (ValueError, OverflowError):
        text = "beyond the years that can be told"
    return text if len(text) <= 60 else f"{text[:57]}..."
