"""What the workers of a training ask of the cluster."""

import os
import time
from collections.abc import Callable, Mapping

import ray
import ray.autoscaler.sdk
import ray.train

from catalog.errors import Refused
from jobs.command import console
from jobs.train import TrainConfig


def scaled(config: TrainConfig, nodes_now: Callable[[], list[Mapping[str, float]]]) -> ray.train.ScalingConfig:
    """What the workers ask for. A cluster that was joined may still grow: it is asked for nodes and given
    --wait-for-workers seconds. ``nodes_now``: every node's resources. Raises Refused where the workers do not fit."""
    grows = "RAY_ADDRESS" in os.environ
    deadline = time.monotonic() + (config.wait_for_workers if grows else 0)
    try:
        while True:
            nodes = nodes_now()
            wanted = _bundle(config, nodes)
            room = sum(int(min(node.get(kind, 0) // amount for kind, amount in wanted.items())) for node in nodes)
            if room >= config.workers:
                return ray.train.ScalingConfig(
                    num_workers=config.workers, use_gpu="GPU" in wanted, resources_per_worker=wanted
                )
            asked = ", ".join(f"{amount} {kind}s" for kind, amount in wanted.items())
            if time.monotonic() >= deadline:
                waited = f" (waited {config.wait_for_workers:g} s for more nodes)" if grows else ""
                raise Refused(
                    f"{config.workers} workers of {asked} each: this cluster has room for {room}{waited}; lower "
                    "--workers or --cpus-per-worker, or add nodes"
                )
            console.print(f"waiting for nodes: {config.workers} workers of {asked} each, room for {room} so far")
            ray.autoscaler.sdk.request_resources(bundles=[wanted] * config.workers)
            time.sleep(min(10.0, max(0.0, deadline - time.monotonic())))
    finally:
        if grows and ray.is_initialized():
            ray.autoscaler.sdk.request_resources(bundles=[])  # else these nodes would be kept after the job


def nodes_of_cluster() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _bundle(config: TrainConfig, nodes: list[Mapping[str, float]]) -> dict[str, float]:
    """Of a worker: a GPU where there is any, else as many of a node's cores as let all workers fit."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if any(node.get("GPU", 0) >= 1 for node in nodes):
        return {"CPU": config.cpus_per_worker or min(4, max(cores)), "GPU": 1}
    fitting = [n for n in range(1, max(cores, default=0) + 1) if sum(c // n for c in cores) >= config.workers]
    return {"CPU": config.cpus_per_worker or max(fitting, default=1)}
