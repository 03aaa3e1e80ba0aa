"""How the scoring job's own overhead grows: catalogue size, finished rows, nodes. Tables in docs/scale.md.

    python -m benchmarks.scale                                 # all but --paper, about half an hour on 2 cores
    python -m benchmarks.scale --parts overhead --rows 1000 10000
    python -m benchmarks.scale --paper plan.json               # 1, 10 and 100 million videos by what jobs.plan measured

overhead  the real job with sleeps of 1 ms for kernels (benchmarks.sleeping): what is left is Ray's work and ours
resume    a folder of finished rows in blocks of 16, as a killed job leaves it, is gone on with
nodes     virtual nodes of one core on this machine, stages that sleep; videos a second at steady state
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cpu_time import core_time_of, cpu_model
from catalog import storage
from scoring.costs import Machines, StageCosts
from tracking.names import PROJECT

TIMEOUT_S = 1800
SLEEP_S = 0.001
STAGE_S = 0.4
"""of a video in each stage, where nodes are compared"""
VIDEOS_A_NODE = 160
PAPER_VIDEOS, PAPER_SECONDS, PAPER_HOURS = (10**6, 10**7, 10**8), 30, 24.0


def measured(module: str, folder: Path, *flags: str) -> dict:
    """What the module prints last, and its core-seconds with every process that it started."""
    command = [sys.executable, "-m", module, "--folder", str(folder), *flags]
    log = folder.parent / f"{folder.name}.log"
    spent = core_time_of(command, TIMEOUT_S, log, PROJECT, dict(os.environ)).total
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {}) | {"core_s": spent}


def steady_rate(pace: list[dict[str, float]]) -> float:
    """Videos a second between a third and nine tenths of what came out: actors start before, run dry after."""
    done, wall = ([point[key] for point in pace] for key in ("videos", "wall_seconds"))
    first, last = np.interp([0.33 * done[-1], 0.9 * done[-1]], done, wall)
    return (0.9 - 0.33) * done[-1] / (last - first)


def overhead(folder: Path, sizes: list[int]) -> None:
    columns = ("videos", "job, s", "core-ms a video", "... beyond the first run", "videos a second")
    megabytes = ("driver", "reporting", "worker", "store")
    print(f"| {' | '.join(columns)} | driver, MB | ... reporting | worker, MB | object store, MB |\n|" + "---|" * 9)
    first: dict | None = None
    for rows in sizes:
        flags = ("--rows", str(rows), "--prepare-s", str(SLEEP_S), "--engage-s", str(SLEEP_S))
        found = measured("benchmarks.sleeping", folder / f"overhead-{rows}", *flags)
        first = first or found
        beyond = 1e3 * (found["core_s"] - first["core_s"]) / (rows - first["rows"]) if rows > first["rows"] else None
        print(
            f"| {rows:,} | {found['job_s']:.0f} | {1e3 * found['core_s'] / rows:.1f} | "
            f"{'' if beyond is None else f'{beyond:.2f}'} | {steady_rate(found['pace']):.0f} | "
            + " | ".join(f"{found[f'{what}_bytes'] / 1e6:,.0f}" for what in megabytes) + " |",
            flush=True,
        )  # fmt: skip


def resume(folder: Path, sizes: list[int]) -> None:
    print("| finished rows | files | plan, s | folder made ready, s | driver, MB |\n|" + "---|" * 5)
    for rows in sizes:
        measured("benchmarks.resuming", folder / f"resume-{rows}", "--rows", str(rows), "--make")
        found = measured("benchmarks.resuming", folder / f"resume-{rows}", "--rows", str(rows))
        ready_s, megabytes = found["begun_s"] - found["planned_s"], found["driver_bytes"] / 1e6
        print(
            f"| {rows:,} | {found['parts']:,} | {found['planned_s']:.1f} | {ready_s:.1f} | {megabytes:,.0f} |",
            flush=True,
        )


def nodes(folder: Path, counts: list[int]) -> None:
    print("| nodes | videos | videos a second | of the first row's, a node |\n|" + "---|" * 4)
    first = None
    for count in counts:
        sizes = ("--rows", str(VIDEOS_A_NODE * count), "--nodes", str(count), "--cpus-per-node", "1")
        found = measured(
            "benchmarks.sleeping", folder / f"nodes-{count}", *sizes,
            "--prepare-s", str(STAGE_S), "--engage-s", str(STAGE_S),
        )  # fmt: skip
        rate = steady_rate(found["pace"])
        first = first or rate / count
        print(f"| {count} | {found['rows']:,} | {rate:.2f} | {rate / count / first:.0%} |", flush=True)


def paper(plan_uri: str) -> None:
    """24 hours on paper, by the costs, prices and nodes of a plan."""
    plan = json.loads(storage.read_bytes(plan_uri))
    costs, machines = StageCosts.read(plan_uri), Machines(**plan["machines"])
    print("| videos of 30 s | core-hours | GPU-hours | price | CPU nodes for 24 h | GPUs for 24 h | videos a second |")
    print("|" + "---|" * 7)
    for videos in PAPER_VIDEOS:
        minutes = videos * PAPER_SECONDS / 60
        core_h, gpu_h = minutes * sum(costs.core_s.values()) / 3600, minutes * costs.gpu_s / 3600
        print(
            f"| {videos:,} | {core_h / machines.efficiency:,.0f} | {gpu_h / machines.efficiency:,.0f} | "
            f"{machines.price(core_h, gpu_h):,.0f} | {machines.nodes(core_h, PAPER_HOURS):,} | "
            f"{machines.gpus(gpu_h, PAPER_HOURS):,} | {videos / PAPER_HOURS / 3600:,.0f} |"
        )
    stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in costs.core_s.items())
    print(f"\nby {plan['sample']} videos: core-seconds a minute {stages}; GPU-seconds {costs.gpu_s:.2f}; {machines}")


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "overhead": lambda folder, flags: overhead(folder, flags.rows),
    "resume": lambda folder, flags: resume(folder, flags.finished),
    "nodes": lambda folder, flags: nodes(folder, flags.nodes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--finished", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--paper", metavar="PLAN.json", help="what jobs.plan wrote: prints that table alone")
    flags = parser.parse_args()
    if flags.paper:
        paper(flags.paper)
        return
    print(f"{cpu_model()}\n")
    with tempfile.TemporaryDirectory() as folder:
        for part in flags.parts:
            print(f"\n{part}\n", flush=True)
            PARTS[part](Path(folder), flags)


if __name__ == "__main__":
    main()
