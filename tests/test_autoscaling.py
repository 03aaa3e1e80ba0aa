"""cluster.yaml's node types on Ray's fake provider: nodes come with the work and go when they are idle."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from mixed_catalogue import ROOT, make_catalogue
from ray_head import RayHead, ray_head

JOB_TIMEOUT_S = 500
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def small_cluster() -> dict[str, Any]:
    """cluster.yaml with two cores a node, two CPU nodes at most, and nodes that go after six idle seconds."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = config["available_node_types"]
    for kind in ("gpu", "cpu"):
        types[kind]["resources"]["CPU"] = 2
    types["cpu"]["max_workers"] = 2
    named = {"ray.head.default": types.pop("head"), **types}  # as the fake provider calls its head
    kept = {
        name: {key: kind[key] for key in ("resources", "labels", "min_workers", "max_workers")}
        for name, kind in named.items()
    }
    for kind in kept.values():
        kind["node_config"] = {}
    return {
        "cluster_name": config["cluster_name"], "max_workers": config["max_workers"], "idle_timeout_minutes": 0.1,
        "available_node_types": kept, "head_node_type": "ray.head.default", "auth": {}, "docker": {},
        "upscaling_speed": 1.0, "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [],
    }  # fmt: skip


def node_types(head: RayHead) -> list[str]:
    """Of the nodes that are alive, sorted."""
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    answer = requests.get(
        f"{head.url}/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {token}"}, timeout=30
    ).json()
    alive = [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]
    kinds = [node["resources_total"] for node in alive]
    return sorted("gpu" if kind.get("GPU") else "cpu" if kind.get("CPU") else "head" for kind in kinds)


def wait_for(head: RayHead, wanted: list[str], seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while (found := node_types(head)) != wanted and time.monotonic() < deadline:
        time.sleep(1)
    return found


def test_cpu_nodes_come_with_the_work_and_go_when_it_is_done(tmp_path: Path):
    catalogue = make_catalogue(tmp_path)
    # PREPARE must be what holds the work up, and for longer than Ray Data takes to see it
    rows = pq.read_table(tmp_path / "many.parquet").to_pylist()
    rows = [row | {"video_id": f"{row['video_id']}, {n}"} for row in rows for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "more.parquet")
    with ray_head(num_cpus=0, autoscaling=small_cluster()) as head:
        assert wait_for(head, ["gpu", "head"], 120) == ["gpu", "head"]  # min = max: there before any work
        flags = [*catalogue.flags("scores", "more"), "--sample-fps", "4", "--max-prepare-actors", "5"]
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.score", *flags],
            cwd=ROOT, env=catalogue.env | head.env | {"RAY_ADDRESS": head.address}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        seen: set[tuple[str, ...]] = set()
        try:
            deadline = time.monotonic() + JOB_TIMEOUT_S
            while job.poll() is None and time.monotonic() < deadline:
                seen.add(tuple(node_types(head)))
                time.sleep(0.5)
            said, _ = job.communicate(timeout=30)
        finally:
            job.kill()
        assert job.returncode == 0, said
        assert ("cpu", "cpu", "gpu", "head") in seen
        assert pq.read_table(catalogue.folder / "scores" / "scores").num_rows == len(rows)
        assert 2 < json.loads((catalogue.folder / "scores" / "run.json").read_text())["cores"] < 6
        assert wait_for(head, ["gpu", "head"], 120) == ["gpu", "head"]
