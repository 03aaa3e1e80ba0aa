"""The graph of a scoring job: rows in -> PREPARE (CPU) -> ENGAGE (GPU or CPU) -> WRITE -> a tally row each.

Errors are values in the row: whatever happens to a video, one row leaves every stage for each that came in.
"""

import dataclasses
import functools
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from catalog import storage
from catalog.actors import RESTARTS
from catalog.errors import ErrorCode, KilledError, Stage, VideoError
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from catalog.schemas import Status
from scoring.attempts import MAX_TRIES, Attempts, StopSign
from scoring.fingerprints import Images
from scoring.output import TALLY, Sink
from scoring.prepare import FingerprintOf, Request
from scoring.rows import EXAMINED, PREPARED, Provenance, ScoreRow, failed_row, prepared_row, product_map, score_row
from scoring.settings import BRIEF, FaithfulnessConfig, MapConfig, ProductConfig, VideoLimits

if TYPE_CHECKING:
    from scoring.faithfulness import Examiner

log = logging.getLogger(__name__)

EXAMINATION_CORE_S = "core_s"
"""among the figures of an examined video"""
PERSISTENT: dict[str, Any] = RESTARTS | {"max_task_retries": -1}
"""Workers may be killed any number of times; a block that itself kills them ends, see ``scoring.attempts``."""
NOT_WRITTEN = "not_written"
"""beside the columns TALLY: why the block could not be written"""
DECODER_CALLS = 1000
"""a fresh child after so many, two a video: decoders leak"""


@dataclasses.dataclass(frozen=True)
class Resources:
    """How the stages share the cluster, decided from what it has."""

    prepare_actors: int
    max_prepare_actors: int
    engage_actors: int
    max_engage_actors: int
    cpus_an_actor: float
    gpus_an_engage_actor: float

    @property
    def needed(self) -> dict[str, float]:
        """What the cluster must have for all actors."""
        cpus = (self.prepare_actors + self.engage_actors) * self.cpus_an_actor
        return {"CPU": cpus, "GPU": self.engage_actors * self.gpus_an_engage_actor}

    @classmethod
    def of_cluster(
        cls, cpus: float, gpus: float, max_prepare_actors: int | None = None, gpu_share: float = 1.0
    ) -> "Resources":
        """With GPUs: an ENGAGE actor for every ``gpu_share`` of one, a PREPARE actor for every other core (both share
        what there is where cores are fewer). Without: one actor of each stage on every core at half a core, so that a
        core is busy whichever stage has work.
        ``max_prepare_actors``: how far an autoscaling cluster may be asked to grow, and nodes that join late are
        used; without GPUs both stages grow."""
        if gpus >= 1:
            engage = int(gpus) * int(1 / gpu_share)
            prepare = max(1, int(cpus - engage))
            cpus_an_actor = min(1.0, cpus / (prepare + engage))
            return cls(prepare, max(prepare, max_prepare_actors or 0), engage, engage, cpus_an_actor, gpu_share)
        cores = max(1, int(cpus))
        most = max(cores, max_prepare_actors or 0)
        return cls(cores, most, cores, most, 0.5 if cpus >= 1 else cpus / 2, 0.0)


def build_graph(
    videos: pa.Table,
    images: Images,
    checkpoint: bytes,
    input_size: int,
    sampling: SamplingConfig,
    product: ProductConfig,
    maps: MapConfig,
    limits: VideoLimits,
    output: Sink,
    provenance: Provenance,
    resources: Resources,
    save_maps: bool,
    sample: frozenset[str],
    product_cache: str | None = None,
    attempts: Attempts | None = None,
) -> ray.data.Dataset:
    """videos: video_id, video_uri, product_id -> a lazy dataset of tally rows (see ``Sink.write``)
    with NOT_WRITTEN.

    sample: ids of the videos whose maps are examined in brief. product_cache: a folder that keeps the features of
    product images between runs. attempts: where the stages note what they have in hand.
    """
    shared_checkpoint = [ray.put(checkpoint)]  # in a list: a restarted actor must find it again
    block_rows = rows_a_block(videos.num_rows, resources.prepare_actors)
    return (
        prepared(videos, images, input_size, sampling, product, limits, resources, block_rows, product_cache, attempts)
        # INPUT PREPARED -> OUTPUT the scores table's columns, core seconds and (on request) maps; one row each
        .map_batches(
            EngageActor,
            fn_constructor_args=(shared_checkpoint, maps, provenance, save_maps, sample, attempts),
            batch_size=block_rows if resources.gpus_an_engage_actor else None,  # Ray asks for one where there are GPUs
            batch_format="pyarrow",
            num_cpus=resources.cpus_an_actor,
            num_gpus=resources.gpus_an_engage_actor,
            compute=ray.data.ActorPoolStrategy(min_size=resources.engage_actors, max_size=resources.max_engage_actors),
            **PERSISTENT,
        )
        # INPUT scores -> a Parquet file a block; OUTPUT a tally row each. No CPU asked: the other stages have all.
        # By the cores, not the GPUs: a hundred cores' blocks are more than the one writer of a few GPUs can write
        .map_batches(
            WriteActor,
            fn_constructor_args=(output,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(
                min_size=max(1, resources.prepare_actors // 8), max_size=max(1, resources.max_prepare_actors // 8)
            ),
            **PERSISTENT,
        )
    )


def examination_graph(
    videos: pa.Table,
    images: Images,
    checkpoint: bytes,
    shuffled: bytes | None,
    others: Sequence[bytes],
    input_size: int,
    sampling: SamplingConfig,
    product: ProductConfig,
    maps: MapConfig,
    limits: VideoLimits,
    config: FaithfulnessConfig,
    resources: Resources,
) -> ray.data.Dataset:
    """videos: video_id, video_uri, product_id -> a lazy dataset of ``scoring.rows.EXAMINED``, one row each."""
    checkpoints = [[ray.put(weights) for weights in (checkpoint, shuffled, *others) if weights is not None]]
    return prepared(videos, images, input_size, sampling, product, limits, resources, block_rows=1).map_batches(
        ExamineActor,
        fn_constructor_args=(checkpoints, shuffled is not None, maps, config),
        batch_size=1 if resources.gpus_an_engage_actor else None,  # Ray asks for one where there are GPUs
        batch_format="pyarrow",
        num_cpus=resources.cpus_an_actor,
        num_gpus=resources.gpus_an_engage_actor,
        compute=ray.data.ActorPoolStrategy(size=min(resources.engage_actors, videos.num_rows)),
        **RESTARTS,
    )


def prepared(
    videos: pa.Table,
    images: Images,
    input_size: int,
    sampling: SamplingConfig,
    product: ProductConfig,
    limits: VideoLimits,
    resources: Resources,
    block_rows: int,
    product_cache: str | None = None,
    attempts: Attempts | None = None,
) -> ray.data.Dataset:
    """videos: video_id, video_uri, product_id -> a lazy dataset of ``scoring.rows.PREPARED``, one row each."""
    # Ray 2.60 has no other way to say these, yet warns of it
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=RayDeprecationWarning)
    shared_images = [ray.put(images)]  # in a list: a restarted actor must find it again
    blocks = [videos.slice(start, block_rows) for start in range(0, videos.num_rows, block_rows)]
    return ray.data.from_arrow(blocks).map_batches(
        PrepareActor,
        fn_constructor_args=(shared_images, input_size, sampling, product, limits, product_cache, attempts),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.cpus_an_actor,
        compute=ray.data.ActorPoolStrategy(min_size=resources.prepare_actors, max_size=resources.max_prepare_actors),
        **(RESTARTS if attempts is None else PERSISTENT),
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
        product_cache: str | None,
        attempts: Attempts | None,
    ):
        (self.images,) = ray.get(images)
        self.limits, self.attempts = limits, attempts
        self.stop = StopSign(attempts)
        self.child = IsolatedWorker(
            "scoring.prepare:make_child",
            (sampling, product, input_size, product_cache),
            memory_limit_bytes=int(limits.video_memory_mb * 2**20),
            max_calls=DECODER_CALLS,
        )

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        with in_hand(self.attempts, Stage.DECODE, videos["video_id"].to_pylist()) as alone:
            yield PREPARED.empty_table()
            for row in videos.to_pylist():
                if self.stop():
                    return
                yield pa.Table.from_pylist([self._row(row, alone)], schema=PREPARED)

    def _row(self, row: dict[str, Any], alone: bool) -> dict[str, Any]:
        try:
            row["fingerprint"] = self._ask(FingerprintOf(self._request(row)))
            with self.attempts.video(Stage.DECODE, row["video_id"]) if alone and self.attempts else nullcontext():
                return self._prepared(row)
        except VideoError as hung_or_quarantined:
            return failed_row(row, hung_or_quarantined)

    def _prepared(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return prepared_row(row, self._ask(self._request(row)))
        except VideoError as error:
            return failed_row(row, error)

    def _request(self, row: dict[str, Any]) -> Request:
        images, outlines = self.images.get(row["product_id"], ((), None))
        return Request(row["video_uri"], row["product_id"], images, outlines)

    def _ask(self, what: Request | FingerprintOf, tries: int = MAX_TRIES) -> Any:
        try:
            return self.child.call(what, self.limits.video_timeout)
        except KilledError:
            if tries == 1:
                raise
            return self._ask(what, tries - 1)


class EngageActor:
    """ENGAGE on one GPU or core: E by one gradient a batch, P on E's grid, PE and the per-second values."""

    def __init__(
        self,
        checkpoint: list[ray.ObjectRef],
        maps: MapConfig,
        provenance: Provenance,
        save_maps: bool,
        sample: frozenset[str],
        attempts: Attempts | None,
    ):
        # here, because torch takes every process that imports it two seconds, and the other stages need none
        from scoring.saliency import EngagementMapper, says_out_of_memory
        from training.models import for_inference, load_checkpoint

        self.device = device_here()
        self.gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        (self.checkpoint,) = ray.get(checkpoint)
        self.mapper = EngagementMapper(for_inference(load_checkpoint(self.checkpoint)), self.device, maps)
        self.says_out_of_memory = says_out_of_memory
        self.provenance, self.save_maps, self.sample, self.attempts = provenance, save_maps, sample, attempts
        self.stop = StopSign(attempts)

    def __call__(self, prepared: pa.Table) -> pa.Table:
        rows = [] if self.stop() else prepared.to_pylist()
        scored: dict[int, ScoreRow] = {i: ScoreRow.failed(row) for i, row in enumerate(rows) if row["error_code"]}
        healthy = [i for i in range(len(rows)) if i not in scored]
        if healthy:
            looked_at = [rows[i] for i in healthy]
            with in_hand(self.attempts, Stage.ENGAGE, [row["video_id"] for row in looked_at]) as alone:
                results = [self._alone(row) for row in looked_at] if alone else self._scored(looked_at)
            scored.update(zip(healthy, results, strict=True))
        return ScoreRow.table([scored[i] for i in range(len(rows))], self.provenance, self.save_maps)

    def _alone(self, row: dict[str, Any]) -> ScoreRow:
        assert self.attempts is not None
        try:
            with self.attempts.video(Stage.ENGAGE, row["video_id"]):
                (scored,) = self._scored([row])
        except VideoError as quarantined:
            return ScoreRow.failed(failed_row(row, quarantined))
        return scored

    def _scored(self, rows: list[dict[str, Any]]) -> list[ScoreRow]:
        """The rows' scores; what fails together is tried again video by video, so that one costs only itself."""
        started, begun = time.process_time(), time.perf_counter()
        size = self.mapper.model.spec.input_size
        clips = [clip_of(row, size) for row in rows]
        try:
            mapped = self.mapper(clips)
        except (RuntimeError, MemoryError) as error:
            end_where_device_is_lost(error)
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
        core_s, held_s = time.process_time() - started, time.perf_counter() - begun
        seconds = sum(row["seconds"] for row in rows)
        results = [
            result.engaged_for(core_s * row["seconds"] / seconds, held_s * self.gpus * row["seconds"] / seconds)
            for result, row in zip(results, rows, strict=True)
        ]
        for i, row in enumerate(rows):
            if row["video_id"] in self.sample and results[i].scores["status"] != Status.FAILED:
                results[i] = dataclasses.replace(results[i], figures=self._examined(row))
        return results

    @functools.cached_property
    def examine(self) -> "Examiner":
        """Made where a video of the sample comes by, which few actors see."""
        from scoring.faithfulness import Examiner
        from training.models import load_checkpoint

        return Examiner(load_checkpoint(self.checkpoint), self.device, self.mapper.config, BRIEF)

    def _examined(self, row: dict[str, Any]) -> dict[str, float]:
        """Figures of how far the video's map can be trusted; none where that fails, which must not cost its score."""
        size, started = self.mapper.model.spec.input_size, time.process_time()
        try:
            (figures,) = self.examine([clip_of(row, size)], [product_map(row, size)])
        except Exception as error:
            end_where_device_is_lost(error)
            log.warning("the map of video %s could not be examined: %r", row["video_id"], error)
            return {}
        return figures | {EXAMINATION_CORE_S: time.process_time() - started}


def in_hand(attempts: Attempts | None, stage: Stage, video_ids: list[str]) -> AbstractContextManager[bool]:
    return nullcontext(False) if attempts is None else attempts.block(stage, video_ids)


def device_here() -> str:
    """cuda where this actor was given a GPU; else cpu, held to one core."""
    import torch

    if torch.cuda.is_available() and ray.get_gpu_ids():
        return "cuda"
    torch.set_num_threads(1)
    return "cpu"


def clip_of(row: dict[str, Any], size: int) -> np.ndarray:
    """uint8 (S, size, size, 3) of a row of PREPARED, read-only."""
    return np.frombuffer(row["clip"], np.uint8).reshape(-1, size, size, 3)


def end_where_device_is_lost(error: Exception) -> None:
    """After a CUDA error nothing works in this process: a fresh actor goes on, not a failed row for each video."""
    if "CUDA error" in str(error) and "out of memory" not in str(error):
        os._exit(1)


class ExamineActor:
    """EXAMINE on one GPU or core: the figures of ``scoring.faithfulness.Examiner``, a row each."""

    def __init__(
        self, checkpoints: list[list[ray.ObjectRef]], shuffled: bool, maps: MapConfig, config: FaithfulnessConfig
    ):
        from scoring.faithfulness import Examiner
        from training.models import load_checkpoint

        (refs,) = checkpoints
        own, *others = (load_checkpoint(weights) for weights in ray.get(refs))
        control = others.pop(0) if shuffled else None
        self.size = own.spec.input_size
        self.examine = Examiner(own, device_here(), maps, config, control, others)

    def __call__(self, prepared: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._examined(row) for row in prepared.to_pylist()], schema=EXAMINED)

    def _examined(self, row: dict[str, Any]) -> dict[str, Any]:
        named = {"video_id": row["video_id"], "product_id": row["product_id"]}
        if row["error_code"]:
            return named | {"problem": f"{row['error_code']}: {row['error_message']}"}
        try:
            (figures,) = self.examine([clip_of(row, self.size)], [product_map(row, self.size)])
        except Exception as error:  # of whatever library: it must not end the job
            end_where_device_is_lost(error)
            return named | {"problem": f"{ErrorCode.INTERNAL}: {str(error).splitlines()[0] if str(error) else error!r}"}
        return named | {"figures": figures}


class WriteActor:
    """WRITE: one whole file a block. An actor, because Ray starts a new process for almost every small task."""

    def __init__(self, output: Sink):
        self.output = output

    def __call__(self, scored: pa.Table) -> pa.Table:
        tally, trouble = scored.select(list(TALLY)), None
        try:
            if scored.num_rows:
                self.output.write(scored)
        except OSError as error:  # as a value: of an exception Ray Data would hand on the text alone
            trouble = storage.reason(error)
        return tally.append_column(NOT_WRITTEN, pa.array([trouble] * tally.num_rows, pa.string()))
