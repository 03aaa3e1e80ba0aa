"""Local folders on clusters of several nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TWO_NODES = """
import os, sys
import ray
from ray.cluster_utils import Cluster
from catalog.errors import Refused
from jobs.steps.folders import check_shared

shared = sys.argv[1]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
try:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes(timeout=60)
    ray.init(address=cluster.address, log_to_driver=False)
    check_shared(shared + "/later/on", "--storage")
    check_shared("s3://bucket/folder", "--storage")
    print("shared passes")
    os.chdir(shared)  # each process has its own, as each node has its own disk
    try:
        check_shared("/proc/self/cwd/own", "--storage")
    except Refused as refused:
        print(refused)
    check_shared(shared + "/runtime_resources/working_dir_files/job/checkpoints", "--storage")
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.timeout(180)
def test_a_local_folder_must_be_the_same_on_all_nodes(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": os.getcwd()}  # noqa: PTH109
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path)], env=env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "shared passes" in said
    assert "--storage /proc/self/cwd/own is not the same folder on all nodes: 1 of 2 do not see" in said
    assert "lies in this job's upload and goes with it" in said
    assert not [*tmp_path.iterdir()]
