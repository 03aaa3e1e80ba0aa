# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)
"""Counts and durations as platforms show them: 541.2K, 1,234, 00:31.

All work is on whole columns (pyarrow.compute), in decimals where digits count. Spaces around a cell do not matter;
the words of NO_VALUE are null.
"""

import pyarrow as pa
import pyarrow.compute as pc

from catalog.table_casts import NULL_WORDS, Converted

NO_VALUE = (*NULL_WORDS, "-")
_COUNT = r"^(?P<number>(?:\d{1,18}|\d{1,3}(?:,\d{3}){1,5})(?:\.\d{1,9})?)\s*(?P<suffix>[KMB]?)$"
_DURATION = r"^(?:(?:(?P<hours>\d{1,4}):)?(?P<minutes>\d{1,4}):)?(?P<seconds>\d{1,9}(?:\.\d{1,9})?)$"
_SUFFIXES = pa.array(["", "K", "M", "B"])
_FACTORS = pa.array([1, 10**3, 10**6, 10**9], pa.decimal128(10, 0))
_LARGEST = pa.scalar(2**63 - 1, pa.decimal128(19, 0))


def parse_counts(text: pa.ChunkedArray) -> Converted:
    """int64 counts, exactly as written (1.005M is 1005000), and a mask of the bad cells (null in the result).

    K, M and B, in either case, stand for 10^3, 10^6 and 10^9. A suffix means that the platform rounded: 541.2K is
    some count from 541,150 to 541,250 (up to 541,300 where it cut digits off instead), and 1M, written for 1.0M, may
    be 5 % off (10 %). Bad is what is no whole number at or above 0: "-5", "12.5", "1.234" for 1,234, "many".
    """
    cells = without_words(text, NO_VALUE)
    parts = pc.extract_regex(pc.utf8_upper(cells), _COUNT)
    number = pc.replace_substring(pc.struct_field(parts, "number"), ",", "").cast(pa.decimal128(27, 9))
    factor = pc.take(_FACTORS, pc.index_in(pc.struct_field(parts, "suffix"), _SUFFIXES))
    count = pc.multiply(number, factor)
    good = pc.and_(pc.equal(pc.floor(count), count), pc.less_equal(count, _LARGEST))
    return _only(pc.fill_null(good, False), count, pa.int64(), cells)


def parse_durations(text: pa.ChunkedArray) -> Converted:
    """float64 seconds and a mask of the bad cells: 00:31 (minutes:seconds) is 31, 01:02:03 is 3723, 12.5 is 12.5.

    Below a larger unit minutes and seconds end at 59; 75:10 is an hour and more.
    """
    cells = without_words(text, NO_VALUE)
    parts = pc.extract_regex(cells, _DURATION)
    hours, minutes, seconds = (_number(pc.struct_field(parts, unit)) for unit in ("hours", "minutes", "seconds"))
    in_hour = pc.or_kleene(pc.is_null(hours), pc.less(minutes, 60))
    in_minute = pc.or_kleene(pc.is_null(minutes), pc.less(seconds, 60))
    total = pc.add(
        pc.add(pc.multiply(pc.fill_null(hours, 0), 3600), pc.multiply(pc.fill_null(minutes, 0), 60)), seconds
    )
    good = pc.and_(pc.and_(in_hour, in_minute), pc.is_valid(total))
    return _only(pc.fill_null(good, False), total, pa.float64(), cells)


def is_rounded(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask of the counts that are written with a suffix."""
    return pc.fill_null(pc.match_substring_regex(pc.utf8_trim_whitespace(text), r"\d\s*[KMBkmb]$"), False)


def without_words(text: pa.ChunkedArray, words: tuple[str, ...]) -> pa.ChunkedArray:
    """The cells without the spaces around them; those that are one of ``words`` are null."""
    cells = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.is_in(cells, pa.array(words, pa.string())), None, cells)


def _number(digits: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(digits, ""), None, digits).cast(pa.float64())


def _only(good: pa.ChunkedArray, values: pa.ChunkedArray, kind: pa.DataType, cells: pa.ChunkedArray) -> Converted:
    return pc.if_else(good, values, None).cast(kind), pc.and_(pc.is_valid(cells), pc.invert(good))
