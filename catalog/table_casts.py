# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)
"""Columns to the types of catalog.schemas, strictly: what cannot be converted is pointed at, never guessed.

All work is on whole columns (pyarrow.compute); only list cells written as text are parsed one by one.
"""

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

NULL_WORDS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LARGEST_EXACT_WHOLE = 2**53  # as float64

_YEARS_HELD = (datetime(1700, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))  # by every unit

Converted = tuple[pa.ChunkedArray, pa.ChunkedArray]


def wanted(kind: pa.DataType) -> str:
    """What a cell of that type should look like, in words."""
    if pa.types.is_integer(kind):
        return "a whole number such as 541200"
    if pa.types.is_floating(kind):
        return "a number such as 12.5"
    if pa.types.is_timestamp(kind):
        return "a time such as 2024-05-01T12:00:00Z"
    if pa.types.is_date(kind):
        return "a day such as 2024-05-01"
    if kind == pa.list_(pa.string()):
        return 'a list of texts such as ["front.png", "back.png"]'
    if pa.types.is_list(kind):
        return "a list of polygons such as [[x1, y1, x2, y2, x3, y3]]"
    return "text"


def convert(values: pa.ChunkedArray, kind: pa.DataType) -> Converted | None:
    """``values`` as ``kind``, and a mask of the values that cannot be (null in the result).

    None where nothing of that type can be converted. Integers become text exactly; whole floats become
    integers and NaN null; a time without a zone is UTC, a date midnight UTC.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_null(values.type):
        return pa.chunked_array([pa.nulls(len(values), kind)]), _none_bad(values)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    if pa.types.is_string(kind):
        return _to_text(values)
    if pa.types.is_integer(kind):
        return _to_whole(values)
    if pa.types.is_floating(kind):
        return _to_number(values)
    if pa.types.is_timestamp(kind):
        return _to_time(values)
    if pa.types.is_date(kind):
        times = _to_time(values)
        return times and (times[0].cast(kind), times[1])
    return _to_list(values, kind)


def _none_bad(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(False, len(values))])


def _to_text(values: pa.ChunkedArray) -> Converted | None:
    if pa.types.is_string(values.type) or pa.types.is_integer(values.type):
        return values.cast(pa.string()), _none_bad(values)
    return None  # floats too: 19-digit ids have lost digits there


def _to_number(values: pa.ChunkedArray) -> Converted | None:
    if pa.types.is_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        text = pc.if_else(pc.is_in(text, pa.array(NULL_WORDS)), None, text)
        written = pc.match_substring_regex(text, _NUMBER)
        unsigned = pc.utf8_ltrim(pc.if_else(written, text, None), "+")
        numbers, valid = unsigned.cast(pa.float64()), pc.is_valid(text)
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = values.cast(pa.float64(), safe=False)
        valid = pc.is_valid(pc.if_else(pc.is_nan(numbers), None, numbers))
    elif pa.types.is_decimal(values.type):
        numbers, valid = values.cast(pa.float64()), pc.is_valid(values)
    else:
        return None
    good = pc.fill_null(pc.is_finite(numbers), False)
    return pc.if_else(good, numbers, None), pc.and_(valid, pc.invert(good))


def _to_whole(values: pa.ChunkedArray) -> Converted | None:
    if pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type):
        return values.cast(pa.int64()), _none_bad(values)
    converted = _to_number(values)
    if converted is None:
        return None
    numbers, bad = converted
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less_equal(pc.abs(numbers), float(_LARGEST_EXACT_WHOLE)))
    bad = pc.or_(bad, pc.fill_null(pc.invert(whole), False))
    return pc.if_else(pc.fill_null(whole, False), numbers, None).cast(pa.int64()), bad


def _to_time(values: pa.ChunkedArray) -> Converted | None:
    utc = pa.timestamp("us", tz="UTC")
    if pa.types.is_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        text = pc.if_else(pc.is_in(text, pa.array(NULL_WORDS)), None, text)
        dated = pc.if_else(pc.match_substring_regex(text, r"^\d{4}-\d{2}-\d{2}"), text, None)
        parsed = pd.to_datetime(dated.to_pandas(), errors="coerce", utc=True, format="ISO8601")
        naive = pa.array(parsed.dt.tz_convert(None).to_numpy()).cast(pa.timestamp("us"), safe=False)
        times = pc.assume_timezone(pa.chunked_array([naive]), "UTC")
        return times, pc.and_(pc.is_valid(text), pc.is_null(times))
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(values.type):
        return None
    if values.type.tz is None:
        values = pc.assume_timezone(values, "UTC")
    low, high = (pa.scalar(time).cast(values.type) for time in _YEARS_HELD)
    beyond = pc.fill_null(pc.or_(pc.less(values, low), pc.greater(values, high)), False)
    return pc.if_else(beyond, None, values).cast(utc, safe=False), beyond


def _to_list(values: pa.ChunkedArray, kind: pa.DataType) -> Converted | None:
    if pa.types.is_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        text = pc.if_else(pc.is_in(text, pa.array(NULL_WORDS)), None, text)
        lists = pa.chunked_array([[_list_in_text(cell, kind) for cell in text.to_pylist()]], type=kind)
        return lists, pc.and_(pc.is_valid(text), pc.is_null(lists))
    try:
        return values.cast(kind), _none_bad(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _list_in_text(text: str | None, kind: pa.DataType) -> list[Any] | None:
    """The list in one cell; None where there is none or it is not of that type."""
    if text is None:
        return None
    if not text.startswith("["):
        return [text] if kind == pa.list_(pa.string()) else None
    try:
        cell = json.loads(text)
        pa.scalar(cell, type=kind)
    except (ValueError, RecursionError, pa.ArrowException, OverflowError):
        return None
    return cell
