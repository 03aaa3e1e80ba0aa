"""Jobs sent with ``ray job submit`` to a head that asks for a token, as docs/walkthrough.md shows."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet
import pytest
import yaml
from mlflow import MlflowClient
from ray_head import RAY, ROOT, RayHead, ray_head

from catalog.world import WorldConfig, make_world

SHOW_UPLOAD = """
import json, os, pathlib, ray
ray.init()
files = {p.as_posix(): p.stat().st_size for p in pathlib.Path(".").rglob("*") if p.is_file()}
env = {k: os.environ.get(k) for k in ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "PYTHONUNBUFFERED")}
seen = {"cpus": ray.cluster_resources()["CPU"], "files": files, "env": env}
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps(seen))
"""

SLOW_TO_END = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    time.sleep(6)
    (folder / "ended").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
(folder / "began").touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as head:
        yield head


def runtime_env(folder: Path, **env_vars: str) -> Path:
    """A copy of runtime_env.yaml in ``folder`` with other ``env_vars``."""
    spec = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    spec["env_vars"] |= env_vars
    path = folder / "runtime_env.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.timeout(180)
def test_a_job_gets_the_code_and_the_settings_but_nothing_that_git_ignores(head: RayHead, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    env = runtime_env(tmp_path, SEEN=str(seen))
    done = head.submit("python", "-c", SHOW_UPLOAD, runtime_env=env, timeout_s=120)
    assert done.returncode == 0, done.stdout
    assert "succeeded" in done.stdout
    driver = json.loads(seen.read_text())
    assert driver["cpus"] == 2
    assert driver["env"] == {
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "PYTHONUNBUFFERED": "1",
    }
    assert {"jobs/__init__.py", "catalog/errors.py", "pyproject.toml"} <= set(driver["files"])
    folders = {folder for file in driver["files"] for folder in file.split("/")[:-1]}
    assert folders.isdisjoint({".git", ".venv", "demo", "mlruns", "tests", "__pycache__", ".ruff_cache"})
    assert sum(driver["files"].values()) < 5e6


@pytest.mark.timeout(180)
def test_a_stopped_job_has_the_time_to_end_that_ray_s_default_would_not_give(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SLOW_TO_END)
    stop = f"until [ -e {tmp_path}/began ]; do sleep 0.2; done; {RAY} job stop --address {head.url} slow-to-end"
    stopper = subprocess.Popen(["timeout", "120", "sh", "-c", stop], env=head.env)
    try:
        python = ["python", str(tmp_path / "job.py"), str(tmp_path)]
        head.submit(*python, runtime_env=runtime_env(tmp_path), timeout_s=120, submission_id="slow-to-end")
        assert (tmp_path / "ended").exists()
    finally:
        stopper.wait(130)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"RAY_AUTH_TOKEN": "not-the-token"},
            "Authentication failed: Forbidden: Invalid authentication token",
        ),
        (
            {"RAY_AUTH_MODE": "disabled"},
            "Authentication required: Unauthorized: Missing authentication token",
        ),
        (
            {"RAY_AUTH_TOKEN_PATH": "", "HOME": "/nonexistent"},
            "Token authentication is enabled but Ray couldn't find an authentication token",
        ),
    ],
    ids=["wrong token", "token not sent", "no token"],
)
def test_a_client_without_the_token_is_turned_away_with_the_message_of_the_walkthrough(
    head: RayHead, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    marker = tmp_path / "ran"
    stranger = {name: value for name, value in (head.env | settings).items() if value}
    refused = head.submit("touch", str(marker), runtime_env=runtime_env(tmp_path), timeout_s=60, env=stranger)
    assert refused.returncode == 1
    assert f"AuthenticationError: {message}" in refused.stdout
    assert message in (ROOT / "docs" / "walkthrough.md").read_text()
    assert not marker.exists()


@pytest.mark.timeout(400)
def test_a_model_is_trained_and_a_catalogue_scored_by_submitted_jobs(head: RayHead, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", videos=12, config=WorldConfig(seconds=(3.0, 5.0)))
    tracking_uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow = MlflowClient(tracking_uri)
    # A job's working directory goes with the cluster: artifacts need a place that outlives it.
    for experiment in ("pe-training", "pe-scoring"):
        mlflow.create_experiment(experiment, artifact_location=(tmp_path / "artifacts").as_uri())
    env = runtime_env(tmp_path, MLFLOW_TRACKING_URI=tracking_uri)

    train = ["python", "-m", "jobs.train", "--videos", str(world.videos), "--epochs", "1", "--no-shuffled-control"]
    train += ["--architecture", "r3d_18_w16", "--storage", str(tmp_path / "checkpoints")]
    trained = head.submit(*train, runtime_env=env, timeout_s=200)
    assert trained.returncode == 0, trained.stdout
    model = mlflow.get_model_version_by_alias("pe-engagement", "challenger")
    assert str(model.version) == "1"

    output = tmp_path / "scores"
    score = ["python", "-m", "jobs.score", "--videos", str(world.videos), "--products", str(world.products)]
    score += ["--model", "models:/pe-engagement@challenger", "--output", str(output)]
    scored = head.submit(*score, runtime_env=env, timeout_s=150)
    assert scored.returncode == 0, scored.stdout
    rows = pyarrow.dataset.dataset(output / "scores").to_table(columns=["video_id", "status"])
    asked = pyarrow.parquet.read_table(world.videos, columns=["video_id"])
    assert sorted(rows["video_id"].to_pylist()) == sorted(asked["video_id"].to_pylist())
    assert "failed" not in rows["status"].to_pylist()
    assert json.loads((output / "run.json").read_text())
