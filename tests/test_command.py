"""Flags, --config, exit codes and the time limit that all jobs share."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from catalog.errors import Refused
from jobs.command import CapacityWatch, NodesLostError, StallWatch, end, parse, resolved, run_job

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Inner:
    max_seconds: float = 60.0
    """seconds looked at"""


@dataclasses.dataclass(frozen=True)
class Config:
    videos: str
    """the table"""
    inner: Inner = dataclasses.field(default_factory=Inner)
    save_maps: bool = False
    """also maps"""
    limit: int | None = None
    """a trial"""


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("videos: from_file.parquet\nmax_seconds: 30\nsave-maps: true\nlimit: 5\n")
    config = parse(Config, ["--config", str(file), "--limit", "7", "--no-save-maps"], "")
    assert config == Config("from_file.parquet", Inner(30.0), save_maps=False, limit=7)
    assert parse(Config, [f"--config={file}"], "").save_maps is True
    assert parse(Config, ["--videos", "v.csv"], "") == Config("v.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [("vidoes: x", "no flag --vidoes"), ("- a\n- b", "holds a list"), ("a: [", "is not YAML")],
)
def test_a_bad_config_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(Refused, match=message):
        parse(Config, ["--config", str(file), "--videos", "v"], "")


def test_a_missing_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file"):
        parse(Config, ["--config", str(tmp_path / "none.yaml")], "")


def test_the_resolved_config_is_flat_and_complete() -> None:
    assert resolved(Config("v", Inner(3.0))) == {"videos": "v", "max_seconds": 3.0, "save_maps": False, "limit": None}


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Refused("no"), 2), (KeyboardInterrupt(), 130), (ValueError("a bug"), 1), (3, 3), (0, 0)],
)
def test_exit_codes(
    outcome: BaseException | int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Config) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["job", "--videos", "v"])
    with pytest.raises(SystemExit) as ended:
        run_job(Config, main, "a job")
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert ("Traceback" in printed.err) == (code == 1)


def test_a_job_that_stalls_is_ended_and_one_that_lives_is_not() -> None:
    with pytest.raises(TimeoutError, match="no video was finished"), StallWatch(0.2):
        time.sleep(5)
    with StallWatch(4) as watch:
        for _ in range(5):
            watch.alive()
            time.sleep(1)


def test_lost_nodes_interrupt_the_work_and_a_short_absence_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    there, seen = {"CPU": 4.0}, list[float]()
    monkeypatch.setattr(ray, "cluster_resources", lambda: dict(there))
    with CapacityWatch({"CPU": 4.0, "GPU": 0.0}, grace_seconds=0.5, poll_seconds=0.02, on_cores=seen.append):
        there["CPU"] = 1.0
        time.sleep(0.1)
        there["CPU"] = 4.0
        time.sleep(0.6)
    assert set(seen) == {1.0, 4.0} and seen[-1] == 4.0
    with pytest.raises(NodesLostError) as lost, CapacityWatch({"CPU": 4.0}, grace_seconds=0.1, poll_seconds=0.02):
        there["CPU"] = 1.0
        time.sleep(30)
    assert lost.value.left == {"CPU": 1.0}


@pytest.mark.parametrize(
    "job", ["train", "promote", "score", "plan", "report", "demo", "import_counts", "check_products"]
)
def test_help_explains_every_flag(job: str) -> None:
    env = os.environ | {"COLUMNS": "200"}
    shown = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", "--help"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert "--config" in shown.stdout
    assert f"python -m jobs.{job}" in shown.stdout


def test_a_command_line_is_read_before_anything_heavy_is_loaded() -> None:
    read = ("train", "promote", "score", "plan", "report", "demo", "import_counts", "check_products")
    jobs = ", ".join(f"jobs.{job}" for job in read)
    heavy = "{'torch', 'ray', 'mlflow', 'cv2', 'matplotlib', 'scipy', 'pandas'}"
    code = f"import sys, {jobs}; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert shown.stdout == "[]\n", shown.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["jobs.train", "--videos", "nowhere.parquet"], "nowhere.parquet"),
        (["jobs.train", "--videos", "x.csv", "--architecture", "vgg"], "r3d_18, mc3_18, r2plus1d_18, frame_conv3d"),
        (["jobs.train", "--videos", "x.csv", "--init-weights", "nowhere.pth"], "nowhere.pth"),
        (["jobs.promote", "--version", "1"], "run jobs.train first"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    ended = subprocess.run(
        [sys.executable, "-m", *flags], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_that_hangs_in_its_exit_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as hangs:
        end([psutil.Process(hangs.pid)], grace_seconds=0.1)
        assert not psutil.pid_exists(hangs.pid)


def test_processes_that_have_ended_already_need_no_end() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as killed:
        process = psutil.Process(killed.pid)
        killed.kill()
    end([process], grace_seconds=0.1)
