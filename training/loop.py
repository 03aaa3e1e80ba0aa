"""The training loop that every Ray Train worker runs."""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.util.queue import Queue
from scipy.stats import spearmanr
from torch import Tensor, nn

from training.models import EngagementModel, ModelSpec, load_pretrained, save_checkpoint, to_input
from training.settings import LoopConfig

MODEL_FILE, STATE_FILE = "model.pt", "training_state.pt"
HISTORY_FILE, PREDICTIONS_FILE = "history.json", "predictions.json"
SHUFFLE_ROWS = 256
HEARTBEAT_S = 10.0


def train_loop(settings: dict[str, Any]) -> None:
    """settings: spec (dict of ModelSpec), loop (dict of LoopConfig), seed, steps_per_epoch, init_weights (None, or a
    reference to a checkpoint's bytes), reports (the queue that says in which step of an epoch the training is)."""
    loop, seed = LoopConfig(**settings["loop"]), settings["seed"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
    torch.manual_seed(seed)
    model = EngagementModel(ModelSpec(**settings["spec"]))
    if settings["init_weights"] is not None:
        load_pretrained(model.network, io.BytesIO(ray.get(settings["init_weights"])), "--init-weights")
    module = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.AdamW(module.parameters(), lr=loop.learning_rate, weight_decay=loop.weight_decay)
    steps = loop.epochs * settings["steps_per_epoch"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, loop.learning_rate, total_steps=steps + 1, pct_start=0.3, div_factor=10
    )
    history = _restore(model, optimizer, schedule)
    per_worker = max(1, loop.batch_size // context.get_world_size())
    for epoch in range(len(history), loop.epochs):
        random = np.random.default_rng([seed, epoch, context.get_world_rank()])
        torch.manual_seed(random.integers(2**62))  # as in a run that was never cut off, and other noise in each worker
        heartbeat = Heartbeat(settings["reports"], settings["steps_per_epoch"])
        loss = _train_epoch(module, device, optimizer, schedule, epoch, seed, per_worker, loop, random, heartbeat)
        if epoch == loop.epochs - 1:
            _recalibrate(model, device, seed, per_worker, loop, random)
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "train/loss": loss,
            "learning_rate": schedule.get_last_lr()[0],
        }
        predictions = _predict_held_out(model, device, per_worker)
        metrics |= _held_out_metrics(predictions)
        history.append(metrics)
        if context.get_world_rank() != 0:
            ray.train.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(model, Path(folder, MODEL_FILE))
            state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, Path(folder, STATE_FILE))
            Path(folder, HISTORY_FILE).write_text(json.dumps(history))
            Path(folder, PREDICTIONS_FILE).write_text(json.dumps(predictions))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class Heartbeat:
    """Tells the driver now and then that an epoch is under way; epochs may take hours."""

    def __init__(self, reports: Queue, steps: int):
        self.reports, self.steps = reports, steps
        self.step, self.told = 0, time.monotonic()

    def beat(self) -> None:
        self.step += 1
        if time.monotonic() - self.told >= HEARTBEAT_S and ray.train.get_context().get_world_rank() == 0:
            self.told = time.monotonic()
            self.reports.put({"step": self.step, "steps": self.steps})


def _restore(model: EngagementModel, optimizer: torch.optim.Optimizer, schedule: Any) -> list[dict[str, Any]]:
    """Take up the last epoch's checkpoint where there is one; returns the metrics of the epochs that are done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        weights = torch.load(Path(folder, MODEL_FILE), map_location="cpu", weights_only=True)
        model.network.load_state_dict(weights["state_dict"])
        state = torch.load(Path(folder, STATE_FILE), map_location="cpu", weights_only=True)
        history = json.loads(Path(folder, HISTORY_FILE).read_text())
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return history


def _train_epoch(
    module: nn.Module,
    device: torch.device,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    epoch: int,
    seed: int,
    batch_size: int,
    loop: LoopConfig,
    random: np.random.Generator,
    heartbeat: Heartbeat,
) -> float:
    """One pass over this worker's share; returns the mean Huber loss over its batches."""
    module.train()
    losses = []
    for ids, clips, labels in _share_of_worker(seed + epoch, batch_size, loop, random):
        pixels = to_input(clips.to(device))
        # grows from 0 over the first half, so that the network can begin to learn from clear clips
        noise = loop.input_noise * min(1.0, 2 * schedule.last_epoch / schedule.total_steps)
        pixels += noise * torch.randn_like(pixels)
        with _autocast(device):
            predictions = module(pixels)
        loss = nn.functional.huber_loss(predictions.float(), labels.to(device))
        if not torch.isfinite(loss):
            raise ValueError(f"epoch {epoch}: the loss is {loss.item()} on videos {', '.join(ids)}; "
                             "lower --learning-rate, or look at these videos' counts")  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        heartbeat.beat()
    return float(np.mean(losses)) if losses else float("nan")


def _recalibrate(
    model: EngagementModel,
    device: torch.device,
    seed: int,
    batch_size: int,
    loop: LoopConfig,
    random: np.random.Generator,
) -> None:
    """The batch norms' statistics afresh, from clips without noise and with the weights as they are now.

    Those gathered while training are of noisy clips and of weights that have moved on (Wu & Johnson 2021,
    "Rethinking 'Batch' in BatchNorm", section 3).
    """
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d))]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    model.train()
    with torch.no_grad(), _autocast(device):
        for _, clips, _ in _share_of_worker(seed, batch_size, loop, random):
            model(to_input(clips.to(device)))
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
        if dist.is_initialized():
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                dist.all_reduce(statistic)
                statistic /= dist.get_world_size()


def _share_of_worker(
    seed: int, batch_size: int, loop: LoopConfig, random: np.random.Generator
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """This worker's share of the training clips once, in batches as of ``_training_batches``."""
    # every worker must take equally many steps, so a pool of rows is cut into batches by length, not the epoch
    pools = _shard("train").iter_batches(
        batch_size=4 * batch_size,
        batch_format="pyarrow",
        local_shuffle_buffer_size=max(SHUFFLE_ROWS, 4 * batch_size),
        local_shuffle_seed=seed,
    )
    for pool in pools:
        yield from _training_batches(pool.to_pylist(), batch_size, loop, random)


def _training_batches(
    rows: list[dict[str, Any]], batch_size: int, loop: LoopConfig, random: np.random.Generator
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Batches of like length in random order: (video_ids, uint8 (B, S, H, W, 3), labels (B,)). Longer clips
    are cut to their batch's shortest by a random window; all are moved a little and half are mirrored."""
    by_length = sorted(rows, key=lambda row: row["seconds"])
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    for i in random.permutation(len(batches)):
        batch = batches[i]
        frames = min(loop.max_clip_frames, min(row["seconds"] for row in batch))
        clips = np.stack([_augmented(clip_of(row), frames, loop.max_shift, random) for row in batch])
        labels = torch.tensor([row["label"] for row in batch], dtype=torch.float32)
        yield [row["video_id"] for row in batch], torch.from_numpy(clips), labels


def _augmented(clip: np.ndarray, frames: int, max_shift: int, random: np.random.Generator) -> np.ndarray:
    start = random.integers(len(clip) - frames + 1)
    window = clip[start : start + frames]
    height, width = clip.shape[1:3]
    room = min(max_shift, height - 1, width - 1)
    top, left = random.integers(2 * room + 1, size=2)
    padded = np.pad(window, ((0, 0), (room, room), (room, room), (0, 0)), "reflect")
    moved = padded[:, top : top + height, left : left + width]
    return moved[:, :, ::-1] if random.random() < 0.5 else moved


def _predict_held_out(model: EngagementModel, device: torch.device, batch_size: int) -> list[dict[str, Any]]:
    """Predictions of the whole held-out videos, made by all workers together: video_id, label, prediction."""
    model.eval()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    mine: list[dict[str, Any]] = []
    batches = _shard("held_out").iter_batches(batch_size=batch_size * world, batch_format="pyarrow")
    for batch in batches:
        rows = batch.to_pylist()[rank::world]
        if not rows:
            continue
        lengths = torch.tensor([row["seconds"] for row in rows])
        clips = np.zeros((len(rows), int(lengths.max()), *clip_of(rows[0]).shape[1:]), np.uint8)
        for padded, row in zip(clips, rows, strict=True):
            padded[: row["seconds"]] = clip_of(row)
        with torch.inference_mode(), _autocast(device):
            predictions = model(to_input(torch.from_numpy(clips).to(device)), lengths.to(device))
        mine += [
            {"video_id": row["video_id"], "label": row["label"], "prediction": value}
            for row, value in zip(rows, predictions.float().tolist(), strict=True)
        ]
    if world == 1:
        return mine
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, mine)
    return [prediction for part in gathered for prediction in part]


def _held_out_metrics(predictions: list[dict[str, Any]]) -> dict[str, float]:
    label = torch.tensor([p["label"] for p in predictions])
    prediction = torch.tensor([p["prediction"] for p in predictions])
    rank = spearmanr(label, prediction).statistic if len(predictions) > 2 else float("nan")
    return {
        "val/loss": nn.functional.huber_loss(prediction, label).item(),
        "val/srcc": float(np.nan_to_num(rank)),
    }


def clip_of(row: dict[str, Any]) -> np.ndarray:
    """uint8 (S, size, size, 3) of a row of CLIPS."""
    size = int(np.sqrt(len(row["clip"]) / row["seconds"] / 3))
    return np.frombuffer(row["clip"], np.uint8).reshape(row["seconds"], size, size, 3)


def _shard(name: str) -> Any:
    shard = ray.train.get_dataset_shard(name)
    assert shard is not None
    return shard


def _autocast(device: torch.device) -> contextlib.AbstractContextManager:
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
