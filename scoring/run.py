"""One scoring job from its plan to run.json: resume, run the graph, tally, verify."""

import collections
import dataclasses
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from catalog.errors import Broken
from catalog.sampling import SamplingConfig
from catalog.schemas import Status
from scoring.attempts import Attempts
from scoring.evidence import summed_up
from scoring.graph import NOT_WRITTEN, Resources, build_graph
from scoring.plan import Plan
from scoring.rows import Provenance
from scoring.settings import MapConfig, ProductConfig, VideoLimits
from scoring.tally import Tally, check_quarantine
from tracking.registry import StoredModel
from tracking.runs import git_commit


class LostRowsError(Exception):
    """The output's ids are not the input's: never expected, never hidden."""


def begin(plan: Plan) -> None:
    """Make the output fit to go on in: without rows that are there twice or tried again, with those carried over."""
    plan.output.begin(plan.config, plan.config_hash, plan.rows, plan.retried)
    if plan.since is not None and plan.carried is not None:
        plan.output.carry(plan.since, plan.carried)


def run_scoring(
    plan: Plan,
    model: StoredModel,
    provenance: Provenance,
    sampling: SamplingConfig,
    product: ProductConfig,
    maps: MapConfig,
    limits: VideoLimits,
    save_maps: bool,
    resources: Resources,
    on_progress: Callable[[Tally], None],
    product_cache: str | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Score what the plan leaves to do, after ``begin``. ``tally``: of what this job has done before."""
    tally = Tally() if tally is None else tally
    before = tally.done
    attempts = Attempts(plan.output.uri).resumed(plan.videos["video_id"].to_pylist(), plan.retried)
    if plan.videos.num_rows:
        graph = build_graph(
            plan.videos,
            plan.images,
            model.checkpoint,
            plan.input_size,
            sampling,
            product,
            maps,
            limits,
            plan.output,
            provenance,
            resources,
            save_maps,
            plan.sample,
            product_cache,
            attempts,
        )
        for rows in _tally_rows(graph, plan.output.uri):
            tally.add(rows, sampling.sample_fps)
            on_progress(tally)
            check_quarantine(tally, plan.videos.num_rows)
        if tally.done - before < plan.videos.num_rows and attempts.asked_to_stop():
            raise KeyboardInterrupt
    return tally


def verify(plan: Plan) -> pa.Table:
    """The output's rows (see ``OutputFolder.rows``), every input id once and nothing twice; else LostRowsError.

    Rows that workers of a killed job still wrote after this one had begun are cut to one.
    """
    rows = plan.output.rows()
    if doubled_rows(rows):
        plan.output.repair(rows)
        rows = plan.output.rows()
    lost = plan.all_ids.filter(pc.invert(pc.is_in(plan.all_ids, rows["video_id"].combine_chunks())))
    doubled = doubled_rows(rows)
    if len(lost) or doubled:
        raise LostRowsError(
            f"{plan.output.uri}: {len(lost)} videos have no row (such as {lost[:3].to_pylist()}), {doubled} rows are "
            "there twice; run the same command again, it repairs the folder and scores what is missing"
        )
    return rows


def doubled_rows(rows: pa.Table) -> int:
    return rows.num_rows - pc.count_distinct(rows["video_id"]).as_py()


def mend(plan: Plan, summary: dict[str, Any]) -> dict[str, Any]:
    """Of a finished folder that a worker of a job long gone wrote to since: cut its rows to one a video, and count
    them anew in run.json. Returns what it says."""
    summary = summary | _counts(verify(plan))
    plan.output.finish(summary)
    return summary


def _counts(rows: pa.Table) -> dict[str, Any]:
    statuses = collections.Counter(rows["status"].to_pylist())
    return {
        "rows": rows.num_rows,
        "videos": {status.value: statuses[status] for status in Status},
        "errors": dict(collections.Counter(rows["error_code"].drop_null().to_pylist())),
    }


def finish(
    plan: Plan, rows: pa.Table, tally: Tally, provenance: Provenance, config: dict[str, Any], cores: float
) -> dict[str, Any]:
    """Write run.json, the last file of a run; returns what it says. Rows by status and error code are those of
    the whole folder, costs are those of this run."""
    summary = {
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed_from": plan.finished,
        "carried_over": 0 if plan.carried is None else plan.carried.num_rows,
        **tally.summary(cores),
        **_counts(rows),
        "faithfulness": _evidence(plan, tally),
        "provenance": dataclasses.asdict(provenance),
        "code_version": git_commit(),
        "config": config,
    }
    Attempts(plan.output.uri).forget()
    plan.output.finish(summary)
    return summary


def _evidence(plan: Plan, tally: Tally) -> dict[str, Any] | None:
    """Of the larger sample, this run's or an earlier one's."""
    if plan.evidence is not None and plan.evidence["videos"] > len(tally.figures):
        return plan.evidence
    if not tally.figures:
        return None
    return summed_up(tally.figures) | {"core_seconds": tally.examination_core_seconds}


def _tally_rows(graph: ray.data.Dataset, output_uri: str) -> Iterator[list[dict[str, Any]]]:
    batches: Iterable[Any] = graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        for trouble in batch[NOT_WRITTEN].drop_null().to_pylist():
            raise Broken(f"{output_uri} cannot be written: {trouble}; the same command goes on once that is mended")
        yield batch.to_pylist()
