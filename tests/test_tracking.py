"""Tracking that fails never ends a job; and what a stranger finds in it."""

import base64
import json
import zlib
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from tracking.names import FAITHFULNESS_RUNS, LIFT_RUNS, SCORING_RUNS, TRAINING_RUNS
from tracking.runs import open_run, table_name
from tracking.views import VIEW_TAG


def test_a_server_that_does_not_answer_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = False
    with open_run(SCORING_RUNS, "a run", {}) as run:
        run.metrics({"videos/ok": 1})
        run.params({"a": 1})
        done = True
    assert done
    assert run.run_id is None
    assert "the job goes on without it" in caplog.text


def test_a_run_is_running_until_its_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with open_run(TRAINING_RUNS, "a run", {}) as run:
        run.table_input("videos", "v.parquet", pd.DataFrame({"video_id": ["a"]}), "training")
        running = MlflowClient().get_run(str(run.run_id))
        assert running.info.status == "RUNNING"
        (dataset,) = running.inputs.dataset_inputs
        assert (dataset.dataset.name, dataset.tags[0].value) == ("videos", "training")
    assert MlflowClient().get_run(str(run.run_id)).info.status == "FINISHED"


def test_a_run_that_was_deleted_meanwhile_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with open_run(TRAINING_RUNS, "a run", {}) as first:
        pass
    with open_run(TRAINING_RUNS, "a run", {}, first.run_id) as same:
        assert same.run_id == first.run_id
    MlflowClient().delete_run(str(first.run_id))
    with open_run(TRAINING_RUNS, "a run", {}, first.run_id) as another:
        assert another.run_id not in (None, first.run_id)


def test_a_run_keeps_what_it_is_told_and_says_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RuntimeError, match="broke"), open_run(SCORING_RUNS, "a run", {"output": "x"}) as run:
        run.params({"fps": 1.0})
        run.metrics({"videos/ok": 3}, step=2)
        raise RuntimeError("broke")
    assert run.run_id is not None
    kept = MlflowClient(uri).get_run(run.run_id)
    assert kept.info.status == "FAILED"
    assert kept.data.params == {"fps": "1.0"}
    assert kept.data.metrics == {"videos/ok": 3}
    assert kept.data.tags["output"] == "x"


def test_a_stranger_finds_what_an_experiment_is_and_the_columns_to_choose_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    first = {
        TRAINING_RUNS: "metrics.`eval/srcc`",
        SCORING_RUNS: "metrics.`videos/ok`",
        LIFT_RUNS: "metrics.`supported`",
        FAITHFULNESS_RUNS: "metrics.`deletion/blur/gain_over_random`",
    }
    for experiment, column in first.items():
        with open_run(experiment, "a run", {}):
            pass
        made = MlflowClient().get_experiment_by_name(experiment)
        assert made is not None
        assert made.tags["mlflow.note.content"]
        view = json.loads(made.tags[VIEW_TAG])
        kind, _, packed = view["state"].partition(";")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        assert kind == "deflate" and view["name"]
        assert state["selectedColumns"][0] == column
        assert set(state["columnWidths"]) == set(state["columnOrder"]) > set(state["selectedColumns"])
    with open_run(TRAINING_RUNS, "a run", {}) as run:  # figures have the digits that one can read, counts have all
        run.metrics({"eval/srcc": 0.72727272, "videos": 123_456_789, "cost": 0.0000123456})
        run.file(b"\x89PNG", "plots/a.png")
    kept = MlflowClient().get_run(str(run.run_id)).data
    assert kept.metrics == {"eval/srcc": 0.72727, "videos": 123_456_789, "cost": 1.2346e-05}
    assert kept.tags["git_commit"] == kept.tags["mlflow.source.git.commit"]
    plot = MlflowClient().download_artifacts(str(run.run_id), "plots/a.png", str(tmp_path))
    assert Path(plot).read_bytes() == b"\x89PNG"


@pytest.mark.parametrize(
    ("uri", "name"),
    [("s3://bucket/2025/november.parquet", "2025/november"), ("/data/world/videos.csv.gz", "world/videos")],
)
def test_a_table_is_known_by_its_folder_and_name(uri: str, name: str) -> None:
    assert table_name(uri) == name
