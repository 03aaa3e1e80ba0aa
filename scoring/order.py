"""In which order a catalogue is worked off, for results are read while a job runs."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import Refused
from scoring.settings import Order


def ordered(videos: pa.Table, order: Order, seed: int, table_uri: str) -> pa.Table:
    """The rows of ``videos`` (schemas.VIDEOS) in another order, unknowns last; ties stay as in the table.

    newest: by ``posted_at``. largest-reach: by ``views``, where they are not known by a column ``followers``.
    random: by ``seed``, so that what is there is a fair sample at any time. Raises Refused where nothing is known to
    go by.
    """
    if order == "table":
        return videos
    if order == "random":
        return videos.take(np.random.default_rng(seed).permutation(videos.num_rows))
    if order == "newest":
        column, key = "posted_at", videos["posted_at"]
    else:
        column, key = "views or followers", videos["views"]
        if "followers" in videos.column_names:
            key = pc.coalesce(key, _counts(videos["followers"], table_uri))
    if key.null_count == len(key):
        raise Refused(f"--order {order}: {table_uri} has no {column}; add the column, or choose another order")
    by = pa.table({"key": key, "row": np.arange(len(key))})
    return videos.take(pc.sort_indices(by, [("key", "descending"), ("row", "ascending")]))


def _counts(followers: pa.ChunkedArray, table_uri: str) -> pa.ChunkedArray:
    try:
        return followers.cast(pa.int64())
    except pa.ArrowException as error:
        raise Refused(f"--order largest-reach: {table_uri}: followers are no counts: {error}; convert them") from error
