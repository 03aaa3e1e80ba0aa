"""What jobs.overlay does."""

import collections
import dataclasses
import io
import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import storage
from catalog.errors import Refused, check_positive
from catalog.schemas import Status
from jobs.command import (
    DONE,
    TOO_MANY_FAILED,
    ProgressLog,
    StallWatch,
    console,
    print_config,
    ray_cluster,
    resolved,
)
from jobs.overlay import OverlayConfig
from jobs.steps.folders import check_shared
from jobs.steps.scored import ScoredFolder
from scoring.output import OutputFolder
from views.names import file_stem
from views.overlay_graph import DRAWN, TO_DRAW, overlay_graph

SETTINGS = "overlay.json"
TABLE = "overlays.parquet"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to do."""

    videos: pa.Table
    """of TO_DRAW, those that are left"""
    finished: list[str]
    """ids of those whose file is there"""
    not_scored: int


def main(config: OverlayConfig) -> int:
    print_config(resolved(config))
    _check(config)
    scored = ScoredFolder.read(config.scores)
    output = storage.absolute(config.output)
    storage.check_writable(output)
    settings = {
        "opacity": config.opacity,
        "config_hashes": sorted(filter(None, pc.unique(scored.scores["config_hash"]).to_pylist())),
    }
    _check_alike(output, settings)
    plan = _planned(config, scored, output)
    without = f", {plan.not_scored} without scores" if plan.not_scored else ""
    console.print(
        f"{plan.videos.num_rows} videos to draw, {len(plan.finished)} finished before{without}; output {output}"
    )
    if config.dry_run:
        return DONE
    storage.write_bytes_atomically(f"{output}/{SETTINGS}", json.dumps(settings, indent=2).encode())
    rows = _drawn(config, plan, scored, output) if plan.videos.num_rows else []
    earlier = {row["video_id"]: row for row in _earlier(output)}
    kept = [{"video_id": video_id, "file": f"{file_stem(video_id)}.mp4"} for video_id in plan.finished]
    table = {row["video_id"]: row for row in kept} | earlier | {row["video_id"]: row for row in rows}
    storage.write_bytes_atomically(f"{output}/{TABLE}", _parquet([*table.values()]))
    failed = collections.Counter(row["error_code"] for row in rows if row["error_code"])
    for code, n in sorted(failed.items()):
        example = next(row for row in rows if row["error_code"] == code)
        console.print(f"failed, {code}: {n}, such as {example['video_id']}: {example['error_message']}")
    console.print(f"overlays: {output}    which file is whose: {output}/{TABLE}")
    return TOO_MANY_FAILED if failed.total() > config.max_failed_fraction * max(len(rows), 1) else DONE


def _check(config: OverlayConfig) -> None:
    if not 0 <= config.opacity <= 1:
        raise Refused(f"--opacity is {config.opacity:g}, expected a number from 0 to 1")
    if config.limit is not None and config.limit < 1:
        raise Refused(f"--limit is {config.limit}, expected at least 1")
    check_positive({"--video-timeout": config.limits.video_timeout, "--video-memory-mb": config.limits.video_memory_mb})


def _check_alike(output: str, settings: dict[str, Any]) -> None:
    """Overlays of other scores or another opacity are never mixed with these."""
    try:
        earlier = json.loads(storage.read_bytes(f"{output}/{SETTINGS}"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise Refused(f"{output}/{SETTINGS} cannot be read: {error}; give another --output") from error
    if earlier != settings:
        raise Refused(f"{output} holds overlays of other scores or of another --opacity; give another --output")


def _planned(config: OverlayConfig, scored: ScoredFolder, output: str) -> Plan:
    videos = scored.videos(config.videos)
    if videos is None:
        raise Refused(
            f"{config.scores} does not say where its videos are; give the table that was scored with --videos"
        )
    uris = dict(zip(*(videos[name].to_pylist() for name in ("video_id", "video_uri")), strict=True))
    columns = ["video_id", "status", "pe_per_second", "e_per_second"]
    rows = {row["video_id"]: row for row in scored.scores.select(columns).to_pylist()}
    unknown = [video_id for video_id in config.video if video_id not in rows]
    if unknown:
        raise Refused(f"--video {unknown[0]}: {config.scores} has no scores of a video of that id")
    chosen = sorted(config.video or rows)[: config.limit]
    with_scores = [video_id for video_id in chosen if rows[video_id]["status"] != Status.FAILED]
    if with_scores and scored.settings.get("save_maps") is False:
        raise Refused(
            f"{config.scores} was scored without --save-maps, so there is nothing to draw; "
            "run jobs.score with it into another folder"
        )
    there = _files_in(output)
    files = {video_id: f"{file_stem(video_id)}.mp4" for video_id in with_scores}
    left = [video_id for video_id in with_scores if files[video_id] not in there]
    to_draw = []
    for video_id in left:
        bar = "E" if rows[video_id]["pe_per_second"] is None else "PE"
        to_draw.append(
            {
                "video_id": video_id,
                "video_uri": uris.get(video_id),
                "part": scored.parts[video_id],
                "bar_name": bar,
                "per_sample": rows[video_id][f"{bar.lower()}_per_second"],
                "file": files[video_id],
            }
        )
    finished = [video_id for video_id in with_scores if files[video_id] in there]
    return Plan(pa.Table.from_pylist(to_draw, schema=TO_DRAW), finished, len(chosen) - len(with_scores))


def _files_in(output: str) -> set[str]:
    try:
        return {uri.rsplit("/", 1)[-1] for uri in storage.files_in(output) or []}
    except FileNotFoundError:
        return set()


def _earlier(output: str) -> list[dict[str, Any]]:
    """What became of the videos of earlier runs into this folder."""
    try:
        return pq.read_table(io.BytesIO(storage.read_bytes(f"{output}/{TABLE}")), schema=DRAWN).to_pylist()
    except FileNotFoundError:
        return []
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"{output}/{TABLE} cannot be read: {error}; give another --output") from error


def _drawn(config: OverlayConfig, plan: Plan, scored: ScoredFolder, output: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    progress = ProgressLog("drawing", plan.videos.num_rows)
    started = time.monotonic()
    with ray_cluster() as cluster, StallWatch(600 + config.limits.video_timeout) as watch:
        check_shared(output, "--output")
        graph = overlay_graph(
            plan.videos, OutputFolder(scored.uri), output, scored.sampling, config.limits, config.opacity,
            cluster["CPU"],
        )  # fmt: skip
        try:
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                rows += batch.to_pylist()  # pyright: ignore
                watch.alive()
                failed = sum(row["error_code"] is not None for row in rows)
                progress.update(len(rows), f"{failed} failed" if failed else "")
        finally:
            progress.close()
    wall_s, video_s = time.monotonic() - started, sum(row["seconds"] or 0.0 for row in rows)
    console.print(f"\n{len(rows)} videos, {video_s:.0f} s of video, in {wall_s:.0f} s")
    return rows


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=DRAWN).sort_by("video_id"), sink, compression="zstd")
    return sink.getvalue()
