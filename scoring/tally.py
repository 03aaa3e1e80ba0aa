"""What came out of a scoring job so far, and what it cost."""

import collections
import time
from typing import Any

from catalog.errors import Broken, ErrorCode
from catalog.schemas import Status
from scoring.attempts import MAX_TRIES
from scoring.costs import Pace
from scoring.graph import EXAMINATION_CORE_S
from scoring.rows import STAGES

QUARANTINED_AT_LEAST, QUARANTINED_SHARE = 20, 0.02
"""more quarantined videos than this end the job"""


class Tally:
    """What came out so far, by status, error code and stage."""

    def __init__(self):
        self.done = 0
        self.statuses: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}
        self.core_seconds = dict.fromkeys(STAGES, 0.0)
        self.fetch_seconds = 0.0
        """wall time for which videos' bytes were waited for"""
        self.gpu_seconds = 0.0
        self.pace = Pace()
        self.figures: list[dict[str, float]] = []
        """of the examined videos"""
        self.examination_core_seconds = 0.0
        self.rejections: collections.Counter[str] = collections.Counter()
        """why the product was not found, of frames and views of products"""
        self.video_minutes = 0.0
        self.started = time.monotonic()

    def add(self, rows: list[dict[str, Any]], sample_fps: float) -> None:
        for row in rows:
            self.done += 1
            self.statuses[row["status"]] += 1
            if row["error_code"]:
                self.errors[row["error_code"]] += 1
                self.examples.setdefault(row["error_code"], f"{row['video_id']}: {row['error_message']}")
            self.video_minutes += (row["seconds"] or 0) / sample_fps / 60
            for stage in STAGES:
                self.core_seconds[stage] += row["core_s"][stage] or 0.0
            self.fetch_seconds += row["fetch_s"]
            self.gpu_seconds += row["gpu_s"]
            self.rejections.update(dict(row["rejections"] or ()))
            if row["figures"]:
                figures = dict(row["figures"])
                self.examination_core_seconds += figures.pop(EXAMINATION_CORE_S)
                self.figures.append(figures)
        spent = sum(self.core_seconds.values())
        self.pace.add(self.wall_seconds, videos=self.done, video_minutes=self.video_minutes, core_seconds=spent)

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self.started

    def summary(self, cores: float) -> dict[str, Any]:
        """Figures for run.json, the console and MLflow. A minute of video is a minute that was looked at.
        cores: of the cluster, their mean over the run."""
        minutes = self.video_minutes
        kernel = sum(self.core_seconds.values())

        def a_minute(seconds: float) -> float | None:
            return seconds / minutes if minutes else None

        return {
            "videos": {status.value: self.statuses[status] for status in Status},
            "errors": dict(self.errors),
            "error_examples": self.examples,
            "product_rejections": dict(self.rejections.most_common()),
            "video_minutes": minutes,
            "videos_per_hour": 3600 * self.done / self.wall_seconds,
            "wall_seconds": self.wall_seconds,
            "core_seconds_per_video_minute": a_minute(kernel),
            "core_seconds_per_video_minute_by_stage": {s: a_minute(spent) for s, spent in self.core_seconds.items()},
            "fetch_seconds_per_video_minute": a_minute(self.fetch_seconds),
            "gpu_seconds_per_video_minute": a_minute(self.gpu_seconds),
            "core_seconds": self.core_seconds,
            "gpu_seconds": self.gpu_seconds,
            "cores": cores,
            "efficiency": kernel / (cores * self.wall_seconds) if self.done else None,
            "pace": self.pace.points,
        }


def check_quarantine(tally: Tally, videos: int) -> None:
    """Raises Broken where so many videos killed their processes that it must be the nodes' fault."""
    quarantined = tally.errors[ErrorCode.QUARANTINED]
    if quarantined > max(QUARANTINED_AT_LEAST, QUARANTINED_SHARE * videos):
        raise Broken(
            f"{quarantined} of {tally.done} videos were quarantined, because the processes that worked on them died "
            f"{MAX_TRIES} times each: rather the nodes' fault than the videos'; look for memory, the GPU's driver and "
            "the nodes' logs (ray status, ray logs), then run the same command again with --retry-failed"
        )
