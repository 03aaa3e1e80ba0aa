"""The training job: what it learns from, how it is judged, what MLflow holds at the end, and going on after a kill."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient

from catalog.errors import Refused
from catalog.world import WorldPaths
from jobs.command import parse
from jobs.train import TrainConfig, main
from tracking import registry
from training.evaluation import evaluate, within_creator_srcc
from training.loop import _augmented, _training_batches
from training.models import EngagementModel, ModelSpec, load_checkpoint, to_input
from training.settings import LoopConfig, SplitConfig
from training.targets import examples

ROOT = Path(__file__).parents[1]


def videos_table(shares: list[int | None], creators: list[str | None]) -> pa.Table:
    ids = [f"v{i}" for i in range(len(shares))]
    return pa.table(
        {"video_id": ids, "video_uri": [f"/{i}.mp4" for i in ids], "creator_id": creators, "shares": pa.array(shares)}
    )


def test_the_target_is_log1p_of_the_count_and_videos_without_it_are_counted() -> None:
    table = videos_table([0, 9, None, 99, 1, 2, 3, 4, 5, 6], [f"c{i % 4}" for i in range(10)])
    chosen = examples(table, "videos.csv", "shares", SplitConfig())
    labels = dict(zip(chosen.table["video_id"].to_pylist(), chosen.table["label"].to_pylist(), strict=True))
    assert chosen.without_label == 1
    assert labels["v0"] == 0
    assert labels["v1"] == pytest.approx(np.log(10))
    assert labels["v3"] == pytest.approx(np.log(100))


def test_no_creator_is_on_both_sides_of_the_split() -> None:
    table = videos_table(list(range(40)), [f"c{i % 8}" for i in range(40)])
    for seed in range(5):
        chosen = examples(table, "videos.csv", "shares", SplitConfig(seed=seed)).table
        sides: dict[str, set[bool]] = {}
        for creator, held_out in zip(chosen["creator_id"].to_pylist(), chosen["held_out"].to_pylist(), strict=True):
            sides.setdefault(creator, set()).add(held_out)
        assert all(len(side) == 1 for side in sides.values())
        assert 8 <= sum(chosen["held_out"].to_pylist()) <= 15


def test_a_creator_with_most_of_the_videos_is_not_held_out() -> None:
    table = videos_table(list(range(100)), ["star"] * 90 + [f"c{i}" for i in range(10)])
    for seed in range(10):
        held_out = examples(table, "v.csv", "shares", SplitConfig(seed=seed)).table["held_out"].to_pylist()
        assert sum(held_out) == 10
        assert not any(held_out[:90])
    two = videos_table(list(range(20)), ["a"] * 12 + ["b"] * 8)
    held_out = examples(two, "v.csv", "shares", SplitConfig()).table["held_out"].to_pylist()
    assert held_out == [False] * 12 + [True] * 8


def test_few_videos_and_unknown_creators_are_warned_of() -> None:
    chosen = examples(videos_table(list(range(9)), [None] * 9), "v.csv", "shares", SplitConfig())
    assert any("9 videos are too few" in warning for warning in chosen.warnings)
    assert any("9 videos have no creator_id" in warning for warning in chosen.warnings)


@pytest.mark.parametrize(
    ("shares", "creators", "message"),
    [
        ([1, 2, None, 4], ["a", "b", "c", "d"], "3 of 4 videos have shares; at least 8"),
        ([7] * 10, [f"c{i}" for i in range(10)], "all shares are 7"),
        (list(range(10)), ["a"] * 10, "one creator"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(shares: list, creators: list, message: str) -> None:
    with pytest.raises(Refused, match=message):
        examples(videos_table(shares, creators), "videos.csv", "shares", SplitConfig())


def test_a_perfect_model_and_a_constant_one_have_the_figures_worked_out_by_hand() -> None:
    spec = ModelSpec(target_mean=2.0, target_std=3.0)
    rows = [{"video_id": f"v{i}", "label": float(i), "prediction": float(i)} for i in range(6)]
    perfect = evaluate(rows, {}, spec, seed=0).figures
    assert perfect["eval/srcc"] == perfect["eval/plcc"] == perfect["eval/r2"] == pytest.approx(1)
    assert perfect["eval/mae"] == perfect["eval/nmse"] == pytest.approx(0)
    constant = evaluate([row | {"prediction": 2.5} for row in rows], {}, spec, seed=0)
    assert constant.figures["eval/srcc"] == 0
    assert constant.figures["eval/r2"] == pytest.approx(0)
    assert constant.figures["eval/mae"] == pytest.approx(3 * 1.5)  # mean |i - 2.5| is 1.5 standard deviations
    assert list(constant.label) == pytest.approx([2, 5, 8, 11, 14, 17])


def test_bootstrap_intervals_hold_the_figure() -> None:
    random = np.random.default_rng(0)
    label = random.normal(size=60)
    rows = [
        {"video_id": str(i), "label": float(v), "prediction": float(v + random.normal())} for i, v in enumerate(label)
    ]
    figures = evaluate(rows, {}, ModelSpec(), seed=0).figures
    assert -1 <= figures["eval/srcc_low"] < figures["eval/srcc"] < figures["eval/srcc_high"] <= 1


def test_within_creator_srcc_ignores_what_creators_differ_in() -> None:
    label = np.array([1, 2, 3, 101, 102, 103.0])
    prediction = np.array([3, 2, 1, 103, 102, 101.0])  # right about the creators, wrong within both
    assert within_creator_srcc(label, prediction, ["a"] * 3 + ["b"] * 3) == pytest.approx(-1)
    assert np.isnan(within_creator_srcc(label[:2], prediction[:2], ["a", "b"]))


def test_training_batches_use_every_row_once_and_cut_to_the_shortest_clip() -> None:
    rows = [
        {"video_id": str(i), "label": float(i), "seconds": s, "clip": np.full((s, 4, 4, 3), i, np.uint8).tobytes()}
        for i, s in enumerate([3, 9, 4, 8, 5])
    ]
    batches = list(_training_batches(rows, 2, LoopConfig(max_clip_frames=6), np.random.default_rng(0)))
    assert sorted(i for ids, _, _ in batches for i in ids) == ["0", "1", "2", "3", "4"]
    frames = {tuple(sorted(ids)): clips.shape[1] for ids, clips, _ in batches}
    assert frames == {("0", "2"): 3, ("3", "4"): 5, ("1",): 6}
    for ids, clips, labels in batches:
        assert [int(clip.float().mean()) for clip in clips] == [int(i) for i in ids] == labels.int().tolist()


def test_a_moved_clip_is_moved_as_one_and_keeps_its_pixels_in_view() -> None:
    clip = np.zeros((5, 9, 9, 3), np.uint8)
    clip[:, 4, 4] = 1 + np.arange(5)[:, None]
    seen = set()
    for seed in range(60):
        moved = _augmented(clip, 3, 2, np.random.default_rng(seed))
        _, row, column, _ = np.argwhere(moved).T
        assert moved.shape == (3, 9, 9, 3)
        assert len({*zip(row, column, strict=True)}) == 1
        assert np.all(np.diff(moved[:, row[0], column[0], 0]) == 1)
        seen.add((int(row[0]), int(column[0])))
    assert min(seen) == (2, 2)
    assert max(seen) == (6, 6)


def train(env: dict[str, str], *flags: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train", "--architecture", "r3d_18_w16", "--batch-size", "4", *flags]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tracked")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "MLFLOW_"))}
    return kept | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "STORAGE": str(folder / "storage")}


@pytest.fixture
def client(tracked: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked["MLFLOW_TRACKING_URI"])
    mlflow.set_tracking_uri(tracked["MLFLOW_TRACKING_URI"])
    return MlflowClient()


@pytest.mark.timeout(600)
def test_a_killed_training_goes_on_at_the_last_epoch_and_ends_in_the_registry(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    command = train(tracked, "--videos", str(small_world.videos), "--epochs", "4", "--storage", tracked["STORAGE"])
    log = tmp_path / "first.log"
    with log.open("w") as output:
        first = subprocess.Popen(command, cwd=ROOT, env=tracked, stdout=output, stderr=output)
        experiment = _wait_for(lambda: client.get_experiment_by_name("pe-training"), log)
        in_experiment = [experiment.experiment_id]
        _wait_for(lambda: [r for r in client.search_runs(in_experiment) if "val/srcc" in r.data.metrics], log)
        os.kill(first.pid, signal.SIGSTOP)  # so that the next epoch is kept by its worker but never logged
        _wait_for(lambda: _epochs_kept(tracked["STORAGE"]) > 1, log)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(30)
    second = subprocess.run(command, cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "too few to learn from" in second.stdout
    (run,) = client.search_runs(in_experiment)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/srcc")]
    assert sorted(steps) == [0, 1, 2, 3]
    assert run.data.params["epochs"] == "4"
    assert run.data.tags["mlflow.source.git.commit"]
    assert {"train/loss", "val/loss", "eval/srcc", "eval/srcc_low", "eval/srcc_high"} <= set(run.data.metrics)
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["videos"]
    plots = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"plots/learning_curves.png", "plots/held_out_predictions.png"}
    version = client.get_model_version_by_alias("pe-engagement", "challenger")
    assert version.tags["target"] == "shares"
    assert not list(Path(tracked["STORAGE"]).glob("train-*/checkpoint*"))


@pytest.mark.timeout(300)
def test_the_registered_model_loads_as_a_pyfunc_and_for_scoring(client: MlflowClient) -> None:
    stored = registry.load("models:/pe-engagement@challenger")

    model = load_checkpoint(stored.checkpoint).eval()

    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.to_log_engagement(model(to_input(torch.from_numpy(clips)))).numpy()
    loaded = mlflow.pyfunc.load_model("models:/pe-engagement@challenger")
    assert loaded.metadata.signature is not None
    assert loaded.input_example is not None
    np.testing.assert_allclose(loaded.predict({"clips": clips}), expected, atol=1e-4)


def test_promotion_moves_the_champion_and_refuses_what_is_not_there(client: MlflowClient) -> None:
    version = client.get_model_version_by_alias("pe-engagement", "challenger").version
    registry.promote(str(version))
    assert client.get_model_version_by_alias("pe-engagement", "champion").version == version
    with pytest.raises(Refused, match="Registered versions of pe-engagement: 1"):
        registry.promote("99")
    with pytest.raises(Refused, match="no-such-alias"):
        registry.load("models:/pe-engagement@no-such-alias")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_workers_train_together_from_given_weights(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    given = EngagementModel(ModelSpec(architecture="r3d_18_w16")).network.state_dict()
    torch.save(given, tmp_path / "kinetics.pt")
    done = subprocess.run(
        train(
            tracked, "--videos", str(small_world.videos), "--storage", str(tmp_path / "storage"), "--epochs", "1",
            "--workers", "2", "--init-weights", str(tmp_path / "kinetics.pt"), "--learning-rate", "1e-9",
        ),
        cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers, {'CPU': 1} each" in done.stdout
    held_out = int(re.findall(r"(\d+) held out", done.stdout)[0])
    assert f", {held_out} videos" in done.stdout  # judged on all, each worker's share gathered
    version = client.get_model_version_by_alias("pe-engagement", "challenger").version
    stored = load_checkpoint(registry.load(f"models:/pe-engagement/{version}").checkpoint)
    trained = stored.network.state_dict()["layer3.0.conv1.0.weight"]
    torch.testing.assert_close(trained, given["layer3.0.conv1.0.weight"], atol=1e-6, rtol=0)


@pytest.mark.timeout(300)
def test_ctrl_c_ends_with_130_and_another_run_of_that_name_is_refused(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    storage = str(tmp_path / "storage")
    common = ["--videos", str(small_world.videos), "--storage", storage, "--name", "mine"]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        job = subprocess.Popen(
            train(tracked, *common, "--epochs", "500"),
            cwd=ROOT, env=tracked, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        _wait_for(lambda: list(Path(storage).glob("mine/checkpoint*")), log)
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(60) == 130, log.read_text()
    assert "goes on where this one ended" in log.read_text()
    assert "Traceback" not in log.read_text()
    (run,) = client.search_runs(["1"], "attributes.run_name = 'mine'")
    assert run.info.status == "KILLED"
    other = subprocess.run(
        train(tracked, *common, "--epochs", "2"), cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=120
    )
    assert other.returncode == 2, other.stdout + other.stderr
    assert "--name mine was begun with other settings or videos" in other.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--seed", "-1"], "--seed is -1, expected at least 0"),
        (["--learning-rate", "-0.1"], "--learning-rate is -0.1"),
        (["--batch-size", "8", "--workers", "3"], "cannot be shared evenly by 3 workers"),
        (["--limit", "0"], "--limit is 0"),
        (["--sample-fps", "inf"], "--sample-fps is inf"),
        (["--init-weights", "nowhere.pt"], "--init-weights nowhere.pt cannot be read: no such file"),
        (["--architecture", "r3d_99"], "there is no such network"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    flags: list[str], expected: str, small_world: WorldPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(TrainConfig, ["--videos", str(small_world.videos), "--storage", str(tmp_path), *flags], "train")
    with pytest.raises(Refused, match=expected):
        main(config)


def _epochs_kept(storage: str) -> int:
    kept = 0
    for file in Path(storage).glob("train-*/checkpoint*/history.json"):
        with contextlib.suppress(OSError, ValueError):  # a file that is being written or removed
            kept = max(kept, len(json.loads(file.read_text())))
    return kept


def _wait_for(look, log: Path, seconds: float = 240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.3)
    raise AssertionError(log.read_text())
