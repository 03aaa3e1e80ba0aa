"""The training job: what it learns from, how it is judged, what MLflow holds at the end, and going on after a kill."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from mlflow import MlflowClient

from catalog.errors import Refused
from catalog.world import WorldPaths
from jobs.command import parse
from jobs.steps.workers import scaled
from jobs.train import TrainConfig, main
from tracking import registry
from tracking.names import SCORING_RUNS, TRAINING_RUNS
from tracking.runs import open_run
from training.loop import augmented, training_batches
from training.models import EngagementModel, ModelSpec, load_checkpoint, save_checkpoint, to_input
from training.run import check_enough
from training.settings import LoopConfig
from training.splits import HELD_OUT, TRAINING

ROOT = Path(__file__).parents[1]


def test_training_batches_use_every_row_once_and_cut_to_the_shortest_clip() -> None:
    rows = [
        {
            "video_id": str(i),
            "label": float(i),
            "weight": 1.0,
            "seconds": s,
            "clip": np.full((s, 4, 4, 3), i, np.uint8).tobytes(),
        }
        for i, s in enumerate([3, 9, 4, 8, 5])
    ]
    batches = list(training_batches(rows, 2, LoopConfig(max_clip_frames=6), np.random.default_rng(0)))
    assert sorted(i for ids, *_ in batches for i in ids) == ["0", "1", "2", "3", "4"]
    frames = {tuple(sorted(ids)): clips.shape[1] for ids, clips, *_ in batches}
    assert frames == {("0", "2"): 3, ("3", "4"): 5, ("1",): 6}
    for ids, clips, labels, _ in batches:
        assert [int(clip.float().mean()) for clip in clips] == [int(i) for i in ids] == labels.int().tolist()


def test_a_moved_clip_is_moved_as_one_and_keeps_its_pixels_in_view() -> None:
    clip = np.zeros((5, 9, 9, 3), np.uint8)
    clip[:, 4, 4] = 1 + np.arange(5)[:, None]
    seen = set()
    for seed in range(60):
        moved = augmented(clip, 3, 2, np.random.default_rng(seed))
        _, row, column, _ = np.argwhere(moved).T
        assert moved.shape == (3, 9, 9, 3)
        assert len({*zip(row, column, strict=True)}) == 1
        assert np.all(np.diff(moved[:, row[0], column[0], 0]) == 1)
        seen.add((int(row[0]), int(column[0])))
    assert min(seen) == (2, 2)
    assert max(seen) == (6, 6)


def train(env: dict[str, str], *flags: str) -> list[str]:
    common = ["--architecture", "r3d_18_w16", "--batch-size", "4", "--clip-cache", env["CLIPS"]]
    return [sys.executable, "-m", "jobs.train", *common, *flags]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tracked")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "MLFLOW_"))}
    return kept | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "STORAGE": str(folder / "storage"),
        "CLIPS": str(folder / "clips"),
    }


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
    assert {
        "train/loss",
        "train/videos_per_second",
        "eval/srcc",
        "eval/srcc_over_baseline",
        "baseline/metadata/srcc",
        "baseline/shuffled/srcc",
    } <= set(run.data.metrics)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == run.data.tags["catalogue"] == f"{small_world.videos.parent.name}/videos"
    assert re.fullmatch(r"shares r3d_18_w16 [0-9a-f]{6}", str(run.info.run_name))
    assert "storage" not in run.data.params  # it decides nothing, and would be a difference between like runs
    plots = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {f"plots/{n}.png" for n in ("srcc", "learning_curves", "held_out_predictions", "calibration")}
    version = client.get_model_version_by_alias("pe-engagement", "challenger")
    wanted = {"target", "split", "data_digest", "git_commit", "library/torch", "library/ray", "srcc_over_baseline"}
    assert wanted <= set(version.tags)
    assert version.tags["target"] == "shares"
    card = client.download_artifacts(run.info.run_id, "model_card.md", str(tmp_path))
    assert version.description == run.data.tags["mlflow.note.content"] == Path(card).read_text()
    assert "cannot be told from chance" in version.description
    stored = {Path(artifact.path).name for artifact in client.list_artifacts(run.info.run_id)}
    assert {"held_out_predictions.csv", "calibration.csv", "figures.csv", "shuffled", "data"} <= stored
    own = registry.load("models:/pe-engagement@challenger")
    assert own.training_run == run.info.run_id
    assert own.link == (
        f"[pe-engagement version {own.version}](#/models/pe-engagement/versions/{own.version}), "
        f"from this [training run](#/runs/{run.info.run_id})"
    )
    by_id = registry.load(f"models:/{own.logged_model}")
    assert (by_id.digest, by_id.training_run) == (own.digest, run.info.run_id)
    with open_run(SCORING_RUNS, "uses it", {}) as user:
        user.model_input(str(own.logged_model))
    assert [used.model_id for used in client.get_run(str(user.run_id)).inputs.model_inputs] == [own.logged_model]
    assert [made.model_id for made in run.outputs.model_outputs] == [own.logged_model]
    control = registry.shuffled_control(f"runs:/{run.info.run_id}/model")
    assert control is not None
    assert control.digest != own.digest
    assert load_checkpoint(control.checkpoint).spec.architecture == "r3d_18_w16"
    by_alias = registry.shuffled_control("models:/pe-engagement@challenger")
    assert by_alias is not None
    assert by_alias.digest == control.digest
    assert registry.shuffled_control("model.pt") is None
    assert not list(Path(tracked["STORAGE"]).glob("runs/train-*/*/checkpoint*"))


@pytest.mark.timeout(300)
def test_the_registered_model_loads_as_a_pyfunc_for_scoring_and_outside_of_this_project(
    client: MlflowClient, tracked: dict[str, str], tmp_path: Path
) -> None:
    stored = registry.load("models:/pe-engagement@challenger")

    model = load_checkpoint(stored.checkpoint).eval()

    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.to_log_engagement(model(to_input(torch.from_numpy(clips)))).numpy()
    loaded = mlflow.pyfunc.load_model("models:/pe-engagement@challenger")
    assert loaded.metadata.signature is not None
    assert loaded.input_example is not None
    np.testing.assert_allclose(loaded.predict({"clips": clips}), expected, atol=1e-4)
    np.save(tmp_path / "clips.npy", clips)
    code = (
        "import mlflow, numpy, importlib.util; assert importlib.util.find_spec('training') is None\n"
        "model = mlflow.pyfunc.load_model('models:/pe-engagement@challenger')\n"
        "print(*model.predict({'clips': numpy.load('clips.npy')}).tolist())"
    )
    elsewhere = {"PYTHONPATH": sysconfig.get_path("purelib"), "MLFLOW_TRACKING_URI": tracked["MLFLOW_TRACKING_URI"]}
    # site-packages by PYTHONPATH leaves out this project, which is installed there by a .pth file
    done = subprocess.run(
        [sys._base_executable, "-c", code], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    np.testing.assert_allclose([float(word) for word in done.stdout.split()], expected, atol=1e-4, err_msg=done.stderr)


def test_promotion_moves_the_champion_and_refuses_what_is_not_there(client: MlflowClient) -> None:
    version = str(client.get_model_version_by_alias("pe-engagement", "challenger").version)

    def tagged(**tags: str) -> None:
        for name, value in tags.items():
            client.set_model_version_tag("pe-engagement", version, name, value)

    for low in ("-0.1", "0.0", "nan"):
        tagged(srcc_over_baseline="0.3", srcc_over_baseline_low=low, best_baseline="followers")
        with pytest.raises(Refused, match=f"beyond chance .SRCC 0.3 higher than followers, .* {low}.*--force"):
            registry.promote(version)
    assert registry.version_with("champion") is None
    registry.promote(version, force=True)
    assert registry.version_with("champion") == version
    assert "needs no video" in client.get_model_version("pe-engagement", version).tags["promoted_by_force"]
    registry.promote(version)  # it is the champion already
    first, run_id = version, client.get_model_version("pe-engagement", version).run_id
    version = str(client.create_model_version("pe-engagement", "runs:/none", run_id=run_id).version)
    with pytest.raises(Refused, match="never compared"):
        registry.promote(version)
    tagged(srcc_over_baseline="0.2", srcc_over_baseline_low="0.1", best_baseline="metadata")
    with pytest.raises(Refused, match=f"not compared with the present champion, version {first}, but with none"):
        registry.promote(version)
    tagged(compared_with_version=first, srcc_over_champion="-0.01")
    with pytest.raises(Refused, match=f"no better than the present champion, version {first} .SRCC -0.01 higher"):
        registry.promote(version)
    tagged(srcc_over_champion="0.01")
    registry.promote(version)
    assert registry.version_with("champion") == version
    assert "promoted_by_force" not in client.get_model_version("pe-engagement", version).tags
    registry.promote(first, force=True)
    client.delete_model_version("pe-engagement", version)
    with pytest.raises(Refused, match="Registered versions of pe-engagement: 1"):
        registry.promote("99")
    with pytest.raises(Refused, match="no-such-alias"):
        registry.load("models:/pe-engagement@no-such-alias")


STREAMED = """
import runpy, training.clips
training.clips.IN_MEMORY_BYTES = 0
runpy.run_module("jobs.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_workers_train_together_from_given_weights_on_clips_that_memory_does_not_hold(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    model = EngagementModel(ModelSpec(architecture="r3d_18_w16"))
    given = model.network.state_dict()
    torch.save(given, tmp_path / "kinetics.pt")
    (tmp_path / "champion").mkdir()
    save_checkpoint(model, tmp_path / "champion" / "model.pt")
    with open_run(TRAINING_RUNS, "the champion's", {}) as run:
        example = np.zeros((1, 4, 112, 112, 3), np.uint8)
        champion = registry.register(run, tmp_path / "champion" / "model.pt", example, "log1p(shares)", {}, "a card")
    client.set_registered_model_alias("pe-engagement", "champion", str(champion))
    flags = train(
        tracked, "--videos", str(small_world.videos), "--storage", str(tmp_path / "storage"), "--epochs", "2",
        "--workers", "2", "--init-weights", str(tmp_path / "kinetics.pt"), "--frozen-epochs", "1",
        "--backbone-rate", "0",
    )[3:]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", STREAMED, *flags],
        cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers, {'CPU': 1} each" in done.stdout
    held_out = int(re.findall(r"(\d+) held out", done.stdout)[0])
    assert f"{held_out} held-out videos of" in done.stdout  # judged on all, each worker's share gathered
    assert f"champion, version {champion}" in done.stdout
    tags = client.get_model_version_by_alias("pe-engagement", "challenger").tags
    assert tags["compared_with_version"] == champion
    assert -2 <= float(tags["srcc_over_champion"]) <= 2
    version = client.get_model_version_by_alias("pe-engagement", "challenger").version
    stored = load_checkpoint(registry.load(f"models:/pe-engagement/{version}").checkpoint)
    trained = stored.network.state_dict()
    torch.testing.assert_close(trained["layer3.0.conv1.0.weight"], given["layer3.0.conv1.0.weight"], atol=0, rtol=0)
    assert not torch.equal(trained["fc.weight"], given["fc.weight"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_costs_no_epoch_and_the_same_seed_gives_the_same_model(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    flags = ["--videos", str(small_world.videos), "--epochs", "4", "--seed", "3", "--no-shuffled-control"]
    log, predictions = tmp_path / "log.txt", []
    for name in ("killed", "whole"):
        with log.open("w") as output:
            job = subprocess.Popen(
                train(tracked, *flags, "--name", name, "--storage", str(tmp_path / name)),
                cwd=ROOT, env=tracked, stdout=output, stderr=output,
            )  # fmt: skip
            if name == "killed":
                _wait_for(lambda: list((tmp_path / "killed").glob("runs/killed/*/checkpoint*")), log)
                workers = [p for p in psutil.Process(job.pid).children(recursive=True)
                           if "RayTrainWorker" in " ".join(p.cmdline())]  # fmt: skip
                assert workers
                workers[0].kill()
            assert job.wait(300) == 0, log.read_text()
        (run,) = client.search_runs(["1"], f"attributes.run_name = '{name}'")
        epochs = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/srcc")]
        assert sorted(epochs) == [0, 1, 2, 3]
        file = client.download_artifacts(run.info.run_id, "held_out_predictions.csv", str(tmp_path))
        predictions.append(pd.read_csv(file)["the model"].to_numpy())
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_loss_that_is_no_number_stops_the_job_with_the_videos(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    done = subprocess.run(
        train(
            tracked, "--videos", str(small_world.videos), "--storage", str(tmp_path), "--name", "diverges",
            "--learning-rate", "1e38", "--loss", "mse", "--epochs", "3",
        ),
        cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"the job broke: epoch \d, step \d+: the loss is .* on videos v\d+", done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    (run,) = client.search_runs(["1"], "attributes.run_name = 'diverges'")
    assert run.info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_training_ends_when_the_validation_videos_gain_no_more_and_keeps_the_best_epoch(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    done = subprocess.run(
        train(
            tracked, "--videos", str(small_world.videos), "--storage", str(tmp_path), "--name", "patient",
            "--epochs", "40", "--patience", "2", "--validation-fraction", "0.4", "--no-shuffled-control",
        ),
        cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=390,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = client.search_runs(["1"], "attributes.run_name = 'patient'")
    ranks = [m.value for m in sorted(client.get_metric_history(run.info.run_id, "val/srcc"), key=lambda m: m.step)]
    assert len(ranks) < 40
    assert len(ranks) - 1 - int(np.argmax(ranks)) == 2
    assert f"ended after {len(ranks)} epochs" in done.stdout
    assert run.data.metrics["videos/validation"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_shows_its_attempts_and_registers_the_best(
    small_world: WorldPaths, tracked: dict[str, str], client: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text("learning-rate: [0.001, 0.002]\n")
    before = len(client.search_model_versions("name='pe-engagement'"))
    done = subprocess.run(
        train(
            tracked, "--videos", str(small_world.videos), "--storage", str(tmp_path / "storage"), "--name", "sweep",
            "--epochs", "1", "--validation-fraction", "0.4", "--no-shuffled-control",
            "--sweep", str(tmp_path / "sweep.yaml"),
        ),
        cwd=ROOT, env=tracked, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (parent,) = client.search_runs(["1"], "attributes.run_name = 'sweep'")
    below = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    names = {run.info.run_name for run in below}
    assert names == {"learning_rate 0.001", "learning_rate 0.002", "sweep best"}
    assert all(run.info.status == "FINISHED" and "val/srcc" in run.data.metrics for run in [*below])
    scores = {run.info.run_name: run.data.metrics["val/srcc"] for run in below if run.info.run_name != "sweep best"}
    assert scores[parent.data.tags["best"]] == max(scores.values())
    assert len(client.search_model_versions("name='pe-engagement'")) == before + 1
    assert not list((tmp_path / "storage" / "runs").iterdir())


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("learning-rate: [0.1]", [], "--validation-fraction"),
        ("target: [likes]", ["--validation-fraction", "0.3"], "target cannot be swept"),
        ("epochs: 3", ["--validation-fraction", "0.3"], "expected a list of values"),
        ("epochs: [many]", ["--validation-fraction", "0.3"], "epochs cannot be 'many'"),
        ("epochs: [0]", ["--validation-fraction", "0.3"], "--epochs is 0"),
        ("", ["--validation-fraction", "0.3"], "names no flag"),
        ("- 1", ["--validation-fraction", "0.3"], "holds a list"),
        ("epochs: [1, 2, 3, 4, 5, 6, 7, 8, 9]\nbatch-size: [1, 2, 3, 4, 5, 6, 7, 8]", ["--validation-fraction", "0.3"],
         "72 combinations"),
    ],
)  # fmt: skip
def test_sweeps_that_cannot_be_meant_are_refused(
    content: str, flags: list[str], message: str, small_world: WorldPaths, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(content)
    config = parse(
        TrainConfig,
        [
            "--videos",
            str(small_world.videos),
            "--storage",
            str(tmp_path),
            "--sweep",
            str(tmp_path / "sweep.yaml"),
            *flags,
        ],
        "train",
    )
    with pytest.raises(Refused, match=message):
        main(config)


def test_workers_fit_nodes_or_are_refused_with_the_time_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def bundle(workers: int, *nodes: dict[str, float], **settings) -> dict:
        config = TrainConfig(videos="v", workers=workers, wait_for_workers=0, **settings)
        return dict(scaled(config, lambda: list(nodes)).resources_per_worker or {})

    assert bundle(1, {"CPU": 2}) == {"CPU": 2}
    assert bundle(1, {"CPU": 8}, {"CPU": 8}) == {"CPU": 8}  # a worker cannot span nodes
    assert bundle(2, {"CPU": 8}, {"CPU": 8}) == {"CPU": 8}
    assert bundle(3, {"CPU": 8}, {"CPU": 8}) == {"CPU": 4}
    assert bundle(2, {"CPU": 16, "GPU": 2}) == {"CPU": 4, "GPU": 1}
    with pytest.raises(Refused, match="3 workers of 2 CPUs each: this cluster has room for 2; lower"):
        bundle(3, {"CPU": 4}, cpus_per_worker=2)
    with pytest.raises(Refused, match="2 workers of 3 CPUs each: this cluster has room for 0"):
        bundle(2, {"CPU": 2}, {"CPU": 2}, {"CPU": 2}, cpus_per_worker=3)
    with pytest.raises(Refused, match="4 workers of 4 CPUs, 1 GPUs each: this cluster has room for 2"):
        bundle(4, {"CPU": 16, "GPU": 2})
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    with pytest.raises(Refused, match=r"room for 2 \(waited 0 s for more nodes\); lower"):
        bundle(3, {"CPU": 4}, cpus_per_worker=2)


def test_too_few_videos_that_decode_are_refused() -> None:
    examples = pd.DataFrame({"side": [TRAINING] * 3 + [HELD_OUT] * 3})
    expected = r"3 training \(at least 4\); 9 could not be decoded, such as v0: gone"
    with pytest.raises(Refused, match=expected):
        check_enough(examples, False, {f"v{i}": "gone" for i in range(9)})
    more = pd.concat([examples] * 2)
    check_enough(more, False, {})
    with pytest.raises(Refused, match=r"0 validation \(at least 3\)$"):
        check_enough(more, True, {})


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
        _wait_for(lambda: list(Path(storage).glob("runs/mine/*/checkpoint*")), log)
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
        (["--seed", str(2**32)], "and below 2"),
        (["--name", "../elsewhere"], "--name '../elsewhere' is to name a folder"),
        (["--learning-rate", "-0.1"], "--learning-rate is -0.1"),
        (["--batch-size", "8", "--workers", "3"], "cannot be shared evenly by 3 workers"),
        (["--limit", "0"], "--limit is 0"),
        (["--sample-fps", "inf"], "--sample-fps is inf"),
        (["--init-weights", "nowhere.pt"], "--init-weights nowhere.pt cannot be read: no such file"),
        (["--architecture", "r3d_99"], "there is no such network"),
        (["--patience", "2"], "--patience chooses an epoch by videos .* --validation-fraction"),
        (["--frozen-epochs", "2"], "--frozen-epochs keeps a backbone as it is; without --init-weights"),
        (["--clip-cache", "/dev/null/clips"], "/dev/null/clips"),
        (["--storage", "s3a://bucket/folder"], "--storage s3a://bucket/folder: Ray Train keeps"),
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
    for file in Path(storage).glob("runs/train-*/*/checkpoint*/history.json"):
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
