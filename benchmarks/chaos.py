"""Is nothing lost and nothing doubled on a bad night? python -m benchmarks.chaos --videos 600 --seed 0 1 2

A catalogue of small made-up videos, a few real ones where the test data are beside the project, and 5% poison of
every kind is scored on three nodes (ray.cluster_utils) of this machine: undisturbed, then with a worker killed every
few seconds, one node killed and the driver killed twice and started again. Every row must be there once, poison with
its code, all others with the scores of the undisturbed run.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_time import cpu_model
from catalog.world import WorldConfig, make_world
from scoring.output import read_scores
from training.models import EngagementModel, ModelSpec, save_checkpoint

PROJECT = Path(__file__).parents[1]
REAL = PROJECT.parent / "shared" / "data" / "tiktok_popularity"
MADE_UP = 24
POISON = {
    "segfault": "decode_crash",
    "hang": "decode_timeout",
    "memory": "out_of_memory",
    "frames": "out_of_memory",
    "truncated": "truncated",
    "text": "not_a_video",
    "kills_prepare": "quarantined",
    "kills_engage": "quarantined",
}
"""kind -> its error_code; kills_prepare and kills_engage kill the actor, not its child"""
FLAGS = ("--video-timeout", "20", "--video-memory-mb", "1500", "--max-seconds", "5", "--faithfulness-videos", "0")
COMPARED, SAME = ("e_score", "p_score", "pe_score"), 1e-3
"""scores, and by which share of themselves they may differ"""
JOB_TIMEOUT_S = 1800
STARTS = 12


@dataclasses.dataclass
class Night:
    """What was done to a job and what came of it."""

    seconds: float = 0.0
    workers_killed: int = 0
    nodes_killed: int = 0
    drivers_killed: int = 0
    started: int = 0
    """times that the same command was run"""


def write_catalogue(folder: Path, videos: int, seed: int, poison: float = 0.05) -> dict[str, str | None]:
    """videos.parquet, products.parquet and model.pt; returns video_id -> the code that it must end with."""
    world = make_world(folder, videos=min(MADE_UP, videos), seed=seed, config=WorldConfig(seconds=(3.0, 5.0)))
    made_up = pq.read_table(world.videos).to_pylist()
    whole = folder / made_up[0]["video_uri"]
    for kind in POISON:
        shutil.copy(whole, folder / f"{kind}.mp4")
    (folder / "truncated.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "text.mp4").write_text('{"error": "video was removed"}\n')
    kinds = [list(POISON)[i % len(POISON)] for i in range(max(len(POISON), round(poison * videos)))]
    rows = [{"video_id": f"{kind} {i}", "video_uri": f"{kind}.mp4", "product_id": None} for i, kind in enumerate(kinds)]
    real = sorted(REAL.glob("7*.mp4"))[: videos // 100]
    rows += [{"video_id": f"real {path.stem}", "video_uri": str(path.resolve()), "product_id": None} for path in real]
    for i in range(videos - len(rows)):
        row = made_up[i % len(made_up)]
        rows.append({"video_id": f"{i} {row['video_id']}", **{k: row[k] for k in ("video_uri", "product_id")}})
    random.Random(seed).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "videos.parquet")
    torch.manual_seed(seed)
    save_checkpoint(EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=64)), folder / "model.pt")
    return {row["video_id"]: POISON.get(row["video_id"].split()[0]) for row in rows}


def scored(folder: Path, name: str, seed: int | None, nodes: int, kill_every_s: float, drivers: int) -> Night:
    """The job run to its end on a fresh cluster; ``seed``: of what is killed, None: nothing is."""
    night, random_ = Night(), random.Random(seed)
    output, parts_s = folder / name, 2.0
    total = pq.read_metadata(folder / "videos.parquet").num_rows
    with cluster(nodes) as (address, kill_node, log):
        started = time.monotonic()
        job = start_job(folder, output, address, log, night)
        next_kill = time.monotonic() + kill_every_s
        accidents = ["driver"] * drivers
        if nodes > 1:
            accidents.insert(1, "node")
        due = [(n + 1) / (len(accidents) + 1) for n in range(len(accidents))]
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if job.wait(parts_s) in (0, 3):
                        break
                    if night.started >= STARTS:
                        raise RuntimeError(f"still not done after {STARTS} starts, see {log}")
                    job = start_job(folder, output, address, log, night)
                if time.monotonic() - started > JOB_TIMEOUT_S:
                    raise TimeoutError(f"not done after {JOB_TIMEOUT_S} s, see {log}")
                if seed is None:
                    continue
                if accidents and rows_in(output) >= due[-len(accidents)] * total:
                    if accidents.pop(0) == "node":
                        kill_node()
                        night.nodes_killed += 1
                    else:
                        job.kill()
                        night.drivers_killed += 1
                elif time.monotonic() > next_kill and kill_worker(random_):
                    night.workers_killed += 1
                    next_kill = time.monotonic() + kill_every_s * random_.uniform(0.5, 1.5)
        finally:
            job.kill()
        night.seconds = time.monotonic() - started
    return night


@contextlib.contextmanager
def cluster(nodes: int, store_bytes: int = 300_000_000) -> Iterator[tuple[str, Any, Path]]:
    """Nodes of two CPUs; yields the address, what kills the last node, and a log for the jobs."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 2, "object_store_memory": store_bytes, "include_dashboard": False}
    ray_cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        others = [ray_cluster.add_node(num_cpus=2, object_store_memory=store_bytes) for _ in range(nodes - 1)]
        ray_cluster.wait_for_nodes(timeout=60)
        with tempfile.NamedTemporaryFile("w", prefix="chaos-", suffix=".log", delete=False) as log:
            pass
        yield (
            str(ray_cluster.address),
            lambda: ray_cluster.remove_node(others[-1], allow_graceful=False),
            Path(log.name),
        )
    finally:
        ray_cluster.shutdown()


def start_job(folder: Path, output: Path, address: str, log: Path, night: Night) -> "subprocess.Popen[bytes]":
    night.started += 1
    command = [sys.executable, "-m", "benchmarks.chaos_job", "--videos", f"{folder}/videos.parquet"]
    command += ["--products", f"{folder}/products.parquet", "--model", f"{folder}/model.pt", "--output", str(output)]
    env = os.environ | {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with log.open("ab") as out:
        return subprocess.Popen([*command, *FLAGS], cwd=PROJECT, env=env, stdout=out, stderr=out)


def rows_in(output: Path) -> int:
    return sum(pq.read_metadata(part).num_rows for part in (output / "scores").glob("*.parquet"))


def kill_worker(random_: random.Random) -> bool:
    """Kill -9 one of the processes that score."""
    workers = [p for p in psutil.Process().children(recursive=True) if "MapWorker" in _title(p)]
    if not workers:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        random_.choice(workers).kill()
    return True


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0] if process.cmdline() else ""
    except psutil.Error:
        return ""


def judged(folder: Path, name: str, expected: dict[str, str | None]) -> dict[str, list[str]]:
    """What is wrong with the rows: nothing, in the best case."""
    rows = read_scores(str(folder / name)).to_pylist()
    times = dict.fromkeys(expected, 0)
    for row in rows:
        times[row["video_id"]] = times.get(row["video_id"], 0) + 1
    wrong = {row["video_id"]: row for row in rows if row["error_code"] != expected.get(row["video_id"])}
    return {
        "lost": [video_id for video_id, n in times.items() if n == 0],
        "doubled": [video_id for video_id, n in times.items() if n > 1],
        "wrong code": [f"{video_id}: {row['error_code']} {row['error_message']}" for video_id, row in wrong.items()],
    }


def other_scores(folder: Path, name: str, than: str) -> list[str]:
    """Videos whose scores differ between two runs."""
    scores = [{row["video_id"]: row for row in read_scores(str(folder / one)).to_pylist()} for one in (name, than)]
    a, b = scores
    return [video_id for video_id, row in a.items() if any(_differ(row[name], b[video_id][name]) for name in COMPARED)]


def _differ(a: float | None, b: float | None) -> bool:
    return (a is None) != (b is None) if a is None or b is None else abs(a - b) > SAME * abs(a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=600)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=6.0, help="seconds between killed workers, on average")
    arguments = parser.parse_args()
    console = Console(width=150)
    columns = ("seed", "undisturbed, s", "disturbed, s", "ratio", "workers", "nodes", "drivers killed", "starts")
    table = Table(*columns, "rows", "lost", "doubled", "wrong code", "other scores")
    for seed in arguments.seed:
        with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
            folder = Path(scratch)
            expected = write_catalogue(folder, arguments.videos, seed)
            calm = scored(folder, "calm", None, arguments.nodes, arguments.kill_every, 0)
            night = scored(folder, "night", seed, arguments.nodes, arguments.kill_every, 2)
            problems = judged(folder, "night", expected)
            for what, which in (judged(folder, "calm", expected) | {}).items():
                if which:
                    console.print(f"seed {seed}, undisturbed: {what}: {which[:5]}")
            for what, which in problems.items():
                if which:
                    console.print(f"seed {seed}: {what}: {which[:5]}")
            others = other_scores(folder, "night", "calm")
            counts = [len(which) for which in problems.values()]
            figures = [seed, f"{calm.seconds:.0f}", f"{night.seconds:.0f}", f"{night.seconds / calm.seconds:.2f}"]
            figures += [night.workers_killed, night.nodes_killed, night.drivers_killed, night.started, len(expected)]
            table.add_row(*map(str, [*figures, *counts, len(others)]))
            console.print(table)
    console.print(cpu_model())


if __name__ == "__main__":
    main()
