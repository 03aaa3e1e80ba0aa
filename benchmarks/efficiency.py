"""How much of the machine the scoring job leaves to its kernels, beside the same kernels in a pool of processes and in
Daft's local runner. Tables in docs/scale.md.

    python -m benchmarks.efficiency                     # 256 made-up videos, about twenty minutes on 2 cores
    pip install daft                                    # adds the row of Daft; not one of this project's dependencies

All three decode, search and map the same videos with the same code, a process or actor a core and stage, and all write
nothing but the job's own output. The pool and Daft have no child processes, so that a file that crashes its decoder
would take them along.
"""

import argparse
import collections
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.cpu_time import CoreTime, core_time_of, cpu_model
from catalog.sampling import SamplingConfig
from catalog.tables import read_products, read_videos
from catalog.world import make_world
from scoring.plan import images_of
from scoring.prepare import Request, make_prepare
from scoring.rows import prepared_row, score_row
from scoring.settings import MapConfig, ProductConfig
from tracking.names import PROJECT
from training.models import EngagementModel, ModelSpec, for_inference, load_checkpoint, save_checkpoint

TIMEOUT_S = 1800
KERNELS = ("isolated_child", "EngageActor")
"""in the names of the job's processes that do nothing but decode, search and map"""


class Kernels:
    """PREPARE and ENGAGE of one video after another in this process."""

    def __init__(self, checkpoint: bytes):
        import torch

        from scoring.saliency import EngagementMapper

        torch.set_num_threads(1)
        model = for_inference(load_checkpoint(checkpoint))
        self.mapper = EngagementMapper(model, "cpu", MapConfig())
        self.prepare = make_prepare(SamplingConfig(), ProductConfig(), model.spec.input_size)

    def __call__(self, video: dict[str, Any]) -> float:
        """PE of a row of the videos table with its product's photos."""
        request = Request(video["video_uri"], video["product_id"], video["images"], video["outlines"])
        prepared = self.prepare(request)
        row = prepared_row(video, prepared)
        ((E, engagement),) = self.mapper([prepared.clip])
        return score_row(row, E, engagement, False).scores["pe_score"]


_kernels: Kernels | None = None


def _start(checkpoint: bytes) -> None:
    global _kernels
    _kernels = Kernels(checkpoint)


def _score(video: dict[str, Any]) -> float:
    assert _kernels is not None
    return _kernels(video)


def in_pool(videos: list[dict[str, Any]], checkpoint: bytes, cores: int) -> dict[str, float]:
    begun = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(cores, _start, (checkpoint,)) as pool:
        collections.deque(pool.imap_unordered(_score, videos), maxlen=0)
    return {"job_s": time.monotonic() - begun}


def in_daft(videos: list[dict[str, Any]], checkpoint: bytes, cores: int) -> dict[str, float]:
    import daft  # pyright: ignore[reportMissingImports]

    @daft.cls(max_concurrency=cores, use_process=True)
    class Scorer:
        def __init__(self, checkpoint: bytes):
            self.kernels = Kernels(checkpoint)

        @daft.method(return_dtype=daft.DataType.float64())
        def score(self, video: str) -> float:
            given = json.loads(video)
            given["images"] = tuple(given["images"])
            given["outlines"] = given["outlines"] and tuple(o and tuple(o) for o in given["outlines"])
            return self.kernels(given)

    begun = time.monotonic()
    rows = daft.from_pydict({"video": [json.dumps(video) for video in videos]}).into_batches(1)
    rows.select(Scorer(checkpoint).score(daft.col("video"))).to_pydict()
    return {"job_s": time.monotonic() - begun}


def in_job(folder: Path, world: Path, model: Path) -> dict[str, float]:
    """As the pool, and three efficiencies: kernel time over cores x wall time of the whole run, the same in the middle
    of its work, and kernel time over the core time of all the job's processes, which other work does not touch."""
    command = [sys.executable, "-m", "jobs.score", "--videos", f"{world}/videos.parquet"]
    command += ["--products", f"{world}/products.parquet", "--model", str(model), "--output", f"{folder}/out"]
    folder.mkdir()
    begun, environment = time.monotonic(), os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    spent = core_time_of([*command, "--faithfulness-videos", "0"], TIMEOUT_S, folder / "log", PROJECT, environment)
    took, summary = time.monotonic() - begun, json.loads((folder / "out" / "run.json").read_text())
    kernels_s, cores = sum(summary["core_seconds"].values()), summary["cores"]
    steady = steady_core_s(spent) / cores
    return {"job_s": took, "whole": kernels_s / cores / took, "steady": steady, "core": kernels_s / spent.total}


def steady_core_s(spent: CoreTime) -> float:
    """Core-seconds a second of the processes that hold the kernels, from a third to nine tenths of their work."""
    wall = [seconds for seconds, _ in spent.course]
    done = [sum(s for name, s in so_far.items() if any(k in name for k in KERNELS)) for _, so_far in spent.course]
    first, last = np.interp([0.33 * done[-1], 0.9 * done[-1]], done, wall)
    return (0.9 - 0.33) * done[-1] / (last - first)


def catalogue(world: Path) -> list[dict[str, Any]]:
    videos, images = read_videos(f"{world}/videos.parquet"), images_of(read_products(f"{world}/products.parquet"))
    rows = videos.select(["video_id", "video_uri", "product_id"]).to_pylist()
    return [
        row | dict(zip(("images", "outlines"), images.get(row["product_id"], ((), None)), strict=True)) for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--architecture", nargs="+", default=["r3d_18_w16", "r3d_18"])
    parser.add_argument("--world", type=Path, help="a made-up world to take in place of a new one")
    flags = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    # as the job's decoders have: threads of two processes that wait for one another take turns on the same cores
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = flags.world or make_world(folder / "world", videos=flags.videos, seed=5).videos.parent
        videos = catalogue(world)
        minutes = sum(pq.read_table(world / "truth.parquet")["seconds"].to_pylist()) / 60
        print(f"{cpu_model()}; {len(videos)} videos, {minutes:.1f} minutes\n")
        columns = ("network", "", "s in all", "efficiency, whole", "steady", "of core time")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for architecture in flags.architecture:
            model = folder / f"{architecture}.pt"
            save_checkpoint(EngagementModel(ModelSpec(architecture=architecture)), model)
            checkpoint = model.read_bytes()
            runs: dict[str, Callable[[], dict[str, float]]] = {
                "jobs.score": partial(in_job, folder / architecture, world, model),
                "multiprocessing.Pool": partial(in_pool, videos, checkpoint, cores),
            }
            if importlib.util.find_spec("daft"):
                runs["Daft, local runner"] = partial(in_daft, videos, checkpoint, cores)
            for what, run in runs.items():
                found = run()
                cells = (f"{found[key]:.2f}" if key in found else "" for key in ("whole", "steady", "core"))
                print(f"| {architecture} | {what} | {found['job_s']:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
