"""The real scoring job with sleeps for kernels, so that many nodes fit on one machine: what is left is its overhead.

Run by benchmarks.scale, a process each; prints one line of JSON.
"""

import argparse
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from catalog.schemas import Status
from jobs.score import ScoreConfig
from jobs.steps import score
from scoring import graph
from scoring.rows import PREPARED, Provenance, ScoreRow
from training.models import EngagementModel, ModelSpec, save_checkpoint

SIZE = 112
PREPARE_S, ENGAGE_S, SECONDS = (f"BENCHMARK_{name}" for name in ("PREPARE_S", "ENGAGE_S", "SECONDS"))
"""of a video; in the environment, for the workers read it too"""


class SleepingPrepare:
    """In the place of graph.PrepareActor: rows and clips of the real size."""

    def __init__(self, *_: object):
        self.sleep_s, self.longest = float(os.environ[PREPARE_S]), int(os.environ[SECONDS])

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        for row in videos.to_pylist():
            time.sleep(self.sleep_s)
            # lengths are mixed, their mean is given
            seconds = 1 + zlib.crc32(row["video_id"].encode()) % (2 * self.longest - 1)
            known = {name: row[name] for name in ("video_id", "product_id")}
            known |= {"seconds": seconds, "width": 576, "height": 1024, "codec": "h264", "fetch_s": 0.0}
            known |= {"clip": bytes(seconds * SIZE * SIZE * 3), "core_s": {"decode": self.sleep_s}}
            yield pa.Table.from_pylist([dict.fromkeys(PREPARED.names) | known], schema=PREPARED)


class SleepingEngage:
    """In the place of graph.EngageActor: scores rows of the real size."""

    def __init__(self, _checkpoint: object, _maps: object, provenance: Provenance, save_maps: bool, *_: object):
        self.provenance, self.save_maps, self.sleep_s = provenance, save_maps, float(os.environ[ENGAGE_S])

    def __call__(self, prepared: pa.Table) -> pa.Table:
        rows = prepared.to_pylist()
        time.sleep(self.sleep_s * len(rows))
        return ScoreRow.table([self._scored(row) for row in rows], self.provenance, self.save_maps)

    def _scored(self, row: dict) -> ScoreRow:
        values = np.random.default_rng(0).random(row["seconds"]).tolist()
        scores = {name: row[name] for name in ("video_id", "product_id", "seconds", "width", "height", "codec")}
        scores |= {"status": str(Status.NO_PRODUCT), "e_score": 0.5, "e_per_second": values}
        return ScoreRow(
            scores, {"fetch": 0.0, "decode": row["core_s"]["decode"], "locate": 0.0, "engage": self.sleep_s}
        )


class Memory(threading.Thread):
    """The most that the job's processes (less what they share, as with the object store) and the object stores have
    held, bytes; the driver apart while it scores and when it reports, after the last video."""

    def __init__(self, summary: Path):
        """summary: the file that the job writes when all videos are scored."""
        super().__init__(daemon=True)
        self.summary = summary
        self.driver = self.reporting = self.worker = self.store = 0
        self.before = psutil.disk_usage("/dev/shm").used

    def run(self) -> None:
        driver = psutil.Process()
        while True:
            if self.summary.exists():
                self.reporting = max(self.reporting, own_bytes(driver))
            else:
                self.driver = max(self.driver, own_bytes(driver))
            for process in driver.children(recursive=True):
                try:
                    if process.cmdline()[0].startswith("ray::"):
                        self.worker = max(self.worker, own_bytes(process))
                except (psutil.Error, IndexError):
                    continue
            self.store = max(self.store, psutil.disk_usage("/dev/shm").used - self.before)
            time.sleep(1)


def own_bytes(process: psutil.Process) -> int:
    used = process.memory_info()
    return used.rss - used.shared


def catalogue(folder: Path, rows: int) -> ScoreConfig:
    """Writes the tables and a model; the job's flags."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"video-{row:09}" for row in range(rows)]
    pq.write_table(pa.table({"video_id": ids, "video_uri": [f"{n}.mp4" for n in ids]}), folder / "videos.parquet")
    save_checkpoint(EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=SIZE)), folder / "model.pt")
    return job_of(folder)


def job_of(folder: Path) -> ScoreConfig:
    return ScoreConfig(
        videos=f"{folder}/videos.parquet", output=f"{folder}/scores", model=f"{folder}/model.pt", faithfulness_videos=0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus-per-node", type=int, default=2)
    parser.add_argument("--prepare-s", type=float, default=0.0)
    parser.add_argument("--engage-s", type=float, default=0.0)
    parser.add_argument("--seconds", type=int, default=30, help="mean length of a video")
    flags = parser.parse_args()
    os.environ |= {
        PREPARE_S: str(flags.prepare_s), ENGAGE_S: str(flags.engage_s), SECONDS: str(flags.seconds),
        "MLFLOW_TRACKING_URI": f"sqlite:///{flags.folder}/mlflow.db", "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    config = catalogue(flags.folder, flags.rows)
    store = {"object_store_memory": 2 * 2**30 // flags.nodes}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    for _ in range(flags.nodes):
        cluster.add_node(num_cpus=flags.cpus_per_node, **store)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    memory = Memory(Path(config.output, "run.json"))
    memory.start()
    begun, begun_core_s = time.monotonic(), time.process_time()
    with mock.patch.multiple(graph, PrepareActor=SleepingPrepare, EngageActor=SleepingEngage):
        code = score.main(config)
    took = time.monotonic() - begun
    ray.shutdown()
    cluster.shutdown()
    summary = json.loads(Path(config.output, "run.json").read_text())
    found = {"code": code, "rows": summary["rows"], "job_s": took, "pace": summary["pace"]}
    found |= {"driver_core_s": time.process_time() - begun_core_s}
    found |= {f"{what}_bytes": getattr(memory, what) for what in ("driver", "reporting", "worker", "store")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
