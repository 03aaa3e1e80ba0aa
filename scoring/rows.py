"""The rows that travel between the stages, and the scores table's row made of them."""

import dataclasses
import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.errors import VideoError
from catalog.schemas import MAPS, SCORES, Status
from scoring.pe import pe_scores, rasterised
from scoring.prepare import Prepared

STAGES = ("fetch", "decode", "locate", "engage")

_FOUND = ("product_quads", "product_inliers", "product_probability")
_MEDIA = ("seconds", "fps", "width", "height", "duration_s", "codec", *_FOUND)
_ERROR = ("error_code", "error_message", "error_stage")

PREPARED = pa.schema(
    [
        ("video_id", pa.string()),
        ("product_id", pa.string()),
        *[(name, pa.string()) for name in _ERROR],
        ("fingerprint", pa.string()),
        *[(name, SCORES.field(name).type) for name in _MEDIA],
        ("clip", pa.large_binary()),  # uint8 (S, size, size, 3), C order
        ("outlines", pa.list_(pa.list_(pa.list_(pa.float32())))),  # per second and copy x1,y1,x2,y2,...
        ("rejections", pa.map_(pa.string(), pa.int64())),  # scoring.pose.Rejection -> how often
        ("core_s", pa.struct([(stage, pa.float64()) for stage in STAGES])),
        ("fetch_s", pa.float64()),  # wall time until the video was here
    ]
)


FIGURES = pa.map_(pa.string(), pa.float64())
EXAMINED = pa.schema(
    [("video_id", pa.string()), ("product_id", pa.string()), ("problem", pa.string()), ("figures", FIGURES)]
)
"""problem: why there are no figures"""


def prepared_row(video: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """A row of PREPARED for a video that could be looked at."""
    found = prepared.detections
    return {
        "video_id": video["video_id"],
        "product_id": video["product_id"],
        "fingerprint": video.get("fingerprint"),
        "seconds": len(prepared.clip),
        "fps": prepared.fps,
        "width": prepared.width,
        "height": prepared.height,
        "duration_s": prepared.duration_s,
        "codec": prepared.codec,
        "product_quads": found and [d and np.ravel([one.quad for one in d.everywhere]).tolist() for d in found],
        "product_inliers": found and [d.inliers if d else 0 for d in found],
        "product_probability": found and [d.probability if d else 0.0 for d in found],
        "clip": prepared.clip.tobytes(),
        "outlines": found and [[one.outline.ravel().tolist() for one in d.everywhere] if d else [] for d in found],
        "rejections": prepared.rejections,
        "core_s": prepared.core_seconds,
        "fetch_s": prepared.fetch_s,
    }


def failed_row(video: dict[str, Any], error: VideoError) -> dict[str, Any]:
    """A row of PREPARED for a video that could not be looked at; null wherever nothing is known."""
    return dict.fromkeys(PREPARED.names) | {
        "video_id": video["video_id"],
        "product_id": video["product_id"],
        "fingerprint": video.get("fingerprint"),
        "error_code": str(error.code),
        "error_message": error.message,
        "error_stage": str(error.stage),
    }


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where scores come from: the same in every row of a run."""

    model_uri: str
    model_version: str
    run_id: str | None
    config_hash: str
    code_version: str


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """One row of the scores table, and what travels beside it to the sink."""

    scores: dict[str, Any]
    core_s: dict[str, float]
    map_row: dict[str, Any] | None = None
    rejections: dict[str, int] = dataclasses.field(default_factory=dict)
    """why the product was not found, see ``scoring.pose.Rejection``"""
    fetch_s: float = 0.0
    """wall time until the video was here"""
    gpu_s: float = 0.0
    """for how long it kept a GPU"""
    figures: dict[str, float] | None = None
    """of its map's faithfulness, where the video is in the sample; empty where it could not be examined"""

    @classmethod
    def failed(cls, row: dict[str, Any]) -> "ScoreRow":
        scores = {name: row.get(name) for name in ("video_id", "product_id", "fingerprint", *_ERROR)}
        return cls(scores | {"status": str(Status.FAILED)}, _known(row.get("core_s")))

    def engaged_for(self, core_s: float, gpu_s: float) -> "ScoreRow":
        return dataclasses.replace(self, core_s=self.core_s | {"engage": core_s}, gpu_s=gpu_s)

    @staticmethod
    def table(rows: list["ScoreRow"], provenance: Provenance, with_maps: bool) -> pa.Table:
        """What the sink takes: SCORES columns, core_s, fetch_s, gpu_s, rejections, figures and, on request, map."""
        common = dataclasses.asdict(provenance) | {"scored_at": datetime.datetime.now(datetime.UTC)}
        table = pa.Table.from_pylist([row.scores | common for row in rows], schema=SCORES)
        core = pa.array([row.core_s for row in rows], PREPARED.field("core_s").type)
        figures = pa.array([row.figures for row in rows], FIGURES)
        rejections = pa.array([row.rejections for row in rows], PREPARED.field("rejections").type)
        table = table.append_column("core_s", core).append_column("rejections", rejections)
        for name in ("fetch_s", "gpu_s"):
            table = table.append_column(name, pa.array([getattr(row, name) for row in rows], pa.float64()))
        table = table.append_column("figures", figures)
        if with_maps:
            maps = pa.array([row.map_row for row in rows], pa.struct(list(MAPS)))
            table = table.append_column("map", maps)
        return table


def score_row(row: dict[str, Any], E: np.ndarray, engagement: float, with_map: bool) -> ScoreRow:
    """Scores of one video. row: of PREPARED; E: float32 (S, H, W), unscaled; engagement: the model's output."""
    scores = pe_scores(E, product_map(row, E.shape[-1]))
    if row["outlines"] is None:
        status = Status.NO_PRODUCT
    else:
        status = Status.OK if any(row["outlines"]) else Status.NOT_LOCALISED
    columns = {name: row[name] for name in ("video_id", "product_id", "fingerprint", *_MEDIA)}
    columns |= dataclasses.asdict(scores) | {"status": str(status), "predicted_engagement": engagement}
    map_row = _map_row(row, E) if with_map else None
    return ScoreRow(columns, _known(row["core_s"]), map_row, dict(row["rejections"] or ()), row["fetch_s"] or 0.0)


def product_map(row: dict[str, Any], size: int) -> np.ndarray | None:
    """P on E's grid, bool (S, size, size), of a row of PREPARED; None where the video has no product."""
    outlines: list[list[list[float]]] | None = row["outlines"]
    if outlines is None:
        return None
    return rasterised([[np.reshape(polygon, (-1, 2)) for polygon in second] for second in outlines], size, size)


def _map_row(row: dict[str, Any], E: np.ndarray) -> dict[str, Any]:
    low, high = float(E.min()), float(E.max())
    levels = np.round((E - low) * (255 / (high - low))) if high > low else np.zeros_like(E)
    return {
        "video_id": row["video_id"],
        "e_uint8": levels.astype(np.uint8).tobytes(),
        "e_min": low,
        "e_max": high,
        "seconds": E.shape[0],
        "height": E.shape[1],
        "width": E.shape[2],
        "product_quads": row["product_quads"],
    }


def _known(core_s: dict[str, float | None] | None) -> dict[str, float]:
    return {stage: (core_s or {}).get(stage) or 0.0 for stage in STAGES}
