"""What training is worth and what it costs, on a made-up world with known truth; tables in docs/training.md.

    python -m benchmarks.training                       # all parts, about two hours on 2 cores
    python -m benchmarks.training --parts speed workers # these only

skill     held-out SRCC beside its ceiling, the baselines and a network trained on shuffled labels
reach     creators' reach made strong, and creators told apart by a banner: what residualising and an honest split do
speed     jobs.train beside a bare PyTorch loop on the same clips; cached beside decoding; a step with weights kept
          channels-last beside one with weights as PyTorch makes them
bf16      bf16 beside fp32 (slow where the CPU has no units for it)
workers   one and two workers with the same global batch
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import nn

from benchmarks.cpu_time import cpu_model
from catalog.sampling import SamplingConfig
from catalog.tables import read_videos
from catalog.world import WorldConfig, WorldPaths, make_world
from catalog.world.panel import LOG_FOLLOWERS_MEAN, LOG_FOLLOWERS_SD, SIGNAL_SD
from jobs.command import ray_cluster
from training.clips import cached_clips, dataset
from training.loop import training_batches
from training.models import EngagementModel, ModelSpec, to_input
from training.settings import LoopConfig

PROJECT = Path(__file__).parents[1]
TIMEOUT_S = 7200.0
ARCHITECTURE = "r3d_18_w16"
STRONG_REACH = 1.2
PARTS = ("skill", "reach", "speed", "bf16", "workers")
console = Console(width=150)


class Bench:
    """Runs of jobs.train in one folder with its own MLflow and clip cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tracking = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.tracking)

    def train(self, videos: Path, *flags: str, cache: str = "clips") -> tuple[Run, float]:
        """The run in MLflow and its wall-clock seconds."""
        places = ["--storage", str(self.folder / "storage"), "--clip-cache", str(self.folder / cache)]
        command = [sys.executable, "-m", "jobs.train", "--videos", str(videos), "--architecture", ARCHITECTURE]
        env = os.environ | {"MLFLOW_TRACKING_URI": self.tracking}
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, *places, *flags], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
        wall = time.perf_counter() - begun
        (run,) = self.client.search_runs(self._experiments(), order_by=["attributes.start_time DESC"], max_results=1)
        return run, wall

    def videos_a_second(self, run: Run) -> float:
        """Of training, the median of its epochs after the first, which warms up."""
        history = self.client.get_metric_history(run.info.run_id, "train/videos_per_second")
        return float(np.median([point.value for point in sorted(history, key=lambda point: point.step)][1:]))

    def _experiments(self) -> list[str]:
        return [experiment.experiment_id for experiment in self.client.search_experiments()]


def figure(run: Run, name: str) -> str:
    of = run.data.metrics
    if name not in of:
        return ""
    interval = f" ({of[f'{name}_low']:.2f} to {of[f'{name}_high']:.2f})" if f"{name}_low" in of else ""
    return f"{of[name]:.2f}{interval}"


def held_out(bench: Bench, run: Run) -> pd.DataFrame:
    file = bench.client.download_artifacts(run.info.run_id, "held_out_predictions.csv", str(bench.folder))
    return pd.read_csv(file)


def ceilings(bench: Bench, run: Run, truth: pd.DataFrame, reach: float) -> tuple[float, float]:
    """SRCC with the held-out labels of the noise-free truth, and of the part of it that is in the pixels."""
    rows = held_out(bench, run).merge(truth, on="video_id")
    seen = rows["engagement_signal"] / SIGNAL_SD
    whole = seen + reach * rows["reach"]
    return spearmanr(whole, rows["label"]).statistic, spearmanr(seen, rows["label"]).statistic


def truth_of(world: WorldPaths) -> pd.DataFrame:
    videos = read_videos(str(world.videos)).to_pandas()
    reach = (np.log(videos["followers"].clip(lower=1)) - LOG_FOLLOWERS_MEAN) / LOG_FOLLOWERS_SD
    truth = pd.read_parquet(world.truth)[["video_id", "engagement_signal"]]
    return videos[["video_id"]].assign(reach=reach).merge(truth, on="video_id")


def skill(bench: Bench, world: WorldPaths, epochs: int) -> None:
    truth, weak = truth_of(world), WorldConfig.reach_effect
    table = Table(title="skill: held-out SRCC with its 95% interval over creators")
    for column in ("target", "the model", "of ceiling", "of the pixels' ceiling", "constant", "creator_mean",
                   "followers", "metadata", "shuffled"):  # fmt: skip
        table.add_column(column)
    less_followers = ["--residualize", "followers", "--no-shuffled-control"]
    for name, flags in (("shares", []), ("shares less followers", less_followers)):
        run, wall = bench.train(world.videos, "--epochs", str(epochs), *flags)
        whole, seen = ceilings(bench, run, truth, 0.0 if flags else weak)
        own = run.data.metrics["eval/srcc"]
        others = (figure(run, f"baseline/{b}/srcc")
                  for b in ("constant", "creator_mean", "followers", "metadata", "shuffled"))  # fmt: skip
        table.add_row(name, figure(run, "eval/srcc"), f"{own / whole:.2f} of {whole:.2f}",
                      f"{own / seen:.2f} of {seen:.2f}", *others)  # fmt: skip
        console.print(f"{name}: {own:.3f} in {wall:.0f} s")
    console.print(table)


def reach(bench: Bench, world: WorldPaths, epochs: int) -> None:
    videos = pd.read_parquet(world.videos)
    videos["video_uri"] = [str(world.folder / uri) for uri in videos["video_uri"]]
    of = truth_of(world).set_index("video_id")["reach"][videos["video_id"]].to_numpy()
    videos["shares"] = np.exp(np.log1p(videos["shares"]) + (STRONG_REACH - WorldConfig.reach_effect) * of).astype(int)
    strong = bench.folder / "strong_reach.parquet"
    videos.to_parquet(strong)
    table = Table(title=f"reach: {STRONG_REACH} standard deviations of log shares a standard deviation of followers")
    for column in ("split", "target", "SRCC", "within creators", "creator_mean", "metadata"):
        table.add_column(column)
    columns = "creator_id,followers"
    for split, residualize in (("creator", False), ("creator", True), ("random", False)):
        flags = ["--residualize", columns] if residualize else []
        run, wall = bench.train(strong, "--epochs", str(epochs), "--split", split, "--no-shuffled-control", *flags)
        table.add_row(split, f"less {columns}" if residualize else "shares", figure(run, "eval/srcc"),
                      figure(run, "eval/within_creator_srcc"), figure(run, "baseline/creator_mean/srcc"),
                      figure(run, "baseline/metadata/srcc"))  # fmt: skip
        console.print(f"{split}, residualized {residualize}: {run.data.metrics['eval/srcc']:.3f} in {wall:.0f} s")
    console.print(table)


def speed(bench: Bench, world: WorldPaths, epochs: int) -> None:
    flags = ["--epochs", str(epochs), "--no-shuffled-control"]
    for architecture in (ARCHITECTURE, "r3d_18"):
        of = [*flags, "--architecture", architecture]
        run, _ = bench.train(world.videos, *of, cache=f"clips of {architecture}")
        job = [bench.videos_a_second(run)]
        again, second = bench.train(world.videos, *of, "--name", "again", cache=f"clips of {architecture}")
        job.append(bench.videos_a_second(again))
        bare = bare_loop(bench, world, again, architecture, f"clips of {architecture}", epochs)
        videos = int(run.data.metrics["videos/training"])
        before, after = (r.data.metrics["clips/seconds"] for r in (run, again))
        decoding, epoch = before - after, videos / float(np.mean(job))
        table = Table(title=f"speed: {architecture}, {epochs} epochs of {videos} videos, fp32. {cpu_model()}")
        for column in ("", "videos a second", "of the bare loop's"):
            table.add_column(column)
        for name, rate in (("bare PyTorch loop", bare), ("jobs.train's loop", float(np.mean(job))),
                           ("jobs.train, from its start to registration", videos * epochs / second)):  # fmt: skip
            table.add_row(name, f"{rate:.2f}", f"{rate / bare:.2f}")
        console.print(table)
        console.print(f"clips: {before:.1f} s to decode, {after:.1f} s where they are in the cache; an epoch that "
                      f"decodes would take {(epoch + decoding) / epoch:.1f} times one that does not")  # fmt: skip
    for architecture in (ARCHITECTURE, "r3d_18"):
        ratio = channels_last(architecture)
        console.print(f"{architecture}: a step with channels-last weights takes {ratio:.2f} times one with PyTorch's")


def bf16(bench: Bench, world: WorldPaths, epochs: int) -> None:
    flags = ["--epochs", str(epochs), "--no-shuffled-control", "--precision"]
    half, full = (bench.train(world.videos, *flags, precision)[0] for precision in ("bf16", "fp32"))
    ratio = bench.videos_a_second(full) / bench.videos_a_second(half)
    difference = half.data.metrics["eval/srcc"] - full.data.metrics["eval/srcc"]
    console.print(f"bf16: an epoch takes {ratio:.2f} times fp32's; SRCC after {epochs} epochs {difference:+.3f}")


def channels_last(architecture: str, rounds: int = 5, batch: int = 8, frames: int = 5) -> float:
    """Seconds of a training step with channels-last weights, over those with PyTorch's own layout; medians of rounds
    that take turns. The clips are channels-last in both: so they lie in the cache."""
    clips = torch.randint(256, (batch, frames, 112, 112, 3), dtype=torch.uint8)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    models = [EngagementModel(ModelSpec(architecture)).train() for _ in range(2)]
    for module in models[1].modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    taken: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for model, seconds in zip(models, taken, strict=True):
            begun = time.perf_counter()
            model.zero_grad(set_to_none=True)
            model(to_input(clips)).pow(2).mean().backward()
            seconds.append(time.perf_counter() - begun)
    own, last = (float(np.median(seconds[1:])) for seconds in taken)
    return last / own


def bare_loop(bench: Bench, world: WorldPaths, run: Run, architecture: str, cache: str, epochs: int) -> float:
    """Videos a second of what the job's loop does, by plain PyTorch on the same split, clips and augmentation; the
    median of epochs after the first."""
    split = pd.read_csv(bench.client.download_artifacts(run.info.run_id, "data/split.csv", str(bench.folder)))
    videos = read_videos(str(world.videos)).to_pandas()
    with ray_cluster():
        clips = cached_clips(videos, SamplingConfig(), 112, str(bench.folder / cache), 2, lambda _: None)
        rows: dict[str, list[dict[str, Any]]] = {
            str(side): dataset(clips, part[["video_id", "label", "weight"]], 112).take_all()
            for side, part in split.groupby("side")
        }
    config = LoopConfig()
    mean, spread = (float(f([row["label"] for row in rows["training"]])) for f in (np.mean, np.std))
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = EngagementModel(ModelSpec(architecture))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    random, taken = np.random.default_rng(0), []
    for _ in range(epochs):
        begun = time.perf_counter()
        model.train()
        order = random.permutation(len(rows["training"]))
        for start in range(0, len(order), 4 * config.batch_size):
            pool = [rows["training"][i] for i in order[start : start + 4 * config.batch_size]]
            for _, clip, labels, _ in training_batches(pool, config.batch_size, config, random):
                pixels = to_input(clip)
                pixels += config.input_noise * torch.randn_like(pixels)
                loss = nn.functional.huber_loss(model(pixels), (labels - mean) / spread)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        taken.append(time.perf_counter() - begun)
    return len(rows["training"]) / float(np.median(taken[1:]))


def workers(bench: Bench, world: WorldPaths, epochs: int) -> None:
    table = Table(title="workers: the same global batch")
    for column in ("seed", "workers", "train/loss, last epoch", "val/loss", "SRCC", "videos a second"):
        table.add_column(column)
    for seed in (0, 1):
        for count in (1, 2):
            run, _ = bench.train(
                world.videos, "--epochs", str(epochs), "--workers", str(count), "--seed", str(seed),
                "--no-shuffled-control",
            )  # fmt: skip
            of = run.data.metrics
            table.add_row(str(seed), str(count), f"{of['train/loss']:.3f}", f"{of['val/loss']:.3f}",
                          f"{of['eval/srcc']:.2f}", f"{bench.videos_a_second(run):.1f}")  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--videos", type=int, default=416, help="made-up videos for skill and reach")
    parser.add_argument("--few", type=int, default=96, help="made-up videos for speed and workers")
    parser.add_argument("--epochs", type=int, default=LoopConfig.epochs, help="for skill and reach")
    arguments = parser.parse_args()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    console.print(f"{cpu_model()}, {ARCHITECTURE}")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        shape = WorldConfig(seconds=(4.0, 6.0), fps=6, creator_banner=True)
        if {"skill", "reach"} & set(arguments.parts):
            world = make_world(bench.folder / "world", videos=arguments.videos, seed=0, config=shape)
            for part in (skill, reach):
                if part.__name__ in arguments.parts:
                    part(bench, world, arguments.epochs)
        if {"speed", "bf16", "workers"} & set(arguments.parts):
            few = make_world(bench.folder / "few", videos=arguments.few, seed=1, config=shape)
            for part, epochs in ((speed, 4), (bf16, 2), (workers, LoopConfig.epochs)):
                if part.__name__ in arguments.parts:
                    part(bench, few, epochs)


if __name__ == "__main__":
    main()
