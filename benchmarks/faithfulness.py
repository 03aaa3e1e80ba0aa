"""Can the maps of a trained model be trusted? jobs.faithfulness at length on a made-up world; see docs/saliency.md.

    python -m benchmarks.faithfulness
    python -m benchmarks.faithfulness --keep DIR    # leaves world, models and the job's report there, and uses them

jobs.train fits the demo's model with the network of shuffled labels beside it, and once more with another seed (which
also holds other creators out); jobs.faithfulness then examines the videos by creators that the first has not seen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_time import cpu_model
from catalog.tables import read_videos
from catalog.world import WorldConfig, WorldPaths, make_world
from jobs.demo import DemoConfig
from scoring.evidence import in_words, verdicts
from tracking.names import MODEL_NAME
from training.settings import SplitConfig, TargetConfig
from training.splits import held_out_ids

PROJECT = Path(__file__).parents[1]
TIMEOUT_S = 7200.0
OTHER_SEED = 1


def ran(job: str, *flags: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *flags], cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def evidence_of(folder: Path, count: int) -> dict[str, Any]:
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    world, unseen, output = WorldPaths(folder / "world"), folder / "unseen.parquet", folder / "faithfulness"
    if not unseen.exists():
        make_models(folder, count)
        unseen_videos(world, unseen)
    ran("faithfulness", "--videos", str(unseen), "--products", str(world.products), "--output", str(output),
        "--model", f"models:/{MODEL_NAME}/1", "--other-models", f"models:/{MODEL_NAME}/2",
        "--sample", str(count))  # fmt: skip
    return json.loads((output / "faithfulness.json").read_text())


def make_models(folder: Path, count: int) -> None:
    shape = WorldConfig(seconds=DemoConfig.seconds, fps=DemoConfig.fps)
    world = make_world(folder / "world", videos=count, seed=0, config=shape)
    training = ["--videos", str(world.videos), "--storage", str(folder / "storage"), "--clip-cache",
                str(folder / "clips"), "--architecture", DemoConfig.architecture,
                "--epochs", str(DemoConfig.epochs)]  # fmt: skip
    ran("train", *training, "--shuffled-control")
    ran("train", *training, "--seed", str(OTHER_SEED), "--no-shuffled-control")


def unseen_videos(world: WorldPaths, table: Path) -> None:
    videos = read_videos(str(world.videos))
    unseen = held_out_ids(videos, str(world.videos), TargetConfig(), SplitConfig())
    pq.write_table(videos.filter(pc.is_in(videos["video_id"], pa.array(sorted(unseen)))), table)


def table_of(evidence: dict[str, Any]) -> Table:
    table = Table(title=f"{evidence['videos']} videos; {evidence['wall_seconds']:.0f} s. {cpu_model()}")
    for column in ("question", "figure", "verdict"):
        table.add_column(column)
    for verdict in verdicts(evidence):
        table.add_row(verdict.claim, verdict.figure, verdict.outcome)
    for where in ("randomised", "randomised_inside"):
        cascade = ", ".join(f"{stage} {in_words(alike)}" for stage, alike in evidence[where].items())
        table.add_row(f"Spearman with weights {where.replace('_', ' ')} down to", cascade, "")
    if evidence["shuffled"]:
        table.add_row("Spearman with the map of shuffled labels", in_words(evidence["shuffled"]), "")
        table.add_row("... inside the frame", in_words(evidence["shuffled_inside"]), "")
    for change, alike in evidence["stability"].items():
        table.add_row(f"Spearman after: {change}", in_words(alike), "")
    for other in evidence["models"]:
        table.add_row("Spearman of maps by another seed", in_words(other["maps"]), "")
        table.add_row("... inside the frame", in_words(other["maps_inside"]), "")
        if other["pe_ranking"]:
            table.add_row("Spearman of the PE ranking by another seed", in_words(other["pe_ranking"]), "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=DemoConfig.videos, help="made-up videos")
    parser.add_argument("--keep", type=Path, help="folder that everything is left in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        Console(width=160).print(table_of(evidence_of(folder.resolve(), arguments.videos)))


if __name__ == "__main__":
    main()
