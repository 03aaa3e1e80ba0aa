"""What can be said of a scraped engagement table without its videos: how counts convert and contradict one another, how
they grow, and how far models that see no video get.

    python -m benchmarks.tables --table RAW.csv --later RECRAWL.csv

The columns are those of the table of 10,102 short videos in docs/training.md.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from training.baselines import baselines
from training.evaluation import HeldOut, evaluate
from training.settings import SplitConfig, TargetConfig
from training.splits import HELD_OUT, TRAINING, overlaps, sides
from training.targets import fit_adjustment, labelled

PROJECT = Path(__file__).parents[1]
NAMES = {
    "vid_id": "video_id", "user_nfollower": "followers", "vid_postTime": "posted_at", "vid_scrapeTime": "scraped_at",
    "vid_duration": "duration", "vid_nview": "views", "vid_nlike": "likes", "vid_ncomment": "comments",
    "vid_nshare": "shares", "vid_nsave": "saves",
}  # fmt: skip
UNKNOWN = ("Share", "00:00")
AFTER_POSTING = ("scraped_at", "saves", "residual")
AGES = (0, 7, 30, 90, np.inf)
COUNTS = ("views", "likes", "comments", "shares")
console = Console(width=130)


def imported(source: Path, folder: Path) -> Path:
    output = folder / f"{source.stem}.parquet"
    renames = [f"{old}={new}" for old, new in NAMES.items()]
    command = [sys.executable, "-m", "jobs.import_counts", "--input", str(source.absolute()), "--output", str(output)]
    done = subprocess.run(
        [*command, "--rename", *renames, "--null-words", *UNKNOWN],
        cwd=PROJECT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    console.print(done.stdout)
    return output


def growth(first: pd.DataFrame, later: pd.DataFrame) -> None:
    both = first.merge(later, on="video_id", suffixes=("", "_later"))
    age = (both["scraped_at"] - both["posted_at"]).dt.total_seconds() / 86_400
    between = (both["scraped_at_later"] - both["scraped_at"]).dt.total_seconds() / 86_400
    table = Table(
        title=f"growth of {len(both):,} videos over {between.median():.1f} days (median): later / earlier count"
    )
    for column in ("age at first", "videos", *COUNTS):
        table.add_column(column, justify="right")
    for low, high in itertools.pairwise(AGES):
        rows = both[(age >= low) & (age < high)]
        ratios = [(rows[f"{name}_later"] / rows[name].where(rows[name] > 0)).quantile([0.5, 0.9]) for name in COUNTS]
        table.add_row(
            f"{low:g} to {high:g} days", str(len(rows)), *(f"{r.iloc[0]:.2f} (90%: {r.iloc[1]:.2f})" for r in ratios)
        )
    console.print(table)


def suspicious(table: pd.DataFrame) -> None:
    chosen = table[table["suspicious"] != ""]
    kinds = chosen["suspicious"].str.replace(r" is [+-][\d.]+ robust.*", " far off its tier's", regex=True)
    console.print(f"{len(chosen)} of {len(table):,} videos have counts that contradict one another:")
    for kind, count in kinds.value_counts().items():
        console.print(f"  {count}  {kind}")


def judged(path: Path) -> None:
    videos = pq.read_table(path)
    for name in ("creator_id", "video_uri"):  # the table names neither; every video is a creator of its own
        videos = videos.append_column(name, [[None] * videos.num_rows] if name == "creator_id" else videos["video_id"])
    title = "SRCC (95%) of what needs no video, on held-out rows"
    table = Table(title=title)
    for column in ("target", "split", "rows", "left out", "held out", "followers", "metadata"):
        table.add_column(column)
    targets = [
        TargetConfig("shares"),
        TargetConfig("likes"),
        TargetConfig("shares_per_view"),
        TargetConfig("shares", winsorize=0.01, min_age_days=7),
        TargetConfig("shares", residualize=("followers,posted_hour,duration",)),
    ]
    for target in targets:
        for by in ("random", "time"):
            split = SplitConfig(split=by)
            chosen = labelled(videos, str(path), target)
            if target == targets[0] and by == "random":
                suspicious(chosen.table)
            examples = chosen.table.assign(side=sides(chosen.table, str(path), split))
            training = examples[examples["side"] == TRAINING].copy()
            held_out = examples[examples["side"] == HELD_OUT].copy()
            adjustment = fit_adjustment(training, target, split.seed)
            training["label"] = adjustment.apply(training, training=True)
            held_out["label"] = adjustment.apply(held_out, training=False)
            on = HeldOut(held_out["video_id"].tolist(), [None] * len(held_out), held_out["label"].to_numpy(float))
            found = baselines(training, held_out, split.seed, AFTER_POSTING)
            figures = {name: evaluate(on, found[name], split.seed).figures for name in ("followers", "metadata")}
            name = target.target + (f" less {target.residualize[0]}" if target.residualize else "")
            name += (
                f", winsorized at {target.winsorize:g}, {target.min_age_days:g} days old" if target.winsorize else ""
            )
            table.add_row(
                name, by, str(len(examples)), str(sum(chosen.left_out.values())), str(len(held_out)),
                *(f"{f['srcc']:.2f} ({f['srcc_low']:.2f} to {f['srcc_high']:.2f})" for f in figures.values()),
            )  # fmt: skip
            if target == targets[0]:
                console.print(f"{by} split: {overlaps(examples, examples['side'].to_numpy())}")
            if adjustment.residualizer is not None and by == "random":
                console.print(f"{target.residualize[0]} explain {adjustment.residualizer.explained_share:.2f} of "
                              f"log1p(shares)' variance in training")  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--later", type=Path, help="the same videos, counted again later")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = imported(arguments.table, Path(name))
        if arguments.later is not None:
            later = imported(arguments.later, Path(name))
            growth(pd.read_parquet(path), pd.read_parquet(later))
        judged(path)


if __name__ == "__main__":
    main()
