"""jobs.faithfulness on a real local Ray, and what it refuses."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mixed_catalogue import ROOT, RUN_TIMEOUT_S, Catalogue, make_catalogue
from mlflow import MlflowClient

from catalog.errors import Refused
from jobs.faithfulness import ExaminationConfig, main
from scoring.graph import EngageActor, ExamineActor
from scoring.settings import FaithfulnessConfig
from tracking.names import FAITHFULNESS_RUNS
from training.models import EngagementModel, ModelSpec, save_checkpoint

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_catalogue(tmp_path_factory.mktemp("catalogue"))


def other_model(path: Path, seed: int = 5, input_size: int = 64) -> Path:
    torch.manual_seed(seed)
    model = EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=input_size))
    torch.nn.init.normal_(model.network.fc.weight, std=0.5)  # pyright: ignore
    save_checkpoint(model, path)
    return path


def test_a_sample_is_examined_and_written_up(catalogue: Catalogue, tmp_path: Path):
    output, other = tmp_path / "out", other_model(tmp_path / "other.pt")
    command = [
        sys.executable, "-m", "jobs.faithfulness", *catalogue.inputs(), "--output", str(output),
        "--shuffled-model", str(other), "--other-models", str(catalogue.folder / "model.pt"), str(other),
        "--levels", "3", "--random-orders", "1", "--max-seconds", "3", "--max-duration", "5",
        "--max-failed-fraction", "0.9",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=catalogue.env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    summary = json.loads((output / "faithfulness.json").read_text())
    assert summary["sample"] == pq.read_table(catalogue.folder / "videos.parquet").num_rows
    assert summary["videos"] + sum(summary["not_examined"].values()) == summary["sample"]
    assert summary["not_examined"]["not_a_video"] == 2
    assert "not examined: text: not_a_video" in done.stdout
    assert set(summary["randomised"]) == {"fc", "layer4", "layer3", "layer2", "layer1", "stem"}
    assert {gain["over"] for gain in summary["gains"]} == {"random", "centre"}
    same, different = summary["models"]
    assert same["maps"]["mean"] == pytest.approx(1)
    assert same["pe_ranking"]["mean"] == pytest.approx(1)
    assert different["maps"]["mean"] == pytest.approx(summary["shuffled"]["mean"])
    assert different["maps"]["mean"] < 0.9
    figures = pq.read_table(output / "videos.parquet").to_pandas()
    assert figures["video_id"].nunique() == summary["videos"]
    mirrored = figures[figures["figure"] == "stability/mirrored"]["value"].mean()
    assert mirrored == pytest.approx(summary["stability"]["mirrored"]["mean"])
    page = (output / "report.html").read_text()
    assert "<svg" in page
    assert str(other) in page
    client = MlflowClient(catalogue.env["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name(FAITHFULNESS_RUNS).experiment_id])  # pyright: ignore
    assert run.info.status == "FINISHED"
    assert run.data.metrics["shuffled"] == pytest.approx(summary["shuffled"]["mean"], rel=1e-4)
    assert f"**{summary['videos']} videos of " in run.data.tags["mlflow.note.content"]
    assert catalogue.processes() == {}, catalogue.stacks()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample": 0}, "--sample is 0"),
        ({"tests": FaithfulnessConfig(levels=1)}, "--levels is 1, expected at least 2"),
        ({"tests": FaithfulnessConfig(tubelet_pixels=0)}, "--tubelet-pixels is 0"),
        ({"tests": FaithfulnessConfig(random_orders=0)}, "--random-orders is 0"),
        ({"tests": FaithfulnessConfig(faithfulness_seed=-1)}, "--faithfulness-seed is -1"),
        ({"model": "nowhere.pt"}, "--model nowhere.pt: no such checkpoint file"),
        ({"shuffled_model": "nowhere.pt"}, "--shuffled-model nowhere.pt: no such checkpoint file"),
        ({"other_models": ("nowhere.pt",)}, "--other-models nowhere.pt: no such checkpoint file"),
        ({"videos": "nowhere.parquet"}, "nowhere.parquet"),
    ],
)
def test_what_makes_no_sense_is_refused_and_writes_nothing(
    catalogue: Catalogue, tmp_path: Path, change: dict, says: str
):
    config = {"videos": f"{catalogue.folder}/videos.parquet", "model": f"{catalogue.folder}/model.pt"}
    with pytest.raises(Refused, match=says):
        main(ExaminationConfig(**(config | {"output": str(tmp_path / "out")} | change)))  # pyright: ignore
    assert not (tmp_path / "out" / "faithfulness.json").exists()


def test_models_of_another_size_cannot_be_compared(catalogue: Catalogue, tmp_path: Path):
    large = other_model(tmp_path / "large.pt", input_size=80)
    with pytest.raises(Refused, match=r"takes 80 pixels and --model .* 64; maps can be compared on one grid only"):
        main(
            ExaminationConfig(
                videos=f"{catalogue.folder}/videos.parquet",
                model=f"{catalogue.folder}/model.pt",
                output=str(tmp_path / "out"),
                other_models=(str(large),),
            )
        )


@pytest.mark.parametrize(("weight", "says"), [(np.nan, "weights are no numbers"), (0.0, "the same whatever it is")])
def test_a_model_that_cannot_be_explained_is_refused(catalogue: Catalogue, tmp_path: Path, weight: float, says: str):
    broken = EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=64))
    broken.network.fc.weight.data.fill_(weight)  # pyright: ignore
    save_checkpoint(broken, tmp_path / "broken.pt")
    with pytest.raises(Refused, match=says):
        main(
            ExaminationConfig(
                videos=f"{catalogue.folder}/videos.parquet",
                model=str(tmp_path / "broken.pt"),
                output=str(tmp_path / "out"),
            )
        )


def test_an_examination_that_fails_in_any_library_costs_neither_score_nor_job(caplog: pytest.LogCaptureFixture):
    def fail(clips: Any, products: Any) -> Any:
        raise av.error.ExternalError(1, "no H.264 of 113 pixels")

    row = {"video_id": "v7", "product_id": None, "error_code": None, "clip": bytes(2 * 8 * 8 * 3), "outlines": None}
    scoring, examining = (kind.__new__(kind) for kind in (EngageActor, ExamineActor))
    scoring.mapper = SimpleNamespace(model=SimpleNamespace(spec=SimpleNamespace(input_size=8)))  # pyright: ignore
    examining.size = 8
    scoring.examine = examining.examine = fail  # pyright: ignore
    with caplog.at_level(logging.WARNING):
        assert scoring._examined(row) == {}
    assert "v7" in caplog.text
    assert "no H.264 of 113 pixels" in caplog.text
    assert "no H.264 of 113 pixels" in examining._examined(row)["problem"]
