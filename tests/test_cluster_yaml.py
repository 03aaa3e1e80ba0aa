"""cluster.yaml and runtime_env.yaml against the checks of Ray and of the AWS client themselves."""

import copy
import re
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def runtime_env() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "runtime_env.yaml").read_text())


def checked_as_by_ray_up(cluster: dict[str, Any]) -> dict[str, Any]:
    """The configuration with Ray's defaults filled in, after the schema check that ``ray up`` makes."""
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    assert set(checked_as_by_ray_up(cluster)["available_node_types"]) == {"head", "gpu", "cpu"}


def test_ray_refuses_an_unknown_key(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        checked_as_by_ray_up(cluster)


def test_ray_refuses_bounds_that_do_not_fit(cluster: dict[str, Any]) -> None:
    cluster["max_workers"] = 0
    with pytest.raises(ValueError, match="max_workers"):
        checked_as_by_ray_up(cluster)


def test_ec2_accepts_every_machine(cluster: dict[str, Any]) -> None:
    run_instances = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    assert run_instances.input_shape is not None
    for name, node_type in cluster["available_node_types"].items():
        request = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, run_instances.input_shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_head_offers_no_cpu_and_is_not_multiplied(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_workers_are_one_gpu_type_and_one_cpu_type_told_apart_by_label(cluster: dict[str, Any]) -> None:
    gpus = {n["labels"]["pool"]: n["resources"].get("GPU", 0) for n in workers(cluster).values()}
    assert gpus == {"gpu": 1, "cpu": 0}
    for node_type in cluster["available_node_types"].values():
        validate_node_label_syntax(node_type["labels"])


def test_gpu_workers_are_there_before_a_job_asks_and_cpu_workers_come_and_go(cluster: dict[str, Any]) -> None:
    gpu, cpu = workers(cluster)["gpu"], workers(cluster)["cpu"]
    assert gpu["min_workers"] == gpu["max_workers"] >= 1
    assert 0 <= cpu["min_workers"] < cpu["max_workers"]
    assert cluster["max_workers"] == gpu["max_workers"] + cpu["max_workers"]


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_token_authentication_and_a_spill_folder(cluster: dict[str, Any], commands: str) -> None:
    (start,) = [c for c in checked_as_by_ray_up(cluster)[commands] if "ray start" in c]
    assert "RAY_AUTH_MODE=token ray start" in start
    spill = re.search(r"--object-spilling-directory=(\S+)", start)
    assert spill and f"mkdir -p {spill[1]};" in start


def test_the_dashboard_is_not_open_to_the_network(cluster: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_the_token_comes_from_the_users_home_and_no_secret_is_in_the_file(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    text = (ROOT / "cluster.yaml").read_text()
    secrets = {
        "AWS access key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
        "AWS account id": r"\b\d{12}\b",
        "hexadecimal token": r"\b[0-9a-f]{32,}\b",
        "private key": r"PRIVATE KEY|ssh_private_key",
        "token given by value": r"RAY_AUTH_TOKEN\b",
        "key given by value": r"(?i)(secret|password|access_key)\w*\s*[:=]",
    }
    assert [name for name, pattern in secrets.items() if re.search(pattern, text)] == []


def test_every_node_installs_the_pinned_packages_that_are_sent_to_it(cluster: dict[str, Any]) -> None:
    (remote,) = [remote for remote, local in cluster["file_mounts"].items() if local == "constraints.txt"]
    assert (ROOT / "constraints.txt").is_file()
    prepared = checked_as_by_ray_up(cluster)
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert any(f"--requirement {remote}" in c for c in prepared[commands])


def test_nodes_run_the_pinned_ray(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    images = [cluster["docker"]["image"], workers(cluster)["gpu"]["docker"]["worker_image"]]
    assert [image.split(":")[1].split("-")[:2] for image in images] == [[pinned[1], "py311"]] * 2


def test_ray_accepts_the_runtime_env(runtime_env: dict[str, Any]) -> None:
    parsed = RuntimeEnv(**runtime_env)
    assert parsed.env_vars()["MLFLOW_TRACKING_URI"].startswith("http://127.0.0.1:")


def test_ray_refuses_a_runtime_env_value_that_is_not_text(runtime_env: dict[str, Any]) -> None:
    runtime_env["env_vars"]["PYTHONUNBUFFERED"] = 1
    with pytest.raises(TypeError, match="env_vars"):
        RuntimeEnv(**runtime_env)
