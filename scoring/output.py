"""The output folder of a scoring job: what is finished, what is written, and the proof that no row is lost.

DIR/config.json         the resolved config, written first
DIR/scores/*.parquet    exactly one row an input row, complete files only
DIR/maps/*.parquet      on request
DIR/run.json            written last: its presence says that the job is finished
"""

import collections
import dataclasses
import hashlib
import io
import json
from collections.abc import Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import storage
from catalog.errors import Refused
from catalog.schemas import MAPS, SCORES, Status

TALLY = ("video_id", "status", "error_code", "error_message", "seconds", "core_s")


@dataclasses.dataclass(frozen=True)
class OutputFolder:
    """A folder, local or remote, that only ever holds whole files of one config."""

    uri: str

    def claim(self, config: dict[str, Any], config_hash: str, video_ids: Set[str]) -> None:
        """Take the folder for this config, or go on in it. Raises Refused where it holds another config's
        scores or rows of videos other than ``video_ids``, or cannot be written to."""
        storage.check_writable(self.uri)
        earlier = self._read_json("config.json")
        if earlier is not None and earlier.get("config_hash") != config_hash:
            before, now = earlier.get("scores_depend_on", {}), config["scores_depend_on"]
            changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
            differences = "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in changed)
            raise Refused(
                f"{self.uri} holds scores of another config ({differences}); scores are never mixed: "
                "give another --output, or the config that the folder was begun with"
            )
        if others := set(self.ids()) - video_ids:
            raise Refused(
                f"{self.uri} holds scores of {len(others)} videos that the videos table does not have "
                f"(such as {min(others)}): give another --output, or a table with these videos too"
            )
        self._write_json("config.json", config | {"config_hash": config_hash})

    def reopen(self, retry_failed: bool) -> tuple[set[str], int]:
        """Ids that need no more work, and how many rows of them failed; makes the folder fit to go on in.

        Rows that a crash left twice are cut to one; with ``retry_failed`` the failed ones are taken out.
        """
        finished: set[str] = set()
        failed = 0
        whole: set[str] = set()
        for part in self._parts("scores"):
            table = pq.read_table(io.BytesIO(storage.read_bytes(part)), schema=SCORES)
            kept: list[int] = []
            for i, (video_id, status) in enumerate(
                zip(table["video_id"].to_pylist(), table["status"].to_pylist(), strict=True)
            ):
                if video_id not in finished and not (retry_failed and status == Status.FAILED):
                    finished.add(video_id)
                    kept.append(i)
            if len(kept) < table.num_rows:
                self.unfinish()
            if not kept:
                self._remove(part)
                continue
            if len(kept) < table.num_rows:
                table = table.take(kept)
                self._keep_maps(part, table["video_id"])
                storage.write_bytes_atomically(part, _parquet(table))
            whole.add(_name(part))
            failed += pc.sum(pc.equal(table["status"], Status.FAILED)).as_py() or 0
        for part in self._parts("maps"):
            if _name(part) not in whole:  # a crash came between its maps and its scores
                self._remove(part)
        return finished, failed

    def write(self, scored: pa.Table) -> pa.Table:
        """Write one block's rows as one file; the same rows always go to the same file, so a stage that is
        tried again doubles nothing. Returns the columns TALLY."""
        name = hashlib.sha256("\0".join(scored["video_id"].to_pylist()).encode()).hexdigest()[:20]
        if "map" in scored.column_names:
            maps = [row for row in scored["map"].to_pylist() if row is not None]
            if maps:
                data = _parquet(pa.Table.from_pylist(maps, schema=MAPS))
                storage.write_bytes_atomically(f"{self.uri}/maps/{name}.parquet", data)
        storage.write_bytes_atomically(f"{self.uri}/scores/{name}.parquet", _parquet(scored.select(SCORES.names)))
        return scored.select(list(TALLY))

    def ids(self) -> list[str]:
        """The video_id of every row that is there."""
        return self._column("video_id")

    def counts(self) -> tuple[collections.Counter[str], collections.Counter[str]]:
        """Rows by status, and failed rows by error code."""
        statuses, codes = self._column("status"), self._column("error_code")
        return collections.Counter(statuses), collections.Counter(code for code in codes if code is not None)

    def summary(self) -> dict[str, Any] | None:
        """What run.json says; None where the folder is not finished."""
        return self._read_json("run.json")

    def finish(self, summary: dict[str, Any]) -> None:
        self._write_json("run.json", summary)

    def unfinish(self) -> None:
        """There is work again: the folder is not finished until ``finish``."""
        self._remove(f"{self.uri}/run.json")

    def _keep_maps(self, scores_part: str, ids: pa.ChunkedArray) -> None:
        part = f"{self.uri}/maps/{_name(scores_part)}"
        if part in self._parts("maps"):
            maps = pq.read_table(io.BytesIO(storage.read_bytes(part)), schema=MAPS)
            storage.write_bytes_atomically(part, _parquet(maps.filter(pc.is_in(maps["video_id"], ids))))

    def _column(self, name: str) -> list[Any]:
        parts = (io.BytesIO(storage.read_bytes(part)) for part in self._parts("scores"))
        return [value for part in parts for value in pq.read_table(part, columns=[name])[name].to_pylist()]

    def _remove(self, uri: str) -> None:
        fs, path = storage.filesystem_of(uri)
        if fs.exists(path):
            fs.rm_file(path)

    def _parts(self, folder: str) -> list[str]:
        try:
            parts = storage.files_in(f"{self.uri}/{folder}") or []
        except FileNotFoundError:
            return []
        return sorted(part for part in parts if part.endswith(".parquet"))

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads(storage.read_bytes(f"{self.uri}/{name}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Refused(f"{self.uri}/{name} cannot be read: {error}; give another --output") from error

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        storage.write_bytes_atomically(f"{self.uri}/{name}", json.dumps(content, indent=2, default=str).encode())


def read_scores(uri: str) -> pa.Table:
    """All rows of a scoring job's output. Raises Refused where there are none."""
    parts = OutputFolder(storage.absolute(uri))._parts("scores")
    if not parts:
        raise Refused(f"{uri} holds no scores/*.parquet; give the --output folder of jobs.score")
    return pa.concat_tables(pq.read_table(io.BytesIO(storage.read_bytes(p)), schema=SCORES) for p in parts)


def _name(part: str) -> str:
    return part.rsplit("/", 1)[-1]


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
