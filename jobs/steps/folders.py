"""Whether a folder is one that all nodes of the cluster share."""

import os
import time
import uuid
from pathlib import Path

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from catalog import storage
from catalog.errors import Refused
from jobs.command import console

LOOK_TIMEOUT_S = 60.0
SETTLE_S = 5.0
"""Network file systems may show a new file a few seconds late."""
UPLOADS = "runtime_resources"
"""Ray unpacks the working directory of a submitted job below a folder of this name."""


def check_shared(folder_uri: str, flag: str) -> None:
    """Refused where a local folder is not the same on all nodes that have cores; leaves nothing behind.

    Says so where the folder goes away with the job. A node that does not answer in time is passed over.
    """
    if storage.scheme_of(folder_uri) != "file":
        return
    folder = storage.absolute(folder_uri)
    if UPLOADS in Path(folder).parts:
        console.print(
            f"warning: {flag} {folder} lies in this job's upload and goes with it, so a job that is cut off begins "
            "anew; give a folder that stays, such as s3://"
        )
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["NodeID"] != here}
    if not others:
        return
    existing = next(parent for parent in (Path(folder), *Path(folder).parents) if parent.exists())
    mark = existing / f".shared-check-{uuid.uuid4().hex}"
    mark.touch()
    try:
        looks = {
            _is_there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                str(mark)
            ): ip
            for node, ip in others.items()
        }
        done, late = ray.wait([*looks], num_returns=len(looks), timeout=LOOK_TIMEOUT_S)
        missing = sorted({looks[look] for look in done if _says(look) is False})
        for look in late:
            ray.cancel(look, force=True)
    finally:
        mark.unlink(missing_ok=True)
    if missing:
        raise Refused(
            f"{flag} {folder} is not the same folder on all nodes: {len(missing)} of {len(others) + 1} do not see what "
            f"is written there, such as {missing[0]}; give one that all share, such as s3://"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _is_there(path: str) -> bool:
    deadline = time.monotonic() + SETTLE_S
    while not os.path.lexists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _says(look: ray.ObjectRef) -> bool | None:
    """None where the node went away."""
    try:
        return ray.get(look)
    except ray.exceptions.RayError:
        return None
