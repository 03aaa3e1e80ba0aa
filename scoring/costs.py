"""What scoring costs: a run's pace, cores that keep a GPU busy, and what a sample says of a whole catalogue."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from catalog import storage
from catalog.errors import Refused

MOST_POINTS = 120
LEVEL = 0.95
RESAMPLES = 9999


class Pace:
    """What had come out by when: at most ``MOST_POINTS`` points, evenly over a run of any length."""

    def __init__(self):
        self.points: list[dict[str, float]] = []
        self._every_s = 0.25

    def add(self, wall_seconds: float, **done: float) -> None:
        """``done``: running totals."""
        if self.points and wall_seconds < self.points[-1]["wall_seconds"] + self._every_s:
            return
        self.points.append({"wall_seconds": round(wall_seconds, 3)} | done)
        if len(self.points) > MOST_POINTS:
            self.points, self._every_s = self.points[::2], 2 * self._every_s


class MeanCores:
    """Cores of a cluster that grows and shrinks: their mean over the time since it was made."""

    def __init__(self, cores: float, clock: Callable[[], float] = time.monotonic):
        self._clock, self._started = clock, clock()
        self._seen = (0.0, cores, self._started)
        """core-seconds up to the last look, cores since, when that was"""

    def see(self, cores: float) -> None:
        """So many from now on."""
        now = self._clock()
        self._seen = (self._core_seconds(now), cores, now)

    @property
    def mean(self) -> float:
        now = self._clock()
        return self._core_seconds(now) / (now - self._started) if now > self._started else self._seen[1]

    def _core_seconds(self, now: float) -> float:
        before, cores, since = self._seen
        return before + cores * (now - since)


def hourly(points: list[dict[str, float]], end_s: float, parts: int = 5) -> list[float]:
    """Videos an hour in equal parts of a run that ended after ``end_s``, from the points of its ``Pace``."""
    done = np.interp(
        np.linspace(0, end_s, parts + 1),
        [0.0, *(point["wall_seconds"] for point in points)],
        [0.0, *(point["videos"] for point in points)],
    )
    return (np.diff(done) * 3600 * parts / end_s).tolist()


@dataclasses.dataclass(frozen=True)
class StageCosts:
    """Seconds that a minute of video takes, as run.json and the JSON of jobs.plan hold them."""

    core_s: dict[str, float]
    """by stage"""
    fetch_s: float
    """that a PREPARE actor waits for a video, wall time"""
    gpu_s: float

    @classmethod
    def of(cls, summary: dict[str, Any]) -> "StageCosts | None":
        """None where it knows no costs, such as of a run in which every video failed."""
        by_stage = summary.get("core_seconds_per_video_minute_by_stage") or {}
        if not by_stage or None in by_stage.values():
            return None
        fetch_s, gpu_s = (summary.get(f"{what}_seconds_per_video_minute") or 0.0 for what in ("fetch", "gpu"))
        return cls(by_stage, fetch_s, gpu_s)

    @classmethod
    def read(cls, uri: str) -> "StageCosts":
        """Of a run.json, or of what jobs.plan wrote. Raises Refused."""
        try:
            summary = json.loads(storage.read_bytes(uri))
        except (OSError, ValueError) as error:
            why = storage.reason(error) if isinstance(error, OSError) else f"it is not JSON: {error}"
            raise Refused(f"--costs {uri} cannot be read: {why}; give run.json or the JSON of jobs.plan") from error
        costs = cls.of(summary) if isinstance(summary, dict) else None
        if costs is None:
            raise Refused(f"--costs {uri} holds no stage costs; give run.json or the JSON of jobs.plan")
        return costs

    @property
    def cores_per_gpu(self) -> float | None:
        """Cores that keep one GPU busy: those that prepare as fast as it engages, and the one that feeds it. A core
        that waits for a video's bytes is taken all the same. None without a GPU."""
        if not self.gpu_s:
            return None
        waiting = max(self.fetch_s, self.core_s.get("fetch", 0.0))
        return (waiting + self.core_s["decode"] + self.core_s["locate"]) / self.gpu_s + 1

    def advice(self) -> str:
        if self.cores_per_gpu is None:
            return (
                "CPU cores alone, by these costs: no GPU was used where they were measured; run jobs.plan on a cluster "
                "with a GPU to learn how many cores keep it busy"
            )
        return f"this catalogue needs {self.cores_per_gpu:.1f} CPU cores per GPU to keep it busy"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a catalogue's total, with the ends of a 95% interval over resampled videos; None where one video is all that
    there is."""

    value: float
    low: float | None
    high: float | None

    def times(self, factor: float) -> "Estimate":
        return self.through(lambda value: value * factor)

    def through(self, rising: Callable[[float], float]) -> "Estimate":
        low, high = (None if end is None else rising(end) for end in (self.low, self.high))
        return Estimate(rising(self.value), low, high)


def total_of(sample: np.ndarray, videos: int, seed: int = 0) -> Estimate:
    """Total over ``videos`` of what a random sample of them, float64 (n,), says; bias-corrected and accelerated
    bootstrap of the mean (Efron 1987), for costs are skewed."""
    mean = float(np.mean(sample))
    if len(sample) < 2:
        return Estimate(mean * videos, None, None)
    if np.ptp(sample) == 0:
        return Estimate(mean * videos, mean * videos, mean * videos)
    drawn = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="BCa", batch=1000,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = (float(end) for end in drawn.confidence_interval)
    return Estimate(mean, low, high).times(videos)


@dataclasses.dataclass(frozen=True)
class Machines:
    """What is rented, and what it comes to."""

    price_cpu: float
    """of a core-hour"""
    price_gpu: float
    """of a GPU-hour, with the cores that come with the GPU"""
    node_cpus: int
    """cores of a CPU node"""
    efficiency: float
    """kernel time over cores x wall time that the job reaches"""

    def price(self, core_hours: float, gpu_hours: float) -> float:
        """Of hours in kernels, in the prices' currency."""
        return (core_hours * self.price_cpu + gpu_hours * self.price_gpu) / self.efficiency

    def nodes(self, core_hours: float, hours: float) -> int:
        """CPU nodes that do the work in time."""
        return math.ceil(core_hours / self.efficiency / hours / self.node_cpus)

    def gpus(self, gpu_hours: float, hours: float) -> int:
        return math.ceil(gpu_hours / self.efficiency / hours)

    def hours(self, core_hours: float, gpu_hours: float, nodes: int, gpus: int) -> float:
        """Wall time on these machines, from when they are up."""
        on_cores = core_hours / (nodes * self.node_cpus)
        return max(on_cores, gpu_hours / gpus if gpus else 0.0) / self.efficiency
