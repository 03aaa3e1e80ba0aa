"""jobs.score whose processes die of the files that say so: python -m benchmarks.chaos_job (for benchmarks.chaos)"""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.command import run_job
from jobs.score import ScoreConfig, main
from scoring import graph, prepare
from scoring.graph import EngageActor, PrepareActor
from scoring.prepare import FingerprintOf, Request
from scoring.rows import ScoreRow


def make_child(*settings: Any) -> Callable[[Any], Any]:
    """The real child, but for files named after an accident."""
    answer = prepare.make_child(*settings)
    held = []

    def fragile(asked: Request | FingerprintOf) -> Any:
        match Path(asked.video_uri).stem if isinstance(asked, Request) else "":
            case "segfault":
                ctypes.string_at(0)
            case "hang":
                time.sleep(3600)
            case "memory":
                while True:
                    held.append(np.ones(1 << 22))
            case "frames":
                held.extend(np.zeros((1080, 1920, 3), np.uint8) + k % 256 for k in range(5000))
        return answer(asked)

    return fragile


class FragilePrepare(PrepareActor):
    """Dies itself of one kind of file, as where the kernel takes the actor for its child's memory."""

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self.child.target = "benchmarks.chaos_job:make_child"

    def _prepared(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["video_id"].startswith("kills_prepare"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._prepared(row)


class FragileEngage(EngageActor):
    """Dies of one kind of video, as in a crash of the GPU's library."""

    def _scored(self, rows: list[dict[str, Any]]) -> list[ScoreRow]:
        if any(row["video_id"].startswith("kills_engage") for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._scored(rows)


if __name__ == "__main__":
    from benchmarks import chaos_job

    graph.PrepareActor = chaos_job.FragilePrepare  # not __main__'s, which workers do not know
    graph.EngageActor = chaos_job.FragileEngage
    run_job(ScoreConfig, main, __doc__ or "")
