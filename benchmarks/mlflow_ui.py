"""Pictures of MLflow's UI on a demo's runs, for benchmarks.screenshots."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Browser, Page

from catalog.errors import Refused
from tracking.names import CHAMPION, MODEL_NAME, SCORING_RUNS, TRAINING_RUNS
from tracking.runs import connect
from tracking.views import VIEW

VIEWPORT = (1280, 800)
START_S = 120.0
SETTLE_MS = 4000
AS_LEFT_BY_A_READER = """
localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
"""who has chosen "Model training" at the left and closed the assistant"""


@contextlib.contextmanager
def served(uri: str) -> Iterator[str]:
    """The address of a server of this tracking URI: its own, or one for as long as it takes."""
    if uri.startswith("http"):
        yield uri
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", uri], env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _await(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _await(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def picture_mlflow(browser: Browser, output: Path) -> None:
    """Writes mlflow-*.png. Raises Refused where there are no two training runs and no scoring run to show."""
    uri = connect()
    client = MlflowClient()
    runs = {name: _finished(client, name) for name in (TRAINING_RUNS, SCORING_RUNS)}
    if len(runs[TRAINING_RUNS]) < 2 or not runs[SCORING_RUNS]:
        raise Refused("the MLflow UI is shown on two training runs and a scoring run: make demo, then jobs.train anew")
    first, second = runs[TRAINING_RUNS][-2:]
    training, scoring = (client.get_experiment_by_name(name) for name in (TRAINING_RUNS, SCORING_RUNS))
    assert training is not None and scoring is not None
    champion = client.get_model_version_by_alias(MODEL_NAME, CHAMPION).version
    run, both = runs[SCORING_RUNS][-1], f'["{first}","{second}"]'
    runs_of = f"experiments/{training.experiment_id}/runs"
    pages = {
        "table": f"{runs_of}?viewStateShareKey={VIEW}",
        "curves": f"{runs_of}?viewStateShareKey={VIEW}&compareRunsMode=CHART",
        "compare": f'compare-runs?runs={both}&experiments=["{training.experiment_id}"]',
        "card": f"models/{MODEL_NAME}/versions/{champion}",
        "scoring": f"experiments/{scoring.experiment_id}/runs/{run}",
        "progress": f"experiments/{scoring.experiment_id}/runs/{run}/model-metrics",
        "report": f"experiments/{scoring.experiment_id}/runs/{run}/artifacts/report.html",
    }
    with served(uri) as address:
        context = browser.new_context(viewport={"width": VIEWPORT[0], "height": VIEWPORT[1]})
        context.add_init_script(AS_LEFT_BY_A_READER)
        page = context.new_page()
        for name, route in pages.items():
            page.goto("about:blank")
            page.goto(f"{address}/#/{route}")
            page.wait_for_timeout(SETTLE_MS)
            _as_a_reader_would(page, name)
            page.screenshot(path=output / f"mlflow-{name}.png")
        context.close()


def _as_a_reader_would(page: Page, name: str) -> None:
    """Search, scroll and unfold."""
    if name in ("curves", "progress"):
        search = page.get_by_placeholder("Search metric charts")
        search.fill("loss|val/srcc" if name == "curves" else "progress/videos")
    if name == "compare":
        page.get_by_text("Visualizations").click()
    if name == "scoring":
        page.get_by_text("Show more").first.click()
    page.wait_for_timeout(SETTLE_MS)


def _finished(client: MlflowClient, experiment: str) -> list[str]:
    """Ids of its finished runs, oldest first."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs = client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", order_by=["start_time ASC"])
    return [run.info.run_id for run in runs]
