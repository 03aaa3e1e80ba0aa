"""What jobs.plan does."""

import dataclasses
import json
import tempfile
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from catalog import storage
from catalog.errors import Refused, check_positive
from jobs.command import DONE, ProgressLog, StallWatch, console, print_config, ray_cluster, resolved
from jobs.plan import PlanConfig
from scoring.attempts import Attempts
from scoring.costs import Estimate, Machines, StageCosts, total_of
from scoring.graph import Resources, build_graph, rows_a_block
from scoring.output import CostsOnly
from scoring.plan import catalogue_of, check_settings, explainable
from scoring.rows import Provenance
from scoring.tally import Tally
from tracking import registry
from tracking.runs import git_commit


def main(config: PlanConfig) -> int:
    settings = resolved(config)
    print_config(settings)
    _check(config)
    model = registry.load(config.model)
    spec = explainable(model, config.sampling)
    videos, images = catalogue_of(config.videos, config.products)
    if config.output:
        storage.check_writable(storage.absolute(config.output).rpartition("/")[0])
    drawn = np.random.default_rng(config.sample_seed).permutation(videos.num_rows)[: config.sample]
    sample = videos.take(drawn).select(["video_id", "video_uri", "product_id"]).combine_chunks()
    console.print(
        f"model {model.uri} (version {model.version}); {sample.num_rows} of {videos.num_rows} videos are scored"
    )
    with ray_cluster() as cluster:
        if cluster.get("GPU", 0) >= 1 and config.price_gpu is None:
            raise Refused("the cluster has GPUs, but --price-gpu is not given; give the price of a GPU-hour")
        resources = Resources.of_cluster(cluster["CPU"], cluster.get("GPU", 0), gpu_share=config.gpu_share)
        provenance = Provenance(model.uri, model.version, None, "", git_commit())
        tally, rows = Tally(), []
        progress = ProgressLog("scoring the sample", sample.num_rows)
        limit_s = 600 + config.limits.video_timeout * rows_a_block(sample.num_rows, resources.prepare_actors)
        # each node keeps its own: a video that kills its process is then tried a few times a node, not for ever
        with tempfile.TemporaryDirectory(prefix="plan-") as in_hand, StallWatch(limit_s) as watch:
            graph = build_graph(
                sample, images, model.checkpoint, spec.input_size, config.sampling, config.product, config.maps,
                config.limits, CostsOnly(), provenance, resources, save_maps=False, sample=frozenset(),
                attempts=Attempts(in_hand),
            )  # fmt: skip
            try:
                for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    watch.alive()
                    rows += batch.to_pylist()  # pyright: ignore
                    tally.add(rows[tally.done :], config.sampling.sample_fps)
                    progress.update(tally.done)
            finally:
                progress.close()
    plan = planned(config, videos, rows, tally.summary(cluster["CPU"]))
    print_plan(config, plan)
    if config.output:
        target = storage.absolute(config.output)
        storage.write_bytes_atomically(target, json.dumps(plan | {"config": settings}, indent=2, default=str).encode())
        console.print(f"plan: {target}    jobs.score --dry-run --costs takes it")
    return DONE


def planned(
    config: PlanConfig, videos: pa.Table, rows: list[dict[str, Any]], measured: dict[str, Any]
) -> dict[str, Any]:
    """What the JSON holds. rows: of the sample (``scoring.output.TALLY``); measured: its ``Tally.summary``."""
    core_h = np.array([sum(row["core_s"].values()) for row in rows]) / 3600
    gpu_h = np.array([row["gpu_s"] for row in rows]) / 3600
    video_h = np.array([row["seconds"] or 0 for row in rows]) / config.sampling.sample_fps / 3600
    machines = Machines(config.price_cpu, config.price_gpu or 0.0, config.node_cpus, config.efficiency)
    costs = StageCosts.of(measured)
    if costs is None:
        failed = "; ".join(measured["error_examples"].values())
        raise Refused(f"{config.videos}: not one video of the sample could be scored, so nothing is known: {failed}")

    def total(of_each: np.ndarray) -> Estimate:
        return total_of(of_each, videos.num_rows, config.sample_seed)

    core, gpu, hours = total(core_h), total(gpu_h), config.deadline_hours
    nodes, gpus = machines.nodes(core.value, hours), machines.gpus(gpu.value, hours)
    ends = zip(dataclasses.astuple(core), dataclasses.astuple(gpu), strict=True)
    estimates = {
        "video_hours": total(video_h),
        "core_hours": core.times(1 / config.efficiency),
        "gpu_hours": gpu.times(1 / config.efficiency),
        "price": total(np.array([machines.price(*each) for each in zip(core_h, gpu_h, strict=True)])),
        "cpu_nodes": core.through(lambda spent: machines.nodes(spent, hours)),
        "gpus": gpu.through(lambda spent: machines.gpus(spent, hours)),
        "wall_hours": Estimate(
            *(None if None in end else machines.hours(*end, nodes, gpus) for end in ends)  # pyright: ignore
        ),
    }
    return {
        "videos": videos.num_rows,
        "sample": len(rows),
        "failed": dict(Counter(row["error_code"] for row in rows if row["error_code"])),
        "core_seconds_per_video_minute_by_stage": costs.core_s,
        "fetch_seconds_per_video_minute": costs.fetch_s,
        "gpu_seconds_per_video_minute": costs.gpu_s,
        "cores_per_gpu": costs.cores_per_gpu,
        "estimates": {name: dataclasses.asdict(estimate) for name, estimate in estimates.items()},
        "deadline_hours": config.deadline_hours,
        "cpu_nodes": nodes,
        "gpus": gpus,
        "machines": dataclasses.asdict(machines),
    }


def _check(config: PlanConfig) -> None:
    check_settings(config.sampling, config.product, config.maps, config.limits)
    check_positive(
        {
            "--price-cpu": config.price_cpu,
            "--deadline-hours": config.deadline_hours,
            "--node-cpus": config.node_cpus,
            "--sample": config.sample,
        }
        | ({} if config.price_gpu is None else {"--price-gpu": config.price_gpu})
    )
    for flag, share in (("--efficiency", config.efficiency), ("--gpu-share", config.gpu_share)):
        if not 0 < share <= 1:
            raise Refused(f"{flag} is {share:g}, expected a number above 0 and at most 1")


def print_plan(config: PlanConfig, plan: dict[str, Any]) -> None:
    table = Table(title=f"{plan['videos']:,} videos, by {plan['sample']} of them")
    table.add_column("of the whole catalogue")
    for column in ("estimate", "95% from", "to"):
        table.add_column(column, justify="right")
    machines = f"{plan['cpu_nodes']} CPU nodes of {config.node_cpus} cores"
    machines += f" and {plan['gpus']} GPUs" if plan["gpus"] else ""
    words = {
        "video_hours": "hours of video looked at",
        "core_hours": "core-hours",
        "gpu_hours": "GPU-hours",
        "price": "price",
        "cpu_nodes": f"CPU nodes for {config.deadline_hours:g} h",
        "gpus": f"GPUs for {config.deadline_hours:g} h",
        "wall_hours": f"hours on {machines}",
    }
    for name, told in words.items():
        found = plan["estimates"][name]
        table.add_row(told, *("not known" if end is None else _figure(end) for end in found.values()))
    console.print(table)
    costs = StageCosts.of(plan)
    assert costs is not None  # else it was refused
    stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in costs.core_s.items())
    console.print(f"core-seconds a minute of video: {stages}; at an efficiency of {config.efficiency:g}")
    console.print(costs.advice())
    for code, n in sorted(plan["failed"].items()):
        console.print(f"failed in the sample, {code}: {n}; what they took before they failed is not in the estimate")


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
