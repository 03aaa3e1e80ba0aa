"""One training job from a videos table to a fitted model: decode once, train on Ray Train, judge, keep."""

import concurrent.futures
import dataclasses
import json
import logging
import math
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import ray.util.queue
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.callback import UserCallback

from catalog import storage
from catalog.errors import Refused, VideoError
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from training.loop import HISTORY_FILE, MODEL_FILE, PREDICTIONS_FILE, clip_of, train_loop
from training.models import ModelSpec, for_inference, load_checkpoint, to_input
from training.settings import LoopConfig
from training.targets import MIN_VIDEOS, Examples

log = logging.getLogger(__name__)

DECODE_TIMEOUT_S = 300.0
DECODE_MEMORY_BYTES = 4 * 2**30

CLIPS = pa.schema(
    [
        ("video_id", pa.string()),
        ("label", pa.float64()),
        ("held_out", pa.bool_()),
        ("seconds", pa.int32()),
        ("clip", pa.large_binary()),  # uint8 (S, size, size, 3)
        ("error", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model and how it did."""

    checkpoint: Path
    """a checkpoint file in a temporary folder, which the caller removes"""
    example: np.ndarray
    """uint8 (1, S, H, W, 3), a held-out clip"""
    predictions: dict[str, float]
    """video_id -> log1p(target), of every held-out video that decoded"""
    undecodable: dict[str, str]
    """video_id -> why"""
    epochs: list[dict[str, float]]
    """the metrics of every epoch, those before a resume too"""


class Reports(UserCallback):
    """Sends every epoch's metrics from Ray Train's controller to the driver, the only one to talk to MLflow."""

    def __init__(self, metrics: ray.util.queue.Queue):
        self.metrics = metrics

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.metrics.put(metrics[0])


class DecodeActor:
    """A core that decodes videos in a supervised child process."""

    def __init__(self, sampling: SamplingConfig, input_size: int):
        self.child = IsolatedWorker(
            "training.decode:make_decode",
            (sampling, input_size),
            memory_limit_bytes=DECODE_MEMORY_BYTES,
            max_calls=500,
        )

    def __call__(self, videos: pa.Table) -> pa.Table:
        rows = []
        for video in videos.to_pylist():
            row = {name: video[name] for name in ("video_id", "label", "held_out")}
            try:
                clip = self.child.call(video["video_uri"], DECODE_TIMEOUT_S)
                rows.append(row | {"seconds": len(clip), "clip": clip.tobytes()})
            except VideoError as error:
                rows.append(row | {"error": str(error)})
        return pa.Table.from_pylist(rows, schema=CLIPS)


def decode_clips(
    examples: Examples,
    sampling: SamplingConfig,
    input_size: int,
    cores: int,
    on_progress: Callable[[int], None],
) -> tuple[pa.Table, dict[str, str]]:
    """Decode every example once: (table of CLIPS that decoded, video_id -> reason of those that did not)."""
    table = examples.table.select(["video_id", "video_uri", "label", "held_out"])
    rows = max(1, min(16, table.num_rows // (4 * cores)))
    graph = ray.data.from_arrow([table.slice(i, rows) for i in range(0, table.num_rows, rows)]).map_batches(
        DecodeActor,
        fn_constructor_args=(sampling, input_size),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=cores),
    )
    parts, done = [], 0
    for part in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        parts.append(part)
        done += part.num_rows
        on_progress(done)
    clips = pa.concat_tables(parts).sort_by("video_id")
    failed = clips.filter(pc.is_valid(clips["error"]))
    reasons = dict(zip(failed["video_id"].to_pylist(), failed["error"].to_pylist(), strict=True))
    return clips.filter(pc.is_null(clips["error"])).drop_columns(["error"]), reasons


class PredictActor:
    """A model on one core, or on one GPU."""

    def __init__(self, checkpoint: bytes):
        self.device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(1)
        self.model = for_inference(load_checkpoint(checkpoint)).to(self.device)

    def __call__(self, clips: pa.Table) -> pa.Table:
        predictions = []
        for row in clips.to_pylist():
            clip = torch.from_numpy(clip_of(row)[None].copy()).to(self.device)
            with torch.inference_mode():
                predictions.append(self.model.to_log_engagement(self.model(to_input(clip))).item())
        return pa.table({"video_id": clips["video_id"], "prediction": pa.array(predictions, pa.float64())})


def predict(clips: pa.Table, checkpoint: bytes, cores: int, gpus: int) -> dict[str, float]:
    """video_id -> log1p(target) for a table of CLIPS, by another model than the one that was just trained."""
    actors = max(1, gpus or cores)
    rows = max(1, min(16, clips.num_rows // (2 * actors)))
    graph = ray.data.from_arrow([clips.slice(i, rows) for i in range(0, clips.num_rows, rows)]).map_batches(
        PredictActor,
        fn_constructor_args=(checkpoint,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    return {row["video_id"]: row["prediction"] for row in graph.take_all()}


def fit(
    clips: pa.Table,
    undecodable: dict[str, str],
    spec: ModelSpec,
    loop: LoopConfig,
    seed: int,
    init_weights: bytes | None,
    scaling: ray.train.ScalingConfig,
    storage_uri: str,
    name: str,
    on_report: Callable[[dict[str, float]], None],
) -> Fitted:
    """Train on the clips that are not held out and predict those that are. ``on_report`` is given every epoch's
    metrics (with ``epoch``) and, within an epoch, ``step`` of ``steps``.

    A run of this ``name`` under ``storage_uri`` that was cut off goes on after its last epoch.
    Raises Refused where too few videos decoded.
    """
    held_out = clips.filter(clips["held_out"])
    training = clips.filter(pc.invert(clips["held_out"]))
    if training.num_rows < MIN_VIDEOS // 2 or held_out.num_rows < 2:
        raise Refused(
            f"only {training.num_rows} videos to train on and {held_out.num_rows} to judge by could be decoded "
            f"({len(undecodable)} failed, such as {next(iter(undecodable.items()), 'none')})"
        )
    # the loop shuffles within a window; here once all, because ids often follow time
    training = training.take(np.random.default_rng(seed).permutation(training.num_rows))
    labels = training["label"].to_numpy()
    spec = dataclasses.replace(spec, target_mean=float(labels.mean()), target_std=float(labels.std()) or 1.0)
    workers = scaling.num_workers or 1
    assert isinstance(workers, int)
    per_worker = max(1, loop.batch_size // workers)
    reports = ray.util.queue.Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "spec": dataclasses.asdict(spec),
            "loop": dataclasses.asdict(loop),
            "seed": seed,
            "init_weights": None if init_weights is None else ray.put(init_weights),
            "reports": reports,
            "steps_per_epoch": math.ceil(math.ceil(training.num_rows / workers) / per_worker),
        },
        scaling_config=scaling,
        datasets={
            "train": ray.data.from_arrow(_standardised(training, spec)),
            "held_out": ray.data.from_arrow(_standardised(held_out, spec)),
        },
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_uri,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=2),
            callbacks=[Reports(reports)],
        ),
    )
    result = _run(trainer, reports, on_report)
    assert result.checkpoint is not None
    folder = Path(tempfile.mkdtemp(prefix="pe-model-"))
    with result.checkpoint.as_directory() as kept:
        shutil.copy(Path(kept, MODEL_FILE), folder / MODEL_FILE)
        predictions = json.loads(Path(kept, PREDICTIONS_FILE).read_text())
        epochs = json.loads(Path(kept, HISTORY_FILE).read_text())
    judged = load_checkpoint(folder / MODEL_FILE)  # of a finished run that is resumed, not this attempt's
    first = held_out.slice(0, 1).to_pylist()[0]
    example = np.frombuffer(first["clip"], np.uint8)
    return Fitted(
        checkpoint=folder / MODEL_FILE,
        example=example.reshape(1, first["seconds"], spec.input_size, spec.input_size, 3),
        predictions={p["video_id"]: judged.to_log_engagement(p["prediction"]) for p in predictions},
        undecodable=undecodable,
        epochs=epochs,
    )


def forget(storage_uri: str, name: str) -> None:
    """Remove a finished run's checkpoints: the model is in the registry, and the next run begins afresh."""
    for uri in (f"{storage_uri}/{name}", f"{storage_uri}/{name}.json"):
        fs, path = storage.filesystem_of(uri)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def _standardised(clips: pa.Table, spec: ModelSpec) -> list[pa.Table]:
    labels = (clips["label"].to_numpy() - spec.target_mean) / spec.target_std
    table = clips.set_column(clips.schema.get_field_index("label"), "label", pa.array(labels))
    return [table.slice(i, 16) for i in range(0, table.num_rows, 16)]


def _run(
    trainer: TorchTrainer, reports: ray.util.queue.Queue, on_report: Callable[[dict[str, Any]], None]
) -> ray.train.Result:
    """Run the trainer in a thread of its own, and hand its reports on as they come; in the main thread Ray Train
    would take Ctrl-C for itself and end the process with another exit code."""
    outcome: concurrent.futures.Future[ray.train.Result] = concurrent.futures.Future()

    def train() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=train, daemon=True).start()
    while True:
        finished = outcome.done()  # before the last look, so that no report is missed
        try:
            on_report(reports.get(block=not finished, timeout=1.0))
        except ray.util.queue.Empty:
            if finished:
                return outcome.result()
