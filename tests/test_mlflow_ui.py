"""The MLflow UI in the browser on a scoring run: the view that is ready, the links, the report that opens."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from jobs.score import ScoreConfig
from jobs.steps.score_record import record
from tests.test_report import MIXED, write_scores
from tracking.names import SCORING_RUNS, TRAINING_RUNS
from tracking.registry import StoredModel
from tracking.runs import open_run
from tracking.views import VIEW

WAIT_S = 120


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real MLflow server on SQLite."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_stranger_finds_the_run_its_report_and_its_model(chromium: Browser, server: str, tmp_path: Path):
    scores = write_scores(tmp_path / "out", MIXED)
    with open_run(TRAINING_RUNS, "the training", {}) as training:
        pass
    model = StoredModel("runs:/x/model", "7", "", b"", training_run=training.run_id)
    with open_run(SCORING_RUNS, "world/videos, model 7", {"catalogue": "world/videos"}) as run:
        run.metrics({"videos/ok": 3})
        summary = {"rows": 10, "videos": {"ok": 3}, "faithfulness": None, "core_seconds_per_video_minute": 2.5}
        record(run, ScoreConfig("world/videos.parquet", str(scores)), model, str(scores), summary)
    assert run.failures == 0
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * WAIT_S)
    page.goto(f"{server}/#/experiments")
    page.get_by_role("link", name=SCORING_RUNS).first.click()
    page.wait_for_url(re.compile(r"/experiments/\d+"))
    runs = page.url.partition("/runs")[0].partition("?")[0]
    page.goto(f"{runs}/runs?viewStateShareKey={VIEW}")
    page.get_by_text("Scored catalogues", exact=True).first.wait_for()
    page.get_by_role("columnheader", name="videos/ok").first.wait_for()
    page.get_by_role("link", name="world/videos, model 7").first.click()
    page.get_by_text("10 videos of world/videos").first.wait_for()
    page.get_by_text("Show more").first.click()
    with context.expect_page() as training_page:  # the UI opens links of a description beside it
        page.get_by_role("link", name="training run").first.click()
    training_page.value.get_by_text("the training", exact=True).first.wait_for()
    page.goto(f"{runs}/runs/{run.run_id}/artifacts/report.html")
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="PE-scores of 10 videos").wait_for()
    report.locator("#search").fill("talk")
    report.locator("#videos tbody tr").nth(1).wait_for(state="detached")
    assert report.locator("#videos tbody tr").count() == 1
    context.close()
