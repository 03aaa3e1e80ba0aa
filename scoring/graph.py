"""The graph of a scoring job: rows in -> PREPARE (CPU) -> ENGAGE (GPU or CPU) -> WRITE -> a tally row each.

Errors are values in the row: whatever happens to a video, one row leaves every stage for each that came in.
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from catalog.actors import RESTARTS
from catalog.errors import ErrorCode, Stage, VideoError
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from scoring.output import OutputFolder
from scoring.prepare import Prepared, Request
from scoring.rows import PREPARED, Provenance, ScoreRow, failed_row, prepared_row, score_row
from scoring.settings import MapConfig, ProductConfig, VideoLimits

DECODER_CALLS = 500
"""a fresh child after so many videos: decoders leak"""


@dataclasses.dataclass(frozen=True)
class Resources:
    """How the stages share the cluster, decided from what it has."""

    prepare_actors: int
    max_prepare_actors: int
    engage_actors: int
    cpus_an_actor: float
    gpus_an_engage_actor: float

    @classmethod
    def of_cluster(cls, cpus: float, gpus: float, max_prepare_actors: int | None = None) -> "Resources":
        """With GPUs: an ENGAGE actor each, a PREPARE actor for every other core (both share what there is where
        cores are fewer). Without: one actor of each stage on every core at half a core, so that a core is busy
        whichever stage has work.
        ``max_prepare_actors``: how far an autoscaling cluster may be asked to grow."""
        if gpus >= 1:
            prepare = max(1, int(cpus - gpus))
            cpus_an_actor = min(1.0, cpus / (prepare + int(gpus)))
            return cls(prepare, max(prepare, max_prepare_actors or 0), int(gpus), cpus_an_actor, 1.0)
        cores = max(1, int(cpus))
        return cls(cores, max(cores, max_prepare_actors or 0), cores, 0.5 if cpus >= 1 else cpus / 2, 0.0)


def build_graph(
    videos: pa.Table,
    images: dict[str, tuple[tuple[str, ...], tuple[tuple[float, ...] | None, ...] | None]],
    checkpoint: bytes,
    input_size: int,
    sampling: SamplingConfig,
    product: ProductConfig,
    maps: MapConfig,
    limits: VideoLimits,
    output: OutputFolder,
    provenance: Provenance,
    resources: Resources,
    save_maps: bool,
) -> ray.data.Dataset:
    """videos: video_id, video_uri, product_id -> a lazy dataset of tally rows (see ``OutputFolder.write``)."""
    block_rows = rows_a_block(videos.num_rows, resources.prepare_actors)
    blocks = [videos.slice(start, block_rows) for start in range(0, videos.num_rows, block_rows)]
    # Ray 2.60 has no other way to say these, yet warns of it
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=RayDeprecationWarning)
    # in lists: a restarted actor must find them again
    shared_images, shared_checkpoint = [ray.put(images)], [ray.put(checkpoint)]
    return (
        ray.data.from_arrow(blocks)
        # INPUT video_id, video_uri, product_id -> OUTPUT scoring.rows.PREPARED; one row each
        .map_batches(
            PrepareActor,
            fn_constructor_args=(shared_images, input_size, sampling, product, limits),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=resources.cpus_an_actor,
            compute=ray.data.ActorPoolStrategy(
                min_size=resources.prepare_actors, max_size=resources.max_prepare_actors
            ),
            **RESTARTS,
        )
        # INPUT PREPARED -> OUTPUT the scores table's columns, core seconds and (on request) maps; one row each
        .map_batches(
            EngageActor,
            fn_constructor_args=(shared_checkpoint, maps, provenance, save_maps),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=resources.cpus_an_actor,
            num_gpus=resources.gpus_an_engage_actor,
            compute=ray.data.ActorPoolStrategy(size=resources.engage_actors),
            **RESTARTS,
        )
        # INPUT scores -> a Parquet file a block; OUTPUT a tally row each. No CPU asked: the other stages have all
        .map_batches(
            WriteActor,
            fn_constructor_args=(output,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=max(1, resources.engage_actors // 8)),
            **RESTARTS,
        )
    )


def rows_a_block(rows: int, actors: int) -> int:
    """Blocks of about a minute of work (16 short videos), smaller where that would leave actors idle."""
    return max(1, min(16, rows // (8 * actors)))


class PrepareActor:
    """PREPARE on one core: every video in a supervised child process, so that a crash costs that video only."""

    def __init__(
        self,
        images: list[ray.ObjectRef],
        input_size: int,
        sampling: SamplingConfig,
        product: ProductConfig,
        limits: VideoLimits,
    ):
        (self.images,) = ray.get(images)
        self.limits = limits
        self.child = IsolatedWorker(
            "scoring.prepare:make_prepare",
            (sampling, product, input_size),
            memory_limit_bytes=int(limits.video_memory_mb * 2**20),
            max_calls=DECODER_CALLS,
        )

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        for row in videos.to_pylist():
            yield pa.Table.from_pylist([self._prepared(row)], schema=PREPARED)

    def _prepared(self, row: dict[str, Any]) -> dict[str, Any]:
        images, outlines = self.images.get(row["product_id"], ((), None))
        request = Request(row["video_uri"], row["product_id"], images, outlines)
        try:
            prepared: Prepared = self.child.call(request, self.limits.video_timeout)
        except VideoError as error:
            return failed_row(row, error)
        return prepared_row(row, prepared)


class EngageActor:
    """ENGAGE on one GPU or core: E by one gradient a batch, P on E's grid, PE and the per-second values."""

    def __init__(self, checkpoint: list[ray.ObjectRef], maps: MapConfig, provenance: Provenance, save_maps: bool):
        # here, because torch takes every process that imports it two seconds, and the other stages need none
        import torch

        from scoring.saliency import EngagementMapper, says_out_of_memory
        from training.models import for_inference, load_checkpoint

        self.device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(1)
        (weights,) = ray.get(checkpoint)
        self.mapper = EngagementMapper(for_inference(load_checkpoint(weights)), self.device, maps)
        self.says_out_of_memory = says_out_of_memory
        self.provenance, self.save_maps = provenance, save_maps

    def __call__(self, prepared: pa.Table) -> pa.Table:
        rows = prepared.to_pylist()
        scored: dict[int, ScoreRow] = {i: ScoreRow.failed(row) for i, row in enumerate(rows) if row["error_code"]}
        healthy = [i for i in range(len(rows)) if i not in scored]
        if healthy:
            scored.update(zip(healthy, self._scored([rows[i] for i in healthy]), strict=True))
        return ScoreRow.table([scored[i] for i in range(len(rows))], self.provenance, self.save_maps)

    def _scored(self, rows: list[dict[str, Any]]) -> list[ScoreRow]:
        """The rows' scores; what fails together is tried again video by video, so that one costs only itself."""
        started = time.process_time()
        size = self.mapper.model.spec.input_size
        clips = [np.frombuffer(row["clip"], np.uint8).reshape(-1, size, size, 3) for row in rows]
        try:
            mapped = self.mapper(clips)
        except (RuntimeError, MemoryError) as error:
            if "CUDA error" in str(error) and "out of memory" not in str(error):
                os._exit(
                    1
                )  # the device is lost to this process: a fresh actor goes on, not a failed row for each video
            if len(rows) > 1:
                return [scored for row in rows for scored in self._scored([row])]
            code = ErrorCode.OUT_OF_MEMORY if self.says_out_of_memory(error) else ErrorCode.INTERNAL
            message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return [ScoreRow.failed(failed_row(rows[0], VideoError(code, message, Stage.ENGAGE)))]
        results = []
        for row, (E, engagement) in zip(rows, mapped, strict=True):
            try:
                results.append(score_row(row, E, engagement, self.save_maps))
            except ValueError as error:
                problem = VideoError(ErrorCode.INTERNAL, str(error), Stage.ENGAGE)
                results.append(ScoreRow.failed(failed_row(row, problem)))
        spent = (time.process_time() - started) / sum(row["seconds"] for row in rows)
        return [r.with_core_seconds("engage", spent * row["seconds"]) for r, row in zip(results, rows, strict=True)]


class WriteActor:
    """WRITE: one whole file a block. An actor, because Ray starts a new process for almost every small task."""

    def __init__(self, output: OutputFolder):
        self.output = output

    def __call__(self, scored: pa.Table) -> pa.Table:
        return self.output.write(scored)
