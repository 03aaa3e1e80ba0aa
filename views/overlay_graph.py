"""The graph of an overlay job: a row a video in -> DRAW (CPU) -> a row each that says what became of it."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from catalog import storage
from catalog.actors import RESTARTS
from catalog.errors import ErrorCode, Stage, VideoError
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from scoring.graph import rows_a_block
from scoring.output import OutputFolder
from scoring.settings import VideoLimits
from views.maps import SavedMap
from views.overlay import OverlayRequest

TO_DRAW = pa.schema(
    [
        ("video_id", pa.string()),
        ("video_uri", pa.string()),
        ("part", pa.string()),  # of the scores: its maps have the same name
        ("bar_name", pa.string()),
        ("per_sample", pa.list_(pa.float32())),
        ("file", pa.string()),
    ]
)
DRAWN = pa.schema(
    [
        ("video_id", pa.string()),
        ("file", pa.string()),  # null where the video could not be drawn on
        ("seconds", pa.float64()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
DRAWER_CALLS = 500
"""a fresh child after so many videos: decoders leak"""


def overlay_graph(
    videos: pa.Table,
    scores: OutputFolder,
    output: str,
    sampling: SamplingConfig,
    limits: VideoLimits,
    opacity: float,
    cpus: float,
) -> ray.data.Dataset:
    """videos: of TO_DRAW -> a lazy dataset of DRAWN, one row each; writes ``output``/file.

    sampling: with what the videos were scored. cpus: of the cluster; a core draws one video at a time.
    """
    # Ray 2.60 has no other way to say these, yet warns of it
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=RayDeprecationWarning)
    actors = min(max(1, int(cpus)), videos.num_rows)
    block_rows = rows_a_block(videos.num_rows, actors)
    blocks = [videos.slice(start, block_rows) for start in range(0, videos.num_rows, block_rows)]
    return ray.data.from_arrow(blocks).map_batches(
        DrawActor,
        fn_constructor_args=(scores, output, sampling, limits, opacity),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=min(1.0, cpus),
        compute=ray.data.ActorPoolStrategy(size=actors),
        **RESTARTS,
    )


class DrawActor:
    """DRAW on one core: every video in a supervised child process, so that a crash costs that video only."""

    def __init__(
        self, scores: OutputFolder, output: str, sampling: SamplingConfig, limits: VideoLimits, opacity: float
    ):
        self.scores, self.output, self.limits = scores, output, limits
        self.samples_per_second = sampling.sample_fps
        self.child = IsolatedWorker(
            "views.overlay:make_drawer",
            (opacity, sampling.max_duration, int(sampling.max_megabytes * 1e6)),
            memory_limit_bytes=int(limits.video_memory_mb * 2**20),
            max_calls=DRAWER_CALLS,
        )

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        for row in videos.to_pylist():
            yield pa.Table.from_pylist([self._drawn(row)], schema=DRAWN)

    def _drawn(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"video_id": row["video_id"], "file": row["file"], "seconds": self._draw(row)}
        except VideoError as error:
            return {"video_id": row["video_id"], "error_code": str(error.code), "error_message": error.message}

    def _draw(self, row: dict[str, Any]) -> float:
        """Seconds of video that were written."""
        if row["video_uri"] is None:
            raise VideoError(ErrorCode.NOT_FOUND, "the videos table does not say where it is", Stage.FETCH)
        found = next(self.scores.maps(row["part"], [row["video_id"]]), None)
        if found is None:
            raise VideoError(ErrorCode.NOT_FOUND, "no map was saved; score it with --save-maps", Stage.FETCH)
        saved = SavedMap.of_row(found, self.samples_per_second)
        with tempfile.TemporaryDirectory(prefix="overlay-") as folder:
            target = Path(folder) / "overlay.mp4"
            request = OverlayRequest(row["video_uri"], str(target), saved, row["per_sample"], row["bar_name"])
            written = self.child.call(request, self.limits.video_timeout)
            storage.write_bytes_atomically(f"{self.output}/{row['file']}", target.read_bytes())
        return written.seconds
