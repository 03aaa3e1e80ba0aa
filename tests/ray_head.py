"""A real Ray head with token authentication, to which a test submits jobs as a user does."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class RayHead:
    """A running head and how to reach it."""

    url: str
    """Address of the dashboard and the job API."""
    env: dict[str, str]
    """Environment in which a client is let in."""
    address: str
    """Of its GCS, as RAY_ADDRESS takes it."""

    def submit(
        self,
        *entrypoint: str,
        runtime_env: Path,
        timeout_s: float,
        env: dict[str, str] | None = None,
        submission_id: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` from the project's root, watched to the job's end; returncode 0: SUCCEEDED."""
        command = [str(RAY), "job", "submit", "--address", self.url, "--working-dir", "."]
        command += [] if submission_id is None else ["--submission-id", submission_id]
        return subprocess.run(
            [*command, "--runtime-env", str(runtime_env), "--", *entrypoint],
            cwd=ROOT,
            env=self.env if env is None else env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )


@contextmanager
def ray_head(num_cpus: int = 2, autoscaling: dict[str, Any] | None = None) -> Iterator[RayHead]:
    """Start a head on free ports of the loopback; at the end stop the processes that it started, no others.
    autoscaling: a cluster config without its ``provider``; Ray's fake one then starts its nodes on this machine.

    Raises RuntimeError with the head's own words where its job API does not answer within two minutes.
    """
    # Not pytest's own folder: the paths of Ray's sockets may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        token, log = Path(folder, "auth_token"), Path(folder, "start.log")
        token.write_text(secrets.token_hex(32))
        dashboard, agent, client, port = _free_ports(4)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "PYTHON"))} | {
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",  # an entrypoint's 'python' is looked up on the head
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [str(RAY), "start", "--head", "--block", f"--port={port}", f"--num-cpus={num_cpus}"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/ray"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", "--object-store-memory=200000000"]
        if autoscaling is not None:
            provider = {
                "type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}",
                "disable_node_updaters": True,  # its nodes have no SSH
                "use_node_id_as_ip": True,  # and one address, by which the autoscaler would tell idle ones
            }  # fmt: skip
            Path(folder, "cluster.json").write_text(json.dumps(autoscaling | {"provider": provider}))
            command.append(f"--autoscaling-config={folder}/cluster.json")
            env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        url = f"http://127.0.0.1:{dashboard}"
        with log.open("w") as out:
            head = subprocess.Popen(command, env=env, cwd=folder, stdout=out, stderr=out, start_new_session=True)
        try:
            try:
                _wait_until_it_answers(f"{url}/api/version", token.read_text())
            except requests.RequestException as error:
                raise RuntimeError(f"the Ray head did not answer: {log.read_text()[-2000:]}") from error
            yield RayHead(url, env, f"127.0.0.1:{port}")
        finally:
            head.terminate()  # with --block Ray then ends its own processes, and no others
            with suppress(subprocess.TimeoutExpired):
                head.wait(timeout=45)
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait(timeout=10)


def _wait_until_it_answers(url: str, token: str) -> None:
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(120, backoff_factor=0.5, backoff_max=1)))
        session.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).raise_for_status()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]
