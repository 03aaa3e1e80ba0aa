"""What a month's retraining must survive: no tracking server, footage that comes and goes, two jobs at once."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.exceptions
import ray.train
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from catalog.errors import Broken, Refused
from catalog.world import WorldPaths
from jobs.command import parse, resolved
from jobs.promote import PromoteConfig
from jobs.promote import main as promote
from jobs.steps import train as training_job
from jobs.steps.sweep import attempts_of
from jobs.steps.train import adjusted
from jobs.steps.train_plan import Begun, Plan, as_begun, begun_run, digest_of, held, prepared, remember_run
from jobs.train import TrainConfig
from tracking import registry, runs
from tracking.runs import fitting, open_run
from training.clips import Clips, broken_by
from training.models import load_checkpoint
from training.run import Diverged, _workers_lost
from training.splits import HELD_OUT, LEFT_OUT, TRAINING

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(small_world: WorldPaths, tmp_path: Path) -> Plan:
    return plan_of(small_world, tmp_path)


def plan_of(world: WorldPaths, folder: Path, *flags: str) -> Plan:
    config = parse(TrainConfig, ["--videos", str(world.videos), "--storage", str(folder / "storage"), *flags], "train")
    return prepared(config, resolved(config))


def clips_of(plan: Plan, undecodable: tuple[str, ...] = (), hashes: dict[str, str] | None = None) -> Clips:
    """As if all other videos had decoded; ``hashes``: of videos that show the same as another."""
    ids = [video_id for video_id in plan.examples["video_id"] if video_id not in undecodable]
    looks = [[hash((hashes or {}).get(video_id, video_id)) % 2**63] * 4 for video_id in ids]
    columns = {"video_id": ids, "key": ids, "seconds": 4, "hashes": looks, "part": "part"}
    return Clips(pd.DataFrame(columns), dict.fromkeys(undecodable, "gone"), 0)


@pytest.mark.timeout(600)
def test_a_careful_run_without_a_tracking_server_keeps_its_facts_and_is_registered_later(
    small_world: WorldPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(small_world.videos).to_pandas()
    table["video_uri"] = [str((small_world.videos.parent / uri).resolve()) for uri in table["video_uri"]]
    table.loc[table.index[0], ["likes", "views"]] = [10**9, 10]
    late = tmp_path / "late.mp4"
    table.loc[table.index[1], "video_uri"] = str(late)
    oldest, newest = table["posted_at"].idxmin(), table["posted_at"].idxmax()
    copy = table.loc[newest].copy()
    copy["video_id"], copy["posted_at"] = "a copy", table.loc[oldest, "posted_at"]
    videos = tmp_path / "videos.parquet"
    pq.write_table(pa.Table.from_pandas(pd.concat([table, copy.to_frame().T]).infer_objects(), schema=None), videos)
    flags = ["--residualize", "followers,duration", "--winsorize", "0.05", "--split", "time", "--loss", "rank"]
    flags += ["--held-out-fraction", "0.3", "--architecture", "r3d_18_w16", "--epochs", "2", "--batch-size", "4"]
    command = [sys.executable, "-m", "jobs.train", "--videos", str(videos), "--storage", str(tmp_path / "s"), *flags]

    def run(tracking_uri: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    said = run("http://127.0.0.1:9")
    assert "1 videos have counts that contradict one another" in said
    assert "1 training videos show the same footage as held_out ones and are left out, such as a copy" in said
    assert "1 of 13 videos could not be decoded" in said
    assert "followers, duration explain" in said
    (kept,) = (tmp_path / "s" / "unregistered").iterdir()
    assert f"checkpoint, model card and figures are in {kept}" in said
    assert {str(p.relative_to(kept)) for p in kept.rglob("*.*")} == {
        "undecodable_videos.json", "data/split.csv", "data/suspicious_counts.csv", "data/target.json", "figures.csv",
        "calibration.csv", "held_out_predictions.csv", "model_card.md", "model.pt",
    }  # fmt: skip
    assert pd.read_csv(kept / "data/suspicious_counts.csv")["video_id"].tolist() == [table["video_id"].iloc[0]]
    sides = pd.read_csv(kept / "data/split.csv", index_col="video_id")["side"]
    assert sides["a copy"] == LEFT_OUT
    assert load_checkpoint((kept / "model.pt").read_bytes()).spec.residualized_on == "followers,duration"

    shutil.copy(table["video_uri"].iloc[2], late)
    said = run(f"sqlite:///{tmp_path}/mlflow.db")
    assert "1 videos that could not be decoded when run" in said
    model = registry.load("models:/pe-engagement@challenger")
    assert model.checkpoint == (kept / "model.pt").read_bytes()  # no training has come between
    version = MlflowClient().get_model_version("pe-engagement", model.version)
    assert version.tags["residualized_on"] == "followers,duration"
    target = mlflow.artifacts.download_artifacts(artifact_uri=f"{model.uri}/artifacts/target.json")
    assert json.loads(Path(target).read_text()) == json.loads((kept / "data/target.json").read_text())
    assert not list((tmp_path / "s" / "runs").iterdir())


def test_what_runs_are_compared_by_is_told_apart_by_labels_sides_and_videos(plan: Plan) -> None:
    examples = plan.examples
    assert digest_of(examples) == digest_of(examples.sample(frac=1, random_state=0)) == plan.data_digest
    assert digest_of(examples) == digest_of(examples.assign(label=examples["label"] * (1 + 1e-12)))
    residualized = examples.assign(label=examples["label"] - examples["label"].mean())
    for other in (residualized, examples.iloc[1:], examples.assign(side=TRAINING)):
        assert digest_of(other) != plan.data_digest


def test_videos_that_did_not_decode_at_first_stay_left_out_and_lost_ones_end_the_job(
    plan: Plan, capsys: pytest.CaptureFixture
) -> None:
    first, second = plan.examples["video_id"].iloc[:2]
    remember_run(plan, Begun(plan.digest, "a run"))
    assert as_begun(plan, clips_of(plan, (first,))).undecodable == {first: "gone"}
    again = as_begun(plan, clips_of(plan))
    assert again.undecodable == {first: "gone"}
    assert first not in set(again.table["video_id"])
    assert "1 videos that could not be decoded when run" in capsys.readouterr().out
    begun = begun_run(plan.config.storage, plan.name, plan.digest)
    assert begun == Begun(plan.digest, "a run", {first: "gone"})
    with pytest.raises(Broken, match=f"1 videos .* cannot be decoded any more, such as {second}: gone; put them back"):
        as_begun(plan, clips_of(plan, (first, second)))


def test_a_run_is_one_jobs_and_forgotten_where_it_cannot_be_gone_on_with(plan: Plan) -> None:
    remember_run(plan, Begun(plan.digest, None))
    with held(plan), pytest.raises(Refused, match=r"\.lock is being written to by process"), held(plan):
        pass
    runs_folder = Path(plan.config.storage, "runs")
    assert [path.name for path in runs_folder.iterdir()] == [f"{plan.name}.json"]
    for error in (Refused("too few"), Diverged("no number")):
        remember_run(plan, Begun(plan.digest, None))
        with pytest.raises(type(error)), held(plan):
            raise error
        assert begun_run(plan.config.storage, plan.name, plan.digest) is None
    remember_run(plan, Begun(plan.digest, None))
    (runs_folder / plan.name).mkdir()  # its first checkpoint
    with pytest.raises(Refused), held(plan):
        raise Refused("a clip cache that cannot be read today")
    assert begun_run(plan.config.storage, plan.name, plan.digest) is not None


def test_copies_of_held_out_videos_leave_training_and_labels_without_spread_are_refused(plan: Plan) -> None:
    sides = plan.examples.set_index("video_id")["side"]
    seen, judged = sides.index[sides == TRAINING][0], sides.index[sides == HELD_OUT][0]
    examples, adjustment = adjusted(plan, clips_of(plan, hashes={seen: judged}))
    found = examples.set_index("video_id")["side"]
    assert found[seen] == LEFT_OUT
    assert found.drop(seen).equals(sides.drop(seen).loc[found.drop(seen).index])
    assert adjustment.residualizer is None
    training = plan.examples["side"] == TRAINING
    flat = plan.examples.assign(label=plan.examples["label"].where(~training, 3.0))
    with pytest.raises(Refused, match="nothing to learn: the targets of all training videos are 3 after"):
        adjusted(SimpleNamespace(config=plan.config, examples=flat), clips_of(plan))  # pyright: ignore


def test_a_control_that_diverges_costs_the_control_alone(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def diverging(*arguments: object) -> None:
        raise Diverged("the loss is no number; lower --learning-rate")

    monkeypatch.setattr(training_job, "fitted_model", diverging)
    assert training_job._shuffled_control(plan, clips_of(plan), plan.examples, ray.train.ScalingConfig()) is None
    assert "judged without the control" in capsys.readouterr().out


def test_values_of_a_sweep_that_are_the_same_are_tried_once(small_world: WorldPaths, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("learning-rate: [0.001, 1e-3, 0.002]\n")
    plan = plan_of(small_world, tmp_path, "--sweep", str(sweep), "--validation-fraction", "0.3")
    assert [attempt.title for attempt in attempts_of(plan)] == ["learning_rate 0.001", "learning_rate 0.002"]


def test_what_ends_workers_is_said_in_words() -> None:
    class WorkerGroupStartupTimeoutError(Exception):
        pass

    class Failed(Exception):
        def __init__(self, **failures: object):
            super().__init__("failed")
            self.__dict__ |= failures

    busy = broken_by(Failed(controller_failure=WorkerGroupStartupTimeoutError()))
    assert "other jobs hold this cluster's cores" in str(busy)
    full = broken_by(Failed(worker_failures={0: OSError(errno.ENOSPC, "No space left on device")}))
    assert "a disk is full" in str(full)
    died = ray.exceptions.ActorDiedError()
    assert "died again and again" in str(_workers_lost(Failed(worker_failures={0: died, 1: died})))
    assert _workers_lost(Failed(worker_failures={0: died, 1: ValueError("a mistake in the code")})) is None


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    runs.connect()
    client = MlflowClient()
    client.create_registered_model("pe-engagement")
    return client


def registered(client: MlflowClient, predictions: dict[str, float], digest: str, **tags: str) -> str:
    with open_run("pe-training", "a run", {}) as run:
        rows = pd.DataFrame({"video_id": list(predictions), "label": range(len(predictions))})
        run.text(
            rows.assign(**{"the model": list(predictions.values())}).to_csv(index=False), "held_out_predictions.csv"
        )
    made = client.create_model_version("pe-engagement", "runs:/none", run_id=run.run_id)
    skilled = {"srcc_over_baseline": "0.3", "srcc_over_baseline_low": "0.1", "best_baseline": "followers"}
    for name, value in (skilled | {"data_digest": digest, "split": "creator, seed 0"} | tags).items():
        client.set_model_version_tag("pe-engagement", str(made.version), name, value)
    return str(made.version)


def test_versions_of_the_same_data_are_compared_when_one_of_them_has_become_the_champion(
    client: MlflowClient, capsys: pytest.CaptureFixture
) -> None:
    """Two trained beside one champion: the second must not be lost because the first was promoted meanwhile."""
    better, worse = ({f"00{i}": float(x) for i, x in enumerate(order)} for order in ((0, 1, 2, 3), (1, 0, 2, 3)))
    first = registered(client, worse, "same")
    second = registered(client, better, "same", compared_with_version="7", srcc_over_champion="0.1")
    third = registered(client, worse, "same")
    elsewhere = registered(client, better, "other")
    assert promote(PromoteConfig(first)) == 0
    client.set_registered_model_alias("pe-engagement", "challenger", second)
    assert promote(PromoteConfig("challenger")) == 0
    assert registry.version_with("champion") == second
    assert f"present champion, version {first}, on the 4 held-out videos of both: +0.200" in capsys.readouterr().out
    with pytest.raises(Refused, match=f"no better than the present champion, version {second} .SRCC -0.2"):
        promote(PromoteConfig(third))
    with pytest.raises(Refused, match=r"was judged on other videos; .*train it anew"):
        promote(PromoteConfig(elsewhere))
    with pytest.raises(Refused, match="no version of pe-engagement bears that alias"):
        promote(PromoteConfig("nobody"))


def test_a_random_split_makes_no_champion(client: MlflowClient) -> None:
    version = registered(client, {"a": 0.0, "b": 1.0}, "same", split="random, seed 0")
    with pytest.raises(Refused, match="random split"):
        promote(PromoteConfig(version))
    assert promote(PromoteConfig(version, force=True)) == 0


def test_a_registry_that_cannot_be_read_is_not_one_without_a_champion(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registered(client, {"a": 0.0, "b": 1.0}, "same")

    def down(*arguments: object) -> None:
        raise MlflowException("the server is being restarted")

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", down)
    with pytest.raises(Refused, match="cannot be read: the server is being restarted"):
        promote(PromoteConfig(version))


def test_a_server_that_comes_back_is_told_again(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def down(*arguments: object, **named: object) -> None:
        asked.append(arguments)
        raise MlflowException("down")

    now = 0.0
    monkeypatch.setattr(runs.time, "monotonic", lambda: now)
    with open_run("pe-training", "a run", {}) as run:
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, "log_batch", down)
            for _ in range(5):
                assert run.metrics({"val/srcc": 0.5}, step=0) is None
        assert len(asked) == runs.FAILURES_IN_A_ROW
        assert "not asked for 600 s after 3 failures in a row" in caplog.text
        assert not run.metrics({"val/srcc": 0.5}, step=1)
        now = runs.SILENCE_S
        assert run.metrics({"val/srcc": 0.5}, step=2)
    finished = client.get_run(str(run.run_id))
    assert finished.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(str(run.run_id), "val/srcc")] == [2]


def test_what_is_too_long_for_the_ui_is_cut_after_a_line_and_says_so() -> None:
    card = "\n".join(f"line {i}" for i in range(1000))
    cut = fitting(card, 500)
    assert len(cut) <= 500
    assert cut.endswith(runs.CUT)
    assert card.startswith(cut.removesuffix(runs.CUT) + "\n")
    assert fitting(card, len(card)) == card
