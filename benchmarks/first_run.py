"""The main job on real videos: python -m benchmarks.first_run --output docs/first-run.md

Trains on the short-form videos with their real shares (14: a smoke test of the path, not a model), then scores a
catalogue of all product videos with their images and of all videos in formats and faults, and writes the table.
Needs the test data beside the project (../shared/data).
"""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import tyro

from scoring.output import read_scores

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclasses.dataclass(frozen=True)
class FirstRunConfig:
    output: Path | None = None
    """page to write; default: the terminal alone"""
    architecture: str = "r3d_18"
    """network to train"""
    epochs: int = 2
    """passes over the 14 videos"""


def main(config: FirstRunConfig) -> None:
    if not DATA.is_dir():
        sys.exit("the real test videos are not here: expected the folder ../shared/data beside the project")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _write_tables(work)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/mlflow.db"
        trained = _job(
            "train", "--videos", f"{work}/history.csv", "--architecture", config.architecture,
            "--epochs", str(config.epochs), "--batch-size", "4", "--storage", f"{work}/checkpoints",
        )  # fmt: skip
        started = time.monotonic()
        _job(
            "score", "--videos", f"{work}/videos.parquet", "--products", f"{work}/products.parquet",
            "--model", "models:/pe-engagement@challenger", "--output", f"{work}/scores",
        )  # fmt: skip
        wall_s = time.monotonic() - started
        page = _page(
            config, trained, read_scores(f"{work}/scores"), json.loads((work / "scores/run.json").read_text()), wall_s
        )
    print(page)
    if config.output is not None:
        config.output.write_text(page)


def _write_tables(work: Path) -> None:
    engagement: Any = pacsv.read_csv(DATA / "tiktok_popularity/engagement.csv").to_pandas()
    history = pd.DataFrame(
        {
            "video_id": engagement["video_id"].astype(str),
            "video_uri": [str(DATA / "tiktok_popularity" / file) for file in engagement["file"]],
            "shares": engagement["share_count"],
            "likes": engagement["like_count"],
            "comments": engagement["comment_count"],
            "views": engagement["view_count"],
        }
    )
    history.to_csv(work / "history.csv", index=False)
    labels = json.loads((DATA / "labels.json").read_text())
    product_of = {pair["video"]: pair["reference"] for pair in labels} | {"opencv_misc/cup.mp4": "opencv_misc/box.png"}
    outlines = {
        pair["reference"]: [v for point in pair["product_outline_in_reference_px"] for v in point] for pair in labels
    }
    files = sorted(str(p.relative_to(DATA)) for p in DATA.rglob("*") if p.suffix in VIDEOS)
    videos = {
        "video_id": files,
        "video_uri": [str(DATA / file) for file in files],
        "product_id": [product_of.get(file) for file in files],
    }
    pq.write_table(pa.table(videos), work / "videos.parquet")
    products = sorted(set(product_of.values()))
    table = {
        "product_id": products,
        "image_uris": [[str(DATA / product)] for product in products],
        "image_outlines": pa.array(
            [[outlines[p]] if p in outlines else None for p in products], pa.list_(pa.list_(pa.float64()))
        ),
    }
    pq.write_table(pa.table(table), work / "products.parquet")


def _job(name: str, *flags: str) -> str:
    """Run a job as a user would, show its output, and stop where it fails; returns what it printed."""
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", *flags], capture_output=True, text=True, timeout=3600)
    print(done.stdout, done.stderr if done.returncode else "", flush=True)
    if done.returncode:
        sys.exit(f"jobs.{name} ended with {done.returncode}")
    return done.stdout


def _page(config: FirstRunConfig, trained: str, scores: pa.Table, run: dict[str, Any], wall_s: float) -> str:
    warning = next(line for line in trained.splitlines() if "too few" in line)
    stages = ", ".join(f"{k} {v:.2f}" for k, v in run["core_seconds_per_video_minute_by_stage"].items())
    today = datetime.datetime.now(datetime.UTC).date()
    trial = f"({config.architecture}, {config.epochs} epochs) ends in the registry and says: *{warning}*"
    command = "python -m benchmarks.first_run --output docs/first-run.md"
    counts = ", ".join(f"{n} {status}" for status, n in run["videos"].items())
    speed = f"{run['video_minutes']:.1f} minutes of video in {run['wall_seconds']:.0f} s"
    cost = f"{run['core_seconds_per_video_minute']:.2f} core-seconds a minute of video ({stages})"
    efficiency = f"efficiency {run['efficiency']:.2f}"
    lines = [
        "# First run on real videos",
        "",
        f"{today}, {os.cpu_count()} cores, no GPU. Made by `{command}`.",
        "",
        f"`jobs.train` on 14 short-form videos with their real shares {trial}.",
        "The scores below prove the path, not the model.",
        "",
        f"`jobs.score` on all {run['rows']} videos of the test data: {counts}; {speed} ({wall_s:.0f} s in all);",
        f"{cost}; {efficiency}.",
        "",
        "| video | product | status | seconds | found in | PE | E | P | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(scores.to_pylist(), key=lambda row: (row["product_id"] is None, row["video_id"])):
        found = sum(n > 0 for n in row["product_inliers"]) if row["product_inliers"] else ""
        values = [_figure(row[name]) for name in ("pe_score", "e_score", "p_score")]
        error = f"{row['error_code']}: {_short(row)}" if row["error_code"] else ""
        cells = [
            f"`{row['video_id']}`",
            row["product_id"] or "",
            row["status"],
            row["seconds"] or "",
            found,
            *values,
            error,
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(row: dict[str, Any]) -> str:
    return row["error_message"].replace(str(DATA), "...").replace("|", "/")


if __name__ == "__main__":
    main(tyro.cli(FirstRunConfig, description=__doc__))
