"""The clip cache: every video decoded once, for all epochs and later runs.

CACHE/SETTINGS/*.parquet, rows as CLIPS; complete files only. SETTINGS is a digest of how videos are sampled, ``key``
one of a video's content: a changed video, or other settings, are decoded anew. A folder can be removed at any time.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.util.annotations import RayDeprecationWarning

from catalog import storage
from catalog.actors import RESTARTS
from catalog.errors import Broken, Refused, VideoError
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from training.decode import MAX_ASPECT, short_side, squashed

DECODE_TIMEOUT_S = 300.0
DECODE_MEMORY_BYTES = 4 * 2**30
PART_BYTES = 64 * 2**20
CLIPS_A_ROW_GROUP = 8
READERS = 16
READ_TIMEOUT_S = 600.0
IN_MEMORY_BYTES = 2**30
"""Squashed clips that take less are read once, by the driver; others by Ray Data in every epoch."""
ROWS_A_BLOCK = 16

CLIPS = pa.schema(
    [
        ("key", pa.string()),
        ("seconds", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("hashes", pa.list_(pa.uint64())),  # training.near_copies.frame_hashes
        ("frames", pa.large_binary()),  # uint8 (seconds, height, width, 3), RGB
    ]
)
SQUASHED = pa.schema(
    [
        ("video_id", pa.string()),
        ("label", pa.float64()),
        ("weight", pa.float64()),
        ("seconds", pa.int32()),
        ("clip", pa.large_binary()),  # uint8 (seconds, size, size, 3), RGB
    ]
)
Wanted = dict[str, list[dict[str, Any]]]
"""key of a clip -> video_id, label and weight of each video that has it"""
KNOWN = ("key", "seconds", "hashes", "part")
DECODED = pa.schema(
    [
        ("video_id", pa.string()),
        ("key", pa.string()),
        ("seconds", pa.int32()),
        ("hashes", pa.list_(pa.uint64())),
        ("part", pa.string()),
        ("error", pa.string()),  # of this video
        ("broken", pa.string()),  # why the job cannot go on: Ray Data would hand on an exception's text alone
    ]
)


@dataclasses.dataclass(frozen=True)
class Clips:
    """Where each video's clip is."""

    table: pd.DataFrame
    """video_id, key, seconds, hashes, part (the cache's file), a row a video that decoded"""
    undecodable: dict[str, str]
    """video_id -> why"""
    reused: int
    """how many were in the cache before"""


def cached_clips(
    videos: pd.DataFrame,
    sampling: SamplingConfig,
    input_size: int,
    cache_uri: str,
    cores: int,
    on_progress: Callable[[int], None],
) -> Clips:
    """Decode those of the ``videos`` (video_id, video_uri) that the cache does not have."""
    folder = f"{storage.absolute(cache_uri)}/{_settings_digest(sampling, input_size)}"
    with ThreadPoolExecutor(READERS) as readers:
        keys = list(readers.map(_fingerprint, videos["video_uri"]))
    asked = videos[["video_id", "video_uri"]].assign(key=pd.Series(keys, videos.index, dtype=object))
    known = asked[["video_id", "key"]].merge(_index(folder), on="key")
    on_progress(len(known))
    missing = asked[~asked["video_id"].isin(known["video_id"])]
    if missing.empty:
        return Clips(known, {}, len(known))
    # of one file under several ids only the first is decoded; without a fingerprint none is known to be another's
    leader = missing["video_id"].where(missing["key"].isna(), missing.groupby("key")["video_id"].transform("first"))
    once = missing[missing["video_id"] == leader]
    decoded = _decode(once, sampling, input_size, folder, cores, lambda done: on_progress(len(known) + done))
    every = missing[["video_id"]].assign(leader=leader)
    every = every.merge(decoded.rename(columns={"video_id": "leader"}), on="leader", how="left").drop(columns="leader")
    failed = every["error"].notna()
    undecodable = dict(zip(every["video_id"][failed], every["error"][failed], strict=True))
    fresh = every[~failed].drop(columns="error")
    return Clips(pd.concat([known, fresh], ignore_index=True), undecodable, len(known))


def dataset(clips: Clips, rows: pd.DataFrame, input_size: int, shuffled_by: int | None = None) -> ray.data.Dataset:
    """The clips of ``rows`` (video_id, label, weight) -> rows with these and ``seconds``, ``clip``: uint8 (seconds,
    input_size, input_size, 3). ``shuffled_by``: seed of an order that follows neither ids nor time.

    Asks for no CPU: training has them all.
    """
    placed = clips.table[["video_id", "key", "seconds", "part"]].merge(rows, on="video_id").sort_values("video_id")
    wanted: dict[str, Wanted] = {}
    for row in placed.to_dict("records"):
        part = wanted.setdefault(row["part"], {})
        part.setdefault(row["key"], []).append({name: row[name] for name in ("video_id", "label", "weight")})
    parts = sorted(wanted)
    order = np.random.default_rng(shuffled_by)
    if fit_in_memory(placed["seconds"], input_size):
        with ThreadPoolExecutor(os.cpu_count()) as readers:
            table = pa.concat_tables(readers.map(lambda part: _squashed(part, wanted[part], input_size), parts))
        # by id first: which clips share a part differs from one decoding to the next
        rows_in_order = pc.sort_indices(table["video_id"])
        if shuffled_by is not None:
            rows_in_order = rows_in_order.take(order.permutation(table.num_rows))
        table = table.take(rows_in_order)
        return ray.data.from_arrow([table.slice(i, ROWS_A_BLOCK) for i in range(0, table.num_rows, ROWS_A_BLOCK)])
    if shuffled_by is not None:
        parts = [parts[i] for i in order.permutation(len(parts))]
    shared = ray.put(wanted)
    return ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
        _read_parts,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"wanted": [shared], "input_size": input_size},  # in a list, so that it is not fetched beforehand
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
    )


def fit_in_memory(seconds: pd.Series, input_size: int) -> bool:
    return 3 * input_size**2 * int(seconds.sum()) <= IN_MEMORY_BYTES


def clip_of(row: dict[str, Any]) -> np.ndarray:
    """uint8 (S, size, size, 3) of a row of ``dataset``."""
    size = round((len(row["clip"]) / row["seconds"] / 3) ** 0.5)
    return np.frombuffer(row["clip"], np.uint8).reshape(row["seconds"], size, size, 3)


def _read_parts(parts: pa.Table, wanted: list[ray.ObjectRef], input_size: int) -> pa.Table:
    rows: dict[str, Wanted] = ray.get(wanted[0])
    return pa.concat_tables([_squashed(part, rows[part], input_size) for part in parts["part"].to_pylist()])


def _squashed(part: str, wanted: Wanted, input_size: int) -> pa.Table:
    """SQUASHED of the part's wanted clips: a row for each video that has it."""
    cv2.setNumThreads(1)
    try:
        file = pq.ParquetFile(io.BytesIO(storage.read_bytes(part, timeout_s=READ_TIMEOUT_S)))
    except FileNotFoundError as error:
        raise Broken(f"{part} of the clip cache is not on this node (or was removed meanwhile); give --clip-cache a "
                     "folder that all nodes share, such as s3://") from error  # fmt: skip
    found = []
    for group in range(file.num_row_groups):
        keys = file.read_row_group(group, ["key"])["key"].to_pylist()
        if wanted.keys().isdisjoint(keys):
            continue
        columns = [name for name in CLIPS.names if name != "hashes"]
        for row in file.read_row_group(group, columns).to_pylist():
            if row["key"] not in wanted:
                continue
            frames = np.frombuffer(row["frames"], np.uint8)
            frames = frames.reshape(row["seconds"], row["height"], row["width"], 3)
            clip = {"seconds": row["seconds"], "clip": squashed(frames, input_size).tobytes()}
            found += [video | clip for video in wanted[row["key"]]]
    return pa.Table.from_pylist(found, schema=SQUASHED)


class DecodeActor:
    """A core that decodes videos in a supervised child process and adds them to the cache."""

    def __init__(self, sampling: SamplingConfig, input_size: int, folder: str):
        self.child = IsolatedWorker(
            "training.decode:make_decode", (sampling, input_size), memory_limit_bytes=DECODE_MEMORY_BYTES, max_calls=500
        )
        self.folder = folder

    def __call__(self, videos: pa.Table) -> pa.Table:
        try:
            return pa.Table.from_pylist(self._decoded(videos), schema=DECODED)
        except Broken as error:
            return pa.Table.from_pylist([{"broken": str(error)}], schema=DECODED)

    def _decoded(self, videos: pa.Table) -> list[dict[str, Any]]:
        rows, waiting, size = [], [], 0
        for video in videos.to_pylist():
            row = {"video_id": video["video_id"], "key": video["key"]}
            try:
                frames, hashes = self.child.call(video["video_uri"], DECODE_TIMEOUT_S)
            except VideoError as error:
                rows.append(row | {"error": str(error)})
                continue
            row |= {"key": row["key"] or uuid.uuid4().hex, "seconds": len(frames), "hashes": hashes.tolist()}
            shape = {"height": frames.shape[1], "width": frames.shape[2]}
            waiting.append(row | shape | {"frames": frames.tobytes()})
            size += frames.nbytes
            if size > PART_BYTES:
                rows += self._written(waiting)
                waiting, size = [], 0
        return rows + self._written(waiting)

    def _written(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not rows:
            return []
        content = io.BytesIO()
        table = pa.Table.from_pylist([{name: row[name] for name in CLIPS.names} for row in rows], schema=CLIPS)
        pq.write_table(table, content, compression="zstd", compression_level=1, row_group_size=CLIPS_A_ROW_GROUP)
        part = f"{self.folder}/{uuid.uuid4().hex}.parquet"
        try:
            storage.write_bytes_atomically(part, content.getvalue())
        except OSError as error:
            raise Broken(f"the clip cache cannot be written to, give another --clip-cache: {part}: "
                          f"{storage.reason(error)}") from error  # fmt: skip
        return [{name: row[name] for name in ("video_id", "key", "seconds", "hashes")} | {"part": part} for row in rows]


def _decode(
    videos: pd.DataFrame,
    sampling: SamplingConfig,
    input_size: int,
    folder: str,
    cores: int,
    on_progress: Callable[[int], None],
) -> pd.DataFrame:
    """DECODED of every video."""
    rows = max(1, min(16, len(videos) // (4 * cores)))
    table = pa.Table.from_pandas(videos, preserve_index=False)
    blocks = [table.slice(i, rows) for i in range(0, table.num_rows, rows)]
    # Ray 2.60 has no other way to say RESTARTS, yet warns of it
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=RayDeprecationWarning)
    graph = ray.data.from_arrow(blocks).map_batches(
        DecodeActor,
        fn_constructor_args=(sampling, input_size, folder),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=min(cores, len(blocks))),
        **RESTARTS,
    )
    found, done = [], 0
    batches: Iterable[Any] = graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for part in batches:
        for broken in part["broken"].drop_null().to_pylist():
            raise Broken(broken)
        found.append(part.drop_columns("broken"))
        done += part.num_rows
        on_progress(done)
    return pa.concat_tables(found).to_pandas().sort_values("video_id")


def broken_by(error: BaseException | None) -> Broken | None:
    """What a worker said to the user, where it is in an error of Ray's."""
    if error is None or isinstance(error, Broken):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Broken(f"a disk is full ({error}); free space, or give another --storage or --clip-cache")
    if type(error).__name__ == "OutOfMemoryError":
        return Broken("the GPU's memory does not hold a batch; lower --batch-size, --input-size or --max-clip-frames")
    if type(error).__name__ == "WorkerGroupStartupTimeoutError":
        return Broken("the workers found no room: other jobs hold this cluster's cores or GPUs (see ray status); run "
                      "the same command when they have ended, or lower --workers")  # fmt: skip
    inner = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    inner += [getattr(error, "cause", None), error.__cause__]
    return next(filter(None, (broken_by(one) for one in inner if isinstance(one, BaseException))), None)


def _index(folder: str) -> pd.DataFrame:
    """KNOWN of every clip in the cache."""
    try:
        parts = sorted(uri for uri in storage.files_in(folder) or [] if uri.endswith(".parquet"))
    except FileNotFoundError:
        parts = []

    def read(part: str) -> pd.DataFrame:
        fs, path = storage.filesystem_of(part)
        try:
            with fs.open(path, "rb") as file:
                table = pq.read_table(file, columns=["key", "seconds", "hashes"])
        except (OSError, pa.ArrowException):  # of a newer version, or broken: decoded again
            return pd.DataFrame(columns=pd.Index(KNOWN))
        return table.to_pandas().assign(part=part)

    with ThreadPoolExecutor(READERS) as readers:
        known = pd.concat([pd.DataFrame(columns=pd.Index(KNOWN)), *readers.map(read, parts)], ignore_index=True)
    return known.drop_duplicates("key")


def _fingerprint(uri: str) -> str | None:
    try:
        return storage.fingerprint(uri)
    except (OSError, Refused, ValueError):  # decoding will say why
        return None


def _settings_digest(sampling: SamplingConfig, input_size: int) -> str:
    how = {
        **dataclasses.asdict(sampling),
        "short_side": short_side(input_size),
        "max_aspect": MAX_ASPECT,
        "schema": CLIPS.names,
    }
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]
