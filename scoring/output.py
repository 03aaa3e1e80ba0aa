"""The output folder of a scoring job: what is finished, what is written, and the proof that no row is lost.

DIR/config.json         the resolved config, written first
DIR/scores/*.parquet    exactly one row an input row, complete files only
DIR/maps/*.parquet      on request
DIR/run.json            written last: its presence says that the job is finished
"""

import dataclasses
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import storage
from catalog.errors import Refused
from catalog.schemas import MAPS, SCORES, Status

log = logging.getLogger(__name__)

TALLY = ("video_id", "status", "error_code", "error_message", "seconds", "core_s", "fetch_s", "gpu_s")
TALLY += ("rejections", "figures")
ROWS = ("video_id", "product_id", "status", "error_code", "config_hash")
READERS = 16
READ_TOGETHER = 512
"""files; a table of a few rows takes far more memory on its own than as a piece of a larger one"""
TOLD_EVERY_S = 60.0


class Sink(Protocol):
    """Where a graph's scores end."""

    def write(self, scored: pa.Table) -> pa.Table:
        """Takes what ``ScoreRow.table`` makes, returns its columns TALLY."""
        ...


class CostsOnly:
    """Keeps no scores: for a trial that asks what they cost."""

    def write(self, scored: pa.Table) -> pa.Table:
        return scored.select(list(TALLY))


@dataclasses.dataclass(frozen=True)
class OutputFolder:
    """A folder, local or remote, that only ever holds whole files of one config."""

    uri: str

    def rows(self, columns: Sequence[str] = ROWS) -> pa.Table:
        """What is there: the ``columns`` of every row, and ``part``, the file that it is in."""
        parts = self._parts("scores")
        rows, sizes = _read_parts(parts, columns)
        place = np.repeat(np.arange(len(parts)), sizes)
        return rows.append_column("part", pa.array(parts, pa.string()).take(pa.array(place, pa.int64())))

    def check(self, config: dict[str, Any], config_hash: str, videos: pa.Table, retry_failed: bool) -> pa.Table:
        """Whether this config's scores of ``videos`` (video_id, product_id) may go here; writes nothing.

        config: the resolved flags, with what scores depend on in ``scores_depend_on`` and a digest of each product's
        images in ``product_images``. Returns the ``rows`` that are there. Raises Refused where they are of another
        config, of other videos or of other products, or where the folder cannot be written to.
        """
        storage.check_writable(self.uri)
        rows = self.rows()
        if not rows.num_rows:
            return rows
        earlier = self.config()
        if set(pc.unique(rows["config_hash"]).to_pylist()) != {config_hash}:
            changed = differences(earlier.get("scores_depend_on", {}), config["scores_depend_on"])
            raise Refused(
                f"{self.uri} holds scores of another config ({changed or 'config.json does not say which'}); scores "
                "are never mixed: give another --output, or the config that the folder was begun with"
            )
        if earlier.get("save_maps", config.get("save_maps")) != config.get("save_maps"):
            raise Refused(
                f"{self.uri} was begun with{'' if earlier['save_maps'] else 'out'} --save-maps; maps of some videos "
                "only would mislead: give another --output, or the flags that the folder was begun with"
            )
        place = pc.index_in(rows["video_id"], value_set=videos["video_id"].combine_chunks())
        if place.null_count:
            first = rows["video_id"].filter(pc.is_null(place))[0].as_py()
            raise Refused(
                f"{self.uri} holds scores of {place.null_count} videos that the videos table does not have "
                f"(such as {first}): give another --output, or a table with these videos too"
            )
        kept = pc.not_equal(rows["status"], Status.FAILED) if retry_failed else pc.is_valid(rows["status"])
        self._check_products(rows.filter(kept), videos["product_id"].take(place.filter(kept)), earlier, config)
        return rows

    def _check_products(
        self, rows: pa.Table, now: pa.ChunkedArray, earlier: dict[str, Any], config: dict[str, Any]
    ) -> None:
        before = rows["product_id"]
        others = rows["video_id"].filter(pc.invert(same_or_both_null(before, now))).to_pylist()
        if others:
            raise Refused(
                f"{self.uri} holds scores of {len(others)} videos with another product_id than the videos table gives "
                f"them now (such as {others[0]}); give another --output, or the product_ids they were scored with"
            )
        was, images = earlier.get("product_images", {}), config.get("product_images", {})
        used = set(pc.unique(before).to_pylist()) - {None}
        replaced = sorted(p for p in used if p in was and was[p] != images.get(p))
        if replaced:
            raise Refused(
                f"{self.uri} holds scores made with other images of {len(replaced)} products (such as {replaced[0]}); "
                "give another --output, or the images they were scored with"
            )

    def check_unchanged(self, rows: pa.Table) -> None:
        """Refused where another job has written here since ``rows`` were read."""
        if set(self._parts("scores")) != set(pc.unique(rows["part"]).to_pylist()):
            raise Refused(f"another job has written to {self.uri} in this very moment; run the same command again")

    def begin(self, config: dict[str, Any], config_hash: str, rows: pa.Table, retried: Set[str]) -> None:
        """Take the folder and make it fit to go on in, see ``repair``."""
        self._write_json("config.json", config | {"config_hash": config_hash})
        self.unfinish()
        for folder in ("scores", "maps", "attempts"):
            storage.sweep(f"{self.uri}/{folder}")
        self.repair(rows, retried)

    def repair(self, rows: pa.Table, retried: Set[str] = frozenset()) -> None:
        """Cut rows that a crash left twice to one and take out those of the videos ``retried``. ``rows``: as ``rows``
        returns them."""
        seen = set(retried)
        kept: dict[str, list[bool]] = {}
        for video_id, part in zip(rows["video_id"].to_pylist(), rows["part"].to_pylist(), strict=True):
            kept.setdefault(part, []).append(video_id not in seen)
            seen.add(video_id)
        maps = frozenset(self._parts("maps"))

        def mend(part: str) -> None:
            keep = kept[part]
            if not any(keep):
                storage.remove(part)
                return
            table = _read_part(part, SCORES.names).filter(pa.array(keep))
            if self._maps_of(part) in maps:
                self._keep_maps(part, table["video_id"])
            storage.write_bytes_atomically(part, _parquet(table))

        _each("taking out rows", mend, [part for part, keep in kept.items() if not all(keep)])
        whole = {self._maps_of(part) for part, keep in kept.items() if any(keep)}
        # a crash came between these maps and their scores
        _each("taking out maps", storage.remove, maps - whole)

    def maps(self, part: str | None = None, video_ids: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Saved maps (schemas.MAPS): all, or those of the videos whose scores are in ``part``, or of these videos."""
        wanted = None if video_ids is None else pc.field("video_id").isin(list(video_ids))
        for maps in self._parts("maps") if part is None else [self._maps_of(part)]:
            try:
                yield from pq.read_table(io.BytesIO(storage.read_bytes(maps)), schema=MAPS, filters=wanted).to_pylist()
            except FileNotFoundError:
                continue
            except (OSError, pa.ArrowException) as error:
                raise Refused(f"{maps} cannot be read: {error}; remove it, and score its videos again") from error

    def write(self, scored: pa.Table) -> pa.Table:
        """Write one block's rows as one file; the same rows always go to the same file, so a stage that is
        tried again doubles nothing. Returns the columns TALLY. OSError."""
        with_maps = "map" in scored.column_names
        self._write_rows(scored, [row for row in scored["map"].to_pylist() if row is not None] if with_maps else [])
        return scored.select(list(TALLY))

    def _write_rows(self, scored: pa.Table, maps: list[dict[str, Any]]) -> None:
        name = hashlib.sha256("\0".join(scored["video_id"].to_pylist()).encode()).hexdigest()[:20]
        if maps:
            data = _parquet(pa.Table.from_pylist(maps, schema=MAPS))
            storage.write_bytes_atomically(f"{self.uri}/maps/{name}.parquet", data)
        storage.write_bytes_atomically(f"{self.uri}/scores/{name}.parquet", _parquet(scored.select(SCORES.names)))

    def carry(self, earlier: "OutputFolder", rows: pa.Table) -> None:
        """Copy rows of another folder (video_id and part, as ``rows`` returns them), with their maps, into this one."""
        by_part = rows.group_by("part").aggregate([("video_id", "list")])
        ids_in = dict(zip(by_part["part"].to_pylist(), by_part["video_id_list"].to_pylist(), strict=True))
        mapped = frozenset(earlier._parts("maps"))

        def copy(part: str) -> None:
            ids, table = ids_in[part], _read_part(part, SCORES.names)
            table = table.filter(pc.is_in(table["video_id"], pa.array(ids, pa.string())))
            self._write_rows(table, list(earlier.maps(part, ids)) if earlier._maps_of(part) in mapped else [])

        _each("carrying over", copy, ids_in)

    def config(self) -> dict[str, Any]:
        """What config.json says; empty where there is none."""
        return self._read_json("config.json") or {}

    def summary(self) -> dict[str, Any] | None:
        """What run.json says; None where the folder is not finished."""
        return self._read_json("run.json")

    def finish(self, summary: dict[str, Any]) -> None:
        self._write_json("run.json", summary)

    def unfinish(self) -> None:
        """There is work again: the folder is not finished until ``finish``."""
        storage.remove(f"{self.uri}/run.json")

    def _keep_maps(self, scores_part: str, ids: pa.ChunkedArray) -> None:
        part = self._maps_of(scores_part)
        maps = pq.read_table(io.BytesIO(storage.read_bytes(part)), schema=MAPS)
        storage.write_bytes_atomically(part, _parquet(maps.filter(pc.is_in(maps["video_id"], ids))))

    def _maps_of(self, scores_part: str) -> str:
        return f"{self.uri}/maps/{scores_part.rsplit('/', 1)[-1]}"

    def _parts(self, folder: str) -> list[str]:
        try:
            parts = storage.files_in(f"{self.uri}/{folder}") or []
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Refused(
                f"{self.uri}/{folder} cannot be listed: {storage.reason(error)}; check the storage and your rights to "
                "it, then run the same command again"
            ) from error
        return sorted(part for part in parts if part.endswith(".parquet"))

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads(storage.read_bytes(f"{self.uri}/{name}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Refused(f"{self.uri}/{name} cannot be read: {error}; give another --output") from error
        if not isinstance(content, dict):
            raise Refused(f"{self.uri}/{name} holds no JSON object; give another --output")
        return content

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        storage.write_bytes_atomically(f"{self.uri}/{name}", json.dumps(content, indent=2, default=str).encode())


def read_scores(uri: str, columns: Sequence[str] = SCORES.names) -> pa.Table:
    """These columns of all rows of a scoring job's output. Raises Refused where there are none."""
    parts = OutputFolder(storage.absolute(uri))._parts("scores")
    if not parts:
        raise Refused(f"{uri} holds no scores/*.parquet; give the --output folder of jobs.score")
    return _read_parts(parts, columns)[0]


def read_maps(uri: str, video_ids: Set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """E of those of the videos whose maps were saved, scaled to 0..1: (video_id, float32 (S, H, W)), a part at a
    time."""
    for row in OutputFolder(storage.absolute(uri)).maps(video_ids=sorted(video_ids)):
        E = np.frombuffer(row["e_uint8"], np.uint8).reshape(row["seconds"], row["height"], row["width"])
        yield row["video_id"], E.astype(np.float32) / 255


def _each(what: str, work: Callable[[str], None], files: Iterable[str]) -> None:
    """``work`` on every file, READERS at a time, with a line on how far it is now and then."""
    total, told = len(files := list(files)), time.monotonic()
    with ThreadPoolExecutor(READERS) as workers:
        for done, _ in enumerate(workers.map(work, files), 1):
            if time.monotonic() >= told + TOLD_EVERY_S:
                told = time.monotonic()
                log.info("%s: %s of %s files", what, f"{done:,}", f"{total:,}")


def _read_parts(parts: Sequence[str], columns: Sequence[str]) -> tuple[pa.Table, list[int]]:
    """These columns of all parts, and each part's number of rows."""
    groups, sizes = [pa.schema([SCORES.field(name) for name in columns]).empty_table()], []
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(parts), READ_TOGETHER):
            some = parts[start : start + READ_TOGETHER]
            tables = list(readers.map(lambda part: _read_part(part, list(columns)), some))
            sizes += [table.num_rows for table in tables]
            groups.append(pa.concat_tables(tables).combine_chunks())
    return pa.concat_tables(groups), sizes


def _read_part(part: str, columns: list[str]) -> pa.Table:
    schema = pa.schema([SCORES.field(name) for name in columns])
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(part)))  # read_table takes three times as long
        table = file.read(columns=columns, use_threads=False)
        if table.schema.equals(schema):
            return table
        # columns that an older version did not write are null
        return pa.concat_tables([schema.empty_table(), table], promote_options="default").select(columns).cast(schema)
    except (OSError, pa.ArrowException) as error:
        raise Refused(
            f"{part} cannot be read: {error}; remove it, and the same jobs.score command scores its videos again"
        ) from error


def same_or_both_null(a: pa.ChunkedArray, b: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed) if before else ""


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
