"""What the training settings make of the engagement map, on a made-up world with known truth.

    python -m benchmarks.engagement
    python -m benchmarks.engagement --variants "as it is" --worlds 0 1 2
    python -m benchmarks.engagement --variants "as it is" "no shift" --seeds 0 1 2

Trains by jobs.train and holds the model's E against the world's masks. P is the true product mask, so that the
product search has no part in it.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.cpu_time import cpu_model
from catalog.tables import read_videos
from catalog.video import iter_frames
from catalog.world import GRID, WorldConfig, WorldPaths, make_world, read_masks
from jobs.demo import DemoConfig
from scoring.pe import pe_scores
from scoring.saliency import EngagementMapper
from tracking import registry
from tracking.names import CHALLENGER, MODEL_NAME
from training.decode import network_input
from training.models import for_inference, load_checkpoint
from training.settings import SplitConfig, TargetConfig
from training.splits import held_out_ids

PROJECT = Path(__file__).parents[1]
TIMEOUT_S = 3600.0
VARIANTS = {
    "as it is": [],
    "no noise": ["--input-noise", "0"],
    "no shift": ["--max-shift", "0"],
    "half the learning rate": ["--learning-rate", "0.001"],
    "half the batch": ["--batch-size", "4"],
    "twice the epochs": ["--epochs", str(2 * DemoConfig.epochs)],
}


def trained(world: WorldPaths, folder: Path, seed: int, flags: list[str], epochs: int = DemoConfig.epochs) -> bytes:
    """A checkpoint, by jobs.train with the demo's settings."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "jobs.train", "--videos", str(world.videos), "--storage", str(folder / "storage")]
    common = ["--architecture", DemoConfig.architecture, "--epochs", str(epochs), "--seed", str(seed)]
    common += ["--no-shuffled-control"]
    done = subprocess.run([*command, *common, *flags], cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return registry.load(f"models:/{MODEL_NAME}@{CHALLENGER}").checkpoint


def judged(world: WorldPaths, mapper: EngagementMapper, seed: int) -> dict[str, float]:
    videos = read_videos(str(world.videos))
    rows = pd.read_parquet(world.truth).merge(videos.select(["video_id", "video_uri", "shares"]).to_pandas())
    unseen = held_out_ids(videos, str(world.videos), TargetConfig(), SplitConfig(seed=seed))
    found = []
    for row in rows.to_dict("records"):
        clip = np.stack([network_input(frame, GRID) for frame in iter_frames(row["video_uri"])])
        masks = read_masks(world.folder, row["video_id"])
        ((E, engagement),) = mapper([clip])
        elsewhere = E[~(masks.element | masks.distractor | masks.product)].mean()
        means = {name: E[mask].mean() / elsewhere if mask.any() else np.nan
                 for name, mask in (("element", masks.element), ("distractor", masks.distractor),
                                    ("product", masks.product & ~masks.element))}  # fmt: skip
        found.append(means | {"pe": pe_scores(E, masks.product).pe_score, "engagement": engagement})
    rows = rows.join(pd.DataFrame(found))
    held_out = rows[rows["video_id"].isin(sorted(unseen))]
    figures: dict[str, Any] = {
        "SRCC, unseen creators": spearmanr(held_out["engagement"], held_out["shares"]).statistic,
        "E on the element": rows["element"].median(),
        "on the distractor": rows["distractor"].median(),
        "on the bare product": rows["product"].median(),
        "Spearman of PE": spearmanr(rows["pe"], rows["pe_true"]).statistic,
    }
    return {name: float(value) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=DemoConfig.videos, help="made-up videos")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--worlds", type=int, nargs="+", default=[0], help="seeds of the made-up worlds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of split and training")
    arguments = parser.parse_args()
    console = Console(width=150)
    table = Table(title=f"E in multiples of its mean elsewhere, median over videos. {cpu_model()}")
    with tempfile.TemporaryDirectory() as name:
        for world_seed in arguments.worlds:
            shape = WorldConfig(seconds=DemoConfig.seconds, fps=DemoConfig.fps)
            folder = Path(name, f"world-{world_seed}")
            world = make_world(folder, videos=arguments.videos, seed=world_seed, config=shape)
            for variant, seed in itertools.product(arguments.variants, arguments.seeds):
                run = Path(name, f"{world_seed}-{variant}-{seed}")
                run.mkdir()
                checkpoint = trained(world, run, seed, VARIANTS[variant])
                figures = judged(world, EngagementMapper(for_inference(load_checkpoint(checkpoint))), seed)
                if not table.columns:
                    for column in ("training", "world", "seed", *figures):
                        table.add_column(column)
                table.add_row(variant, str(world_seed), str(seed), *(f"{value:.2f}" for value in figures.values()))
                console.print(f"{variant}, world {world_seed}, seed {seed}: {figures}")
    console.print(table)


if __name__ == "__main__":
    main()
