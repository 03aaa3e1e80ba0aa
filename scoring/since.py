"""Rescoring of what is new: the rows of an earlier run are carried over where nothing they depend on has changed."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import Refused
from catalog.schemas import Status
from scoring.fingerprints import Images, fingerprints
from scoring.output import OutputFolder, differences, same_or_both_null

READERS = 32
COLUMNS = ("video_id", "product_id", "status", "config_hash", "fingerprint")


def unchanged(
    since: OutputFolder,
    config: dict[str, Any],
    config_hash: str,
    videos: pa.Table,
    images: Images,
    retry_failed: bool,
) -> pa.Table:
    """video_id and part of the rows of the earlier run ``since`` that hold for ``videos`` (video_id, video_uri,
    product_id) still: the same product_id, the same content. Raises Refused where that run had other settings."""
    rows = since.rows(("video_id", "product_id", "status", "config_hash", "fingerprint"))
    if not rows.num_rows:
        raise Refused(f"--since {since.uri} holds no scores/*.parquet; give the --output of an earlier jobs.score")
    earlier = since.config()
    if set(pc.unique(rows["config_hash"]).to_pylist()) != {config_hash}:
        changed = differences(earlier.get("scores_depend_on", {}), config["scores_depend_on"])
        raise Refused(
            f"--since {since.uri} holds scores of another model or config "
            f"({changed or 'config.json does not say which'}); scores are never mixed: leave --since out, and a new "
            "model scores everything into the new folder"
        )
    if config.get("save_maps") and not earlier.get("save_maps"):
        raise Refused(f"--since {since.uri} was made without --save-maps; leave one of the two flags out")
    if retry_failed:
        rows = rows.filter(pc.not_equal(rows["status"], Status.FAILED))
    place = pc.index_in(rows["video_id"], value_set=videos["video_id"].combine_chunks())
    known = pc.and_(pc.is_valid(place), pc.is_valid(rows["fingerprint"]))
    rows, place = rows.filter(known), place.filter(known)
    same = same_or_both_null(rows["product_id"], videos["product_id"].take(place))
    rows, now = rows.filter(same), videos.take(place.filter(same))
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(fingerprints(images), now["video_uri"].to_pylist(), now["product_id"].to_pylist())
        content = pa.array(list(found), pa.string())
    return rows.filter(pc.fill_null(pc.equal(rows["fingerprint"], content), False)).select(["video_id", "part"])
