"""Tracking that fails never ends a job."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.runs import SCORING, open_run


def test_a_server_that_does_not_answer_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = False
    with open_run(SCORING, "a run", {}) as run:
        run.metrics({"videos/ok": 1})
        run.params({"a": 1})
        done = True
    assert done
    assert run.run_id is None
    assert "the job goes on without it" in caplog.text


def test_a_run_keeps_what_it_is_told_and_says_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RuntimeError, match="broke"), open_run(SCORING, "a run", {"output": "x"}) as run:
        run.params({"fps": 1.0})
        run.metrics({"videos/ok": 3}, step=2)
        raise RuntimeError("broke")
    assert run.run_id is not None
    kept = MlflowClient(uri).get_run(run.run_id)
    assert kept.info.status == "FAILED"
    assert kept.data.params == {"fps": "1.0"}
    assert kept.data.metrics == {"videos/ok": 3}
    assert kept.data.tags["output"] == "x"
