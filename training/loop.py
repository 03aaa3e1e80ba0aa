"""The training loop that every Ray Train worker runs."""

import contextlib
import io
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from scipy.stats import spearmanr
from torch import Tensor, nn

from training.clips import clip_of
from training.losses import LOSSES
from training.models import (
    EngagementModel,
    ModelSpec,
    has_bf16_units,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
    to_input,
)
from training.settings import LoopConfig

MODEL_FILE, BEST_FILE, STATE_FILE = "model.pt", "best.pt", "training_state.pt"
HISTORY_FILE, PREDICTIONS_FILE = "history.json", "predictions.json"
SHUFFLE_ROWS = 256
HEARTBEAT_S = 10.0
MAX_GRADIENT = 1.0

Batch = tuple[list[str], Tensor, Tensor, Tensor]
"""video_ids, uint8 (B, S, H, W, 3), labels (B,), weights (B,)"""


def train_loop(settings: dict[str, Any]) -> None:
    """settings: spec (dict of ModelSpec), loop (dict of LoopConfig), seed, steps_per_epoch, in_memory (whether workers
    keep the clips that they have read), label_range (of the standardised labels), init_weights (None, or a reference to
    a checkpoint's bytes), reports (the queue that says in which step of an epoch the training is).

    Datasets: train, validation (after every epoch) and held_out (after the last).
    """
    worker = Worker(settings)
    while not worker.finished():
        worker.epoch()


class Worker:
    """One of the workers that train a network together."""

    def __init__(self, settings: dict[str, Any]):
        self.config, self.seed, self.reports = LoopConfig(**settings["loop"]), settings["seed"], settings["reports"]
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.batch_size = max(1, self.config.batch_size // self.workers)
        self.steps, self.in_memory = settings["steps_per_epoch"], settings["in_memory"]
        self.kept: dict[str, list[dict[str, Any]]] = {}
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
            torch.set_num_threads(max(1, int(cpus)))
        torch.backends.cudnn.deterministic = True  # some of its kernels add up in another order each time
        torch.manual_seed(self.seed)
        self.model = EngagementModel(ModelSpec(**settings["spec"]))
        if settings["init_weights"] is not None:
            load_pretrained(self.model.network, io.BytesIO(ray.get(settings["init_weights"])), "--init-weights")
        names = self.model.network.new_parts
        named = list(self.model.network.named_parameters())
        self.head: list[nn.Parameter] = [p for name, p in named if name.startswith(names)]  # pyright: ignore
        self.backbone = [p for name, p in named if not name.startswith(names)]  # pyright: ignore
        thaws = 0 < self.config.frozen_epochs < self.config.epochs
        if self.config.frozen_epochs >= self.config.epochs:
            self._freeze(True)
        kwargs = {"find_unused_parameters": True} if thaws else None
        self.module = ray.train.torch.prepare_model(self.model, parallel_strategy_kwargs=kwargs)
        rate = self.config.learning_rate
        rates = [rate, rate * self.config.backbone_rate]
        self.optimizer = torch.optim.AdamW(
            [{"params": self.head}, {"params": self.backbone}], lr=rate, weight_decay=self.config.weight_decay
        )
        total = self.config.epochs * self.steps + 1
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rates, total_steps=total, pct_start=0.3, div_factor=10
        )
        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] = LOSSES[self.config.loss](settings["label_range"])
        self.told = time.monotonic()
        self.history: list[dict[str, Any]] = []
        self.best: bytes | None = None
        self._restore()

    def finished(self) -> bool:
        return len(self.history) >= self.config.epochs or self._out_of_patience()

    def epoch(self) -> None:
        """One pass over the training videos, judged and reported."""
        epoch = len(self.history)
        random = np.random.default_rng([self.seed, epoch, self.rank])
        torch.manual_seed(random.integers(2**62))  # as in a run that was never cut off, and other noise in each worker
        begun = time.perf_counter()
        loss, videos = self._train(epoch, random)
        videos_per_second = self.workers * videos / (time.perf_counter() - begun)
        last_by_plan = epoch == self.config.epochs - 1
        if last_by_plan and not self.config.patience:
            self._recalibrate(random)
        watched = self._predict("validation")
        self.history.append(
            {
                "epoch": epoch,
                "train/loss": self._mean_of_workers(loss),
                "train/videos_per_second": self._mean_of_workers(videos_per_second),
                "learning_rate": self.schedule.get_last_lr()[0],
                "val/loss": self._loss_of(watched),
                "val/srcc": _srcc(watched),
            }
        )
        if self.config.patience and self._best_epoch() == epoch:
            self.best = self._checkpoint()
        if self.finished() and self.best is not None:
            self.model.network.load_state_dict(load_checkpoint(self.best).network.state_dict())
            if self._best_epoch() >= self.config.frozen_epochs:
                self._recalibrate(random)
        self._report(self._predict("held_out") if self.finished() else [])

    def _report(self, predictions: list[dict[str, Any]]) -> None:
        """This epoch's figures and, of the first worker, a checkpoint with all that going on takes."""
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
            (folder / MODEL_FILE).write_bytes(self._checkpoint())
            if self.best is not None:
                (folder / BEST_FILE).write_bytes(self.best)
            state = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            content = io.BytesIO()  # into a file torch.save would call a full disk something else
            torch.save(state, content)
            (folder / STATE_FILE).write_bytes(content.getbuffer())
            (folder / HISTORY_FILE).write_text(json.dumps(self.history))
            (folder / PREDICTIONS_FILE).write_text(json.dumps(predictions))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            self.history[-1],
            checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # the next epoch begins meanwhile
            delete_local_checkpoint_after_upload=True,
        )

    def _restore(self) -> None:
        """Take up the last epoch's checkpoint where there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as name:
            folder = Path(name)
            weights = torch.load(folder / MODEL_FILE, map_location="cpu", weights_only=True)
            state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
            self.history = json.loads((folder / HISTORY_FILE).read_text())
            self.best = (folder / BEST_FILE).read_bytes() if (folder / BEST_FILE).exists() else None
        self.model.network.load_state_dict(weights["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def _best_epoch(self) -> int:
        return int(np.argmax([epoch["val/srcc"] for epoch in self.history]))

    def _out_of_patience(self) -> bool:
        return bool(self.history and 0 < self.config.patience <= len(self.history) - 1 - self._best_epoch())

    def _checkpoint(self) -> bytes:
        content = io.BytesIO()
        save_checkpoint(self.model, content)
        return content.getvalue()

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.backbone:
            parameter.requires_grad_(not frozen)

    def _train_mode(self, epoch: int) -> None:
        """In frozen epochs the backbone's batch norms keep what they know, too."""
        frozen = epoch < self.config.frozen_epochs
        self._freeze(frozen)
        self.module.train()
        if frozen:
            kept = self.model.network.new_parts
            for name, part in self.model.network.named_modules():
                if name and not name.startswith(kept):  # pyright: ignore
                    part.training = False

    def _train(self, epoch: int, random: np.random.Generator) -> tuple[float, int]:
        """One pass over this worker's share; returns the mean loss over its batches, and how many videos they held."""
        self._train_mode(epoch)
        losses, videos = [], 0
        for step, (ids, clips, labels, weights) in enumerate(self._share(self.seed + epoch, random)):
            pixels = to_input(clips.to(self.device, non_blocking=True))
            # grows from 0 over the first half, so that the network can begin to learn from clear clips
            noise = self.config.input_noise * min(1.0, 2 * self.schedule.last_epoch / self.schedule.total_steps)
            pixels += noise * torch.randn_like(pixels)
            with self._autocast():
                predictions = self.module(pixels)
            loss = self.loss(predictions.float(), labels.to(self.device), weights.to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            size = nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRADIENT)
            if not (torch.isfinite(loss) and torch.isfinite(size)):
                self._diverged(epoch, step, loss.item(), size.item(), ids)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
            videos += len(ids)
            self._beat({"step": step + 1, "steps": self.steps})
        return float(np.mean(losses)) if losses else float("nan"), videos

    def _diverged(self, epoch: int, step: int, loss: float, gradient: float, ids: list[str]) -> None:
        """Says so to the driver, which ends the job: trying again, as after a crash, would come to the same."""
        mine, every = (loss, ids), [(loss, ids)] * self.workers
        if self.workers > 1:  # gradients are shared, so all workers are here
            dist.all_gather_object(every, mine)
        culprits = [entry for entry in every if not math.isfinite(entry[0])] or every
        videos = ", ".join(video_id for _, ids in culprits for video_id in ids)
        message = (
            f"epoch {epoch}, step {step}: the loss is {culprits[0][0]:g} and its gradient's norm {gradient:g} "
            f"on videos {videos}; lower --learning-rate, or look at these videos' counts"
        )
        self.reports.put({"diverged": message})
        raise FloatingPointError(message)

    def _recalibrate(self, random: np.random.Generator) -> None:
        """The batch norms' statistics afresh, from clips without noise and with the weights as they are now; those of a
        backbone that was never trained are kept.

        Those gathered while training are of noisy clips and of weights that have moved on (Wu & Johnson 2021,
        "Rethinking 'Batch' in BatchNorm", section 3).
        """
        if self.config.frozen_epochs >= self.config.epochs:
            return
        norms = [module for module in self.model.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d))]
        momentum = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
        self.model.train()
        with torch.no_grad(), self._autocast():
            for _, clips, _, _ in self._share(self.seed, random):
                self.model(to_input(clips.to(self.device)))
                self._beat({"what": "taking batch statistics"})
        for norm, before in zip(norms, momentum, strict=True):
            norm.momentum = before
            if dist.is_initialized():
                for statistic in (norm.running_mean, norm.running_var):
                    assert statistic is not None
                    dist.all_reduce(statistic)
                    statistic /= dist.get_world_size()

    def _share(self, seed: int, random: np.random.Generator) -> Iterator[Batch]:
        """This worker's share of the training clips once, in batches as of ``training_batches``."""
        # every worker must take equally many steps, so a pool of rows is cut into batches by length, not the epoch
        pools = self._rows("train", 4 * self.batch_size, seed)
        batches = (training_batches(pool, self.batch_size, self.config, random) for pool in pools)
        return _ahead(itertools.chain.from_iterable(batches))

    def _rows(self, name: str, batch_size: int, seed: int | None = None) -> Iterator[list[dict[str, Any]]]:
        """A dataset in batches, with a seed in another order."""
        if not self.in_memory:
            shuffled = {} if seed is None else {
                "local_shuffle_buffer_size": max(SHUFFLE_ROWS, batch_size), "local_shuffle_seed": seed
            }  # fmt: skip
            for batch in _shard(name).iter_batches(batch_size=batch_size, batch_format="pyarrow", **shuffled):
                yield batch.to_pylist()
            return
        if name not in self.kept:  # to run Ray Data's graph in every epoch takes as long as a small network learns
            whole = _shard(name).iter_batches(batch_size=None, batch_format="pyarrow")
            self.kept[name] = [row for batch in whole for row in batch.to_pylist()]
        rows = self.kept[name]
        order = range(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
        for start in range(0, len(rows), batch_size):
            yield [rows[i] for i in order[start : start + batch_size]]

    def _predict(self, name: str) -> list[dict[str, Any]]:
        """Predictions of whole videos, made by all workers together: video_id, label, prediction."""
        self.model.eval()
        mine: list[dict[str, Any]] = []
        for batch in self._rows(name, self.batch_size * self.workers):
            rows = batch[self.rank :: self.workers]
            if not rows:
                continue
            lengths = torch.tensor([row["seconds"] for row in rows])
            clips = np.zeros((len(rows), int(lengths.max()), *clip_of(rows[0]).shape[1:]), np.uint8)
            for padded, row in zip(clips, rows, strict=True):
                padded[: row["seconds"]] = clip_of(row)
            with torch.inference_mode(), self._autocast():
                pixels = to_input(torch.from_numpy(clips).to(self.device))
                predictions = self.model(pixels, lengths.to(self.device))
            mine += [
                {"video_id": row["video_id"], "label": row["label"], "prediction": value}
                for row, value in zip(rows, predictions.float().tolist(), strict=True)
            ]
            self._beat({"what": f"judging, {len(mine) * self.workers} videos"})
        if self.workers == 1:
            return mine
        gathered: list[Any] = [None] * self.workers
        dist.all_gather_object(gathered, mine)
        return [prediction for part in gathered for prediction in part]

    def _loss_of(self, predictions: list[dict[str, Any]]) -> float:
        """In batches like training's: some losses look at all pairs of one."""
        label = torch.tensor([p["label"] for p in predictions]).split(self.config.batch_size)
        prediction = torch.tensor([p["prediction"] for p in predictions]).split(self.config.batch_size)
        losses = [self.loss(p, y, torch.ones_like(y)).item() * len(y) for p, y in zip(prediction, label, strict=True)]
        return sum(losses) / len(predictions)

    def _mean_of_workers(self, value: float) -> float:
        if self.workers == 1:
            return value
        every = torch.tensor(value, device=self.device)
        dist.all_reduce(every)
        return every.item() / self.workers

    def _beat(self, report: dict[str, Any]) -> None:
        """Tells the driver now and then that work is under way; epochs may take hours."""
        if time.monotonic() - self.told >= HEARTBEAT_S and self.rank == 0:
            self.told = time.monotonic()
            self.reports.put(report)

    def _autocast(self) -> contextlib.AbstractContextManager:
        wanted = self.config.precision
        enabled = has_bf16_units(self.device) if wanted == "auto" else wanted == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def training_batches(
    rows: list[dict[str, Any]], batch_size: int, loop: LoopConfig, random: np.random.Generator
) -> Iterator[Batch]:
    """Batches of like length in random order. Longer clips are cut to their batch's shortest by a random window; all
    are moved a little and half are mirrored."""
    by_length = sorted(rows, key=lambda row: row["seconds"])
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    for i in random.permutation(len(batches)):
        batch = batches[i]
        frames = min(loop.max_clip_frames, min(row["seconds"] for row in batch))
        clips = np.stack([augmented(clip_of(row), frames, loop.max_shift, random) for row in batch])
        labels, weights = (torch.tensor([row[name] for row in batch], dtype=torch.float32)
                           for name in ("label", "weight"))  # fmt: skip
        yield [row["video_id"] for row in batch], torch.from_numpy(clips), labels, weights


def augmented(clip: np.ndarray, frames: int, max_shift: int, random: np.random.Generator) -> np.ndarray:
    """uint8 (S, H, W, 3) -> (frames, H, W, 3): a random window, moved and perhaps mirrored as one."""
    start = random.integers(len(clip) - frames + 1)
    window = clip[start : start + frames]
    height, width = clip.shape[1:3]
    room = min(max_shift, height - 1, width - 1)
    top, left = random.integers(2 * room + 1, size=2)
    padded = np.pad(window, ((0, 0), (room, room), (room, room), (0, 0)), "reflect")
    moved = padded[:, top : top + height, left : left + width]
    return moved[:, :, ::-1] if random.random() < 0.5 else moved


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each made while the one before is being learned from."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = thread.submit(next, batches, None)
            yield batch


def _srcc(predictions: list[dict[str, Any]]) -> float:
    label, prediction = ([p[name] for p in predictions] for name in ("label", "prediction"))
    rank = spearmanr(label, prediction).statistic if len(predictions) > 2 else float("nan")
    return float(np.nan_to_num(rank))


def _shard(name: str) -> Any:
    shard = ray.train.get_dataset_shard(name)
    assert shard is not None
    return shard
