"""One training run from clips to a fitted model, on Ray Train."""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import ray.data
import ray.exceptions
import ray.train
import ray.util.queue
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.callback import UserCallback
from ray.util.annotations import RayDeprecationWarning

from catalog import storage
from catalog.errors import Broken, Refused
from training.clips import Clips, broken_by, clip_of, dataset, fit_in_memory
from training.loop import HISTORY_FILE, MODEL_FILE, PREDICTIONS_FILE, train_loop
from training.models import ModelSpec, for_inference, load_checkpoint, to_input
from training.settings import LoopConfig
from training.splits import HELD_OUT, TRAINING, VALIDATION
from training.targets import MIN_VIDEOS

POLL_S = 0.5
MIN_JUDGED, MIN_VALIDATION = 2, 3
FITTED = ("video_id", "seconds", "label", "weight", "side")
"""columns that ``fit`` needs of its examples"""

Result = TypeVar("Result")


class Diverged(Broken):
    """The loss is no number any more; says on which videos and what to do."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model and how it did."""

    checkpoint: Path
    """a checkpoint file in a temporary folder, which the caller removes"""
    predictions: dict[str, float]
    """video_id -> log1p(target), of every held-out video"""
    epochs: list[dict[str, float]]
    """the metrics of every epoch, those before a resume too"""


class Reports(UserCallback):
    """Sends every epoch's metrics from Ray Train's controller to the driver, the only one to talk to MLflow."""

    def __init__(self, metrics: ray.util.queue.Queue):
        self.metrics = metrics

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.metrics.put(metrics[0])


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


def predict(
    clips: ray.data.Dataset, checkpoint: bytes, cores: int, gpus: int, on_progress: Callable[[], None]
) -> dict[str, float]:
    """video_id -> log1p(target) of a ``training.clips.dataset``, by another model than one that was just trained."""
    graph = clips.map_batches(
        PredictActor,
        fn_constructor_args=(checkpoint,),
        batch_size=16,
        batch_format="pyarrow",
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        compute=ray.data.ActorPoolStrategy(size=max(1, gpus or cores)),
    )
    predictions = {}
    for row in graph.iter_rows():
        predictions[row["video_id"]] = row["prediction"]
        on_progress()
    return predictions


def check_enough(examples: pd.DataFrame, validated: bool, undecodable: dict[str, str]) -> None:
    """Refused where a side of the split has too few videos. examples: ``side``."""
    least = {TRAINING: MIN_VIDEOS // 2, HELD_OUT: MIN_JUDGED} | ({VALIDATION: MIN_VALIDATION} if validated else {})
    few = {side: n for side, n in least.items() if (examples["side"] == side).sum() < n}
    if few:
        found = ", ".join(f"{int((examples['side'] == side).sum())} {side} (at least {n})" for side, n in few.items())
        first = next((f", such as {video_id}: {reason}" for video_id, reason in undecodable.items()), "")
        failed = f"; {len(undecodable)} could not be decoded{first}" if undecodable else ""
        raise Refused(f"too few videos on a side of the split: {found.replace('_', '-')}{failed}")


def fit(
    clips: Clips,
    examples: pd.DataFrame,
    spec: ModelSpec,
    loop: LoopConfig,
    seed: int,
    init_weights: bytes | None,
    scaling: ray.train.ScalingConfig,
    storage_uri: str,
    name: str,
    on_report: Callable[[dict[str, float]], None],
) -> Fitted:
    """Train on the examples (FITTED) that are not held out and predict those that are.

    ``on_report`` is given every epoch's metrics (with ``epoch``) and, within an epoch, ``step`` of ``steps``.
    A run of this ``name`` under ``storage_uri`` that was cut off goes on after its last epoch, if it is one of the same
    settings, weights, videos and labels. Raises Diverged, or Broken where a worker cannot go on.
    """
    examples = examples[list(FITTED)]
    training = examples[examples["side"] == TRAINING]
    labels = training["label"].to_numpy()
    spec = dataclasses.replace(spec, target_mean=float(labels.mean()), target_std=float(labels.std()) or 1.0)
    standardised = (labels - spec.target_mean) / spec.target_std
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
            "steps_per_epoch": math.ceil(math.ceil(len(training) / workers) / per_worker),
            "in_memory": fit_in_memory(examples["seconds"], spec.input_size),
            "label_range": (float(standardised.min()), float(standardised.max())),
        },
        scaling_config=scaling,
        datasets=_datasets(clips, examples, spec, seed),
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"], execution_options=_in_order()),
        run_config=ray.train.RunConfig(
            name=_identity(examples, spec, loop, seed, init_weights),
            storage_path=run_folder(storage_uri, name),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=3),
            callbacks=[Reports(reports)],
        ),
    )
    try:
        result = _run(trainer, reports, on_report)
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        raise broken_by(error) or _workers_lost(error) or error from error
    assert result.checkpoint is not None
    folder = Path(tempfile.mkdtemp(prefix="pe-model-"))
    with result.checkpoint.as_directory() as kept:
        shutil.copy(Path(kept, MODEL_FILE), folder / MODEL_FILE)
        predictions = json.loads(Path(kept, PREDICTIONS_FILE).read_text())
        epochs = json.loads(Path(kept, HISTORY_FILE).read_text())
    judged = load_checkpoint(folder / MODEL_FILE)  # of a finished run that is resumed, not this attempt's
    return Fitted(
        checkpoint=folder / MODEL_FILE,
        predictions={p["video_id"]: judged.to_log_engagement(p["prediction"]) for p in predictions},
        epochs=epochs,
    )


def _workers_lost(error: BaseException) -> Broken | None:
    """Where every attempt ended with a worker that died, by no fault of its code that it could tell."""
    failures = getattr(error, "worker_failures", {}).values()
    if failures and all(isinstance(failure, ray.exceptions.RayActorError) for failure in failures):
        return Broken("workers died again and again (the kernel's log says whether memory ran out; ray logs the rest); "
                      "the same command goes on after the last finished epoch")  # fmt: skip
    return None


def run_folder(storage_uri: str, name: str) -> str:
    return f"{storage_uri}/runs/{name}"


def forget(storage_uri: str, name: str) -> None:
    """Remove a finished run's checkpoints: the model is in the registry, and the next run begins afresh."""
    for uri in (run_folder(storage_uri, name), f"{run_folder(storage_uri, name)}.json"):
        fs, path = storage.filesystem_of(uri)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def _identity(examples: pd.DataFrame, spec: ModelSpec, loop: LoopConfig, seed: int, init_weights: bytes | None) -> str:
    """Of all that decides what a training comes to."""
    rows = examples[["video_id", "label", "weight", "side"]].sort_values("video_id").to_csv(index=False)
    settings = json.dumps([dataclasses.asdict(spec), dataclasses.asdict(loop), seed])
    return hashlib.sha256(rows.encode() + settings.encode() + (init_weights or b"")).hexdigest()[:16]


def _datasets(clips: Clips, examples: pd.DataFrame, spec: ModelSpec, seed: int) -> dict[str, Any]:
    rows = examples[["video_id", "label", "weight", "side"]].copy()
    rows["label"] = (rows["label"] - spec.target_mean) / spec.target_std
    of = {side: rows[rows["side"] == side].drop(columns="side") for side in (TRAINING, VALIDATION, HELD_OUT)}
    held_out = dataset(clips, of[HELD_OUT], spec.input_size)
    validation = held_out if of[VALIDATION].empty else dataset(clips, of[VALIDATION], spec.input_size)
    train = dataset(clips, of[TRAINING], spec.input_size, shuffled_by=seed)
    return {"train": train, "validation": validation, "held_out": held_out}


def _in_order() -> ray.data.ExecutionOptions:
    """Blocks in one order, whichever is ready first: the same seed gives the same model."""
    # of a default of Ray's own that it sets and warns of
    warnings.filterwarnings("ignore", message=".*exclude_resources", category=RayDeprecationWarning)
    options = ray.train.DataConfig.default_ingest_options()
    options.preserve_order = True
    return options


def in_thread(work: Callable[[], Result], between: Callable[[bool], bool] = lambda finished: False) -> Result:
    """Work in a thread of its own: in the main thread Ray Train and Ray Tune would take Ctrl-C for themselves and end
    the process with another exit code. ``between`` is called meanwhile, told whether the work has finished, until it
    returns False after that."""
    outcome: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def target() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=target, daemon=True).start()
    while True:
        finished = outcome.done()  # before the last look, so that no report is missed
        more = between(finished)
        if finished and not more:
            return outcome.result()
        if not more:
            time.sleep(POLL_S)


def _run(
    trainer: TorchTrainer, reports: ray.util.queue.Queue, on_report: Callable[[dict[str, Any]], None]
) -> ray.train.Result:
    """Run the trainer and hand its reports on as they come."""

    def report(finished: bool) -> bool:
        try:
            report = reports.get_nowait()
        except ray.util.queue.Empty:
            return False
        if "diverged" in report:
            raise Diverged(report["diverged"])
        on_report(report)
        return True

    return in_thread(trainer.fit, report)
