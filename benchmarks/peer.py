"""What the scoring job costs beside the plain script of benchmarks/practitioner.py, in one run on one catalogue.

    python -m benchmarks.peer --videos 48
    python -m benchmarks.peer --videos 0 --short-form 14

Core-seconds are user + system CPU time of every process of the job, Ray's own included. What is paid once a job,
whatever the catalogue's size (interpreters, imports, Ray's processes, loading the model), is what a run on the first
`START_VIDEOS` videos takes beyond the kernels' own time on these; it is printed apart. The job does what the script
does: it does not examine how far its maps can be trusted (--faithfulness-videos 0).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_time import core_time_of, cpu_model
from catalog.world import make_world
from training.models import EngagementModel, ModelSpec, save_checkpoint
from training.networks import ARCHITECTURES

PROJECT = Path(__file__).parents[1]
SHORT_FORM = PROJECT / "../shared/data/tiktok_popularity"
STAGES = ("decode", "locate", "engage")
START_VIDEOS = 2
TIMEOUT_S = 3600.0
GOAL = 4.0


def made_catalogue(folder: Path, videos: int, short_form: int, seed: int) -> tuple[Path, Path]:
    """Tables of videos and products under ``folder``; real videos are paired with made-up products in turn."""
    world = make_world(folder / "world", videos=videos + 8 + videos // 8, seed=seed)
    rows = [row for row in pq.read_table(world.videos).to_pylist() if row["product_id"] is not None]
    for row in rows:
        row["video_uri"] = str(world.folder / row["video_uri"])
    table = rows[:videos]
    if short_form:
        if not SHORT_FORM.is_dir():
            sys.exit(f"--short-form needs the real videos of {SHORT_FORM}, which are not here; leave it out")
        real = [path for path in sorted(SHORT_FORM.glob("*.mp4")) if "corrupt" not in path.name][:short_form]
        for number, path in enumerate(real):
            pair = rows[number % len(rows)]
            table.append(pair | {"video_id": path.stem, "video_uri": str(path.resolve())})
    catalogue = world.folder / "catalogue.parquet"
    pq.write_table(pa.Table.from_pylist(table), catalogue)
    return catalogue, world.products


def compared(folder: Path, videos: Path, products: Path, architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(practitioner, ours): total, start and stages in core-seconds, minutes of video."""
    torch.manual_seed(0)
    checkpoint = folder / f"{architecture}.pt"
    save_checkpoint(EngagementModel(ModelSpec(architecture=architecture)), checkpoint)
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    environment.pop("RAY_ADDRESS", None)
    common = ["--videos", str(videos), "--products", str(products), "--model", str(checkpoint), "--output"]
    same_work = ("--faithfulness-videos", "0")

    def run(module: str, *arguments: str) -> float:
        command = [sys.executable, "-m", module, *common, *arguments]
        return core_time_of(command, TIMEOUT_S, folder / f"{module}.log", PROJECT, environment).total

    plain_total = run("benchmarks.practitioner", str(folder / "plain.json"))
    plain = json.loads((folder / "plain.json").read_text())
    plain = plain | {"total": plain_total, "start": plain_total - sum(plain["core_seconds"].values())}
    run("jobs.score", str(folder / f"{architecture}-warm"), "--limit", "1", *same_work)  # MLflow's database, byte code
    few_total = run("jobs.score", str(folder / f"{architecture}-few"), "--limit", str(START_VIDEOS), *same_work)
    few = json.loads((folder / f"{architecture}-few" / "run.json").read_text())
    started = time.monotonic()
    total = run("jobs.score", str(folder / f"{architecture}-all"), *same_work)
    ours = json.loads((folder / f"{architecture}-all" / "run.json").read_text())
    ours |= {"total": total, "start": few_total - sum(few["core_seconds"].values())}
    ours["whole_wall_seconds"] = time.monotonic() - started
    scores = pq.read_table(folder / f"{architecture}-all" / "scores")
    inliers = pc.list_flatten(scores["product_inliers"].combine_chunks())
    ours["seconds_found"] = pc.sum(pc.greater(inliers, 0)).as_py()
    return plain, ours


def table_of(architecture: str, plain: dict[str, Any], ours: dict[str, Any]) -> tuple[Table, float]:
    """The comparison, and the ratio that the goal is about: whole jobs, Ray and its start included."""
    minutes = ours["video_minutes"]
    table = Table(title=f"{architecture}: {minutes:.1f} minutes of video, core-seconds a minute of video")
    for column in ("", "plain script", "this project", "plain / ours"):
        table.add_column(column, justify="left" if not column else "right")

    def add(name: str, a: float, b: float) -> float:
        table.add_row(name, f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}" if b > 0 else "-")
        return a / b

    for stage in STAGES:
        add(stage, plain["core_seconds"][stage] / plain["video_minutes"], ours["core_seconds"][stage] / minutes)
    stages = [sum(one["core_seconds"].values()) / one["video_minutes"] for one in (plain, ours)]
    add("the three stages", *stages)
    add("job without its start", (plain["total"] - plain["start"]) / minutes, (ours["total"] - ours["start"]) / minutes)
    ratio = add("job, everything", plain["total"] / minutes, ours["total"] / minutes)
    table.add_row("start (core-seconds a job)", f"{plain['start']:.1f}", f"{ours['start']:.1f}", "")
    table.add_row("seconds with the product", str(plain["seconds_found"]), str(ours["seconds_found"]), "")
    return table, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=48, help="made-up videos (default 48)")
    parser.add_argument("--short-form", type=int, default=0, help="real short-form videos, at most 14 (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up world (default 0)")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    arguments = parser.parse_args()
    if arguments.videos + arguments.short_form < START_VIDEOS + 1:
        parser.error(f"a comparison needs more than {START_VIDEOS} videos")
    console = Console(width=120)
    console.print(cpu_model())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos, products = made_catalogue(folder, arguments.videos, arguments.short_form, arguments.seed)
        for architecture in arguments.architectures:
            table, ratio = table_of(architecture, *compared(folder, videos, products, architecture))
            console.print(table)
            console.print(f"{architecture}: {ratio:.2f}x cheaper, Ray and its start included; the goal is {GOAL:g}x")


if __name__ == "__main__":
    main()
