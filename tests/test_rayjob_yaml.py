"""rayjob.yaml against the names and types of KubeRay's RayJob v1 (rayjob_types.go, raycluster_types.go)."""

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.runtime_env import RuntimeEnv

from jobs.command import parse
from jobs.score import ScoreConfig
from jobs.steps.score import STOP_S

ROOT = Path(__file__).parents[1]

TEXT, COUNT, SWITCH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[numkMGTPE])?$"}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


CONTAINER = closed(
    "name image resources",
    name=TEXT,
    image=TEXT,
    ports=several(closed("containerPort name", containerPort=COUNT, name={**TEXT, "maxLength": 15})),
    resources=closed(
        "requests limits",
        requests={"type": "object", "additionalProperties": QUANTITY},
        limits={"type": "object", "additionalProperties": QUANTITY},
    ),
    volumeMounts=several(closed("name mountPath", name=TEXT, mountPath=TEXT)),
)
POD = closed(
    "containers",
    serviceAccountName=TEXT,
    terminationGracePeriodSeconds=COUNT,
    containers=several(CONTAINER),
    volumes=several(closed("name emptyDir", name=TEXT, emptyDir=closed("", medium=TEXT, sizeLimit=QUANTITY))),
)
TEMPLATE = closed("spec", metadata={"type": "object"}, spec=POD)
WORKERS = closed(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT, rayStartParams=TEXTS,
    template=TEMPLATE, scaleStrategy={"type": "object"},
)  # fmt: skip
CLUSTER = closed(
    "headGroupSpec",
    headGroupSpec=closed(
        "rayStartParams template",
        serviceType=TEXT, headService={"type": "object"}, enableIngress=SWITCH, rayStartParams=TEXTS, template=TEMPLATE,
    ),
    workerGroupSpecs=several(WORKERS),
    rayVersion=TEXT,
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=closed(
        "", idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
)  # fmt: skip
RAYJOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object", "required": ["name"]},
    spec=closed(
        "entrypoint rayClusterSpec",
        activeDeadlineSeconds={**COUNT, "minimum": 1}, backoffLimit=COUNT, rayClusterSpec=CLUSTER,
        submitterPodTemplate=TEMPLATE, metadata=TEXTS, clusterSelector=TEXTS, submitterConfig={"type": "object"},
        managedBy=TEXT, deletionStrategy={"type": "object"}, entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]}, entrypointResources=TEXT,
        entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"}, ttlSecondsAfterFinished=COUNT,
        shutdownAfterJobFinishes=SWITCH, suspend=SWITCH, schedule=TEXT,
    ),
)  # fmt: skip


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "rayjob.yaml").read_text())


def test_the_manifest_has_the_names_and_types_of_a_rayjob(job: dict[str, Any]):
    jsonschema.validate(job, RAYJOB)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, RAYJOB)


def test_its_command_and_environment_are_ones_that_the_job_takes(job: dict[str, Any]):
    python, _, module, *flags = shlex.split(job["spec"]["entrypoint"])
    assert (python, module) == ("python", "jobs.score")
    assert parse(ScoreConfig, flags, "").max_prepare_actors == 128
    environment = RuntimeEnv(**yaml.safe_load(job["spec"]["runtimeEnvYAML"])).env_vars()
    assert "MLFLOW_TRACKING_URI" in environment
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > STOP_S


def test_the_head_runs_no_work_gpu_nodes_are_there_before_the_job_and_all_have_one_image(job: dict[str, Any]):
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and cluster["rayVersion"] == pinned[1]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups["gpu"]["minReplicas"] == groups["gpu"]["replicas"] == groups["gpu"]["maxReplicas"] >= 1
    assert groups["cpu"]["minReplicas"] == 0 < groups["cpu"]["maxReplicas"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in groups.values())]
    assert len({container["image"] for pod in templates for container in pod["spec"]["containers"]}) == 1
    cores = int(groups["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert cores * groups["cpu"]["maxReplicas"] == 128  # --max-prepare-actors
