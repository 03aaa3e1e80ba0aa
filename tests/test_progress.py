"""What a job says while it runs: one live line in a terminal, now and then a line in a job's log."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.progress import Progress

from catalog.errors import ErrorCode
from jobs.command import ProgressLog, pace
from jobs.steps.score import print_summary
from scoring.output import OutputFolder
from scoring.rows import STAGES

ROOT = Path(__file__).parents[1]
JOB = """
import logging, sys, time
from jobs.command import ConsoleHandler, ProgressLog, console, ray_cluster

logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
with ray_cluster():
    import ray.data

    console.print("begun")
    progress = ProgressLog("scoring", 40, every_seconds=float(sys.argv[1]))
    for done, _ in enumerate(ray.data.range(40).map(lambda row: row).iter_rows(), 1):
        if done == 20:
            logging.warning("a warning")
        time.sleep(0.05)
        progress.update(done, "3 failed, and more of a note than eighty columns of a terminal can ever hold")
    progress.close()
console.print("summary")
"""


def in_terminal(command: list[str], columns: int) -> str:
    """All that a program writes to a terminal of so many columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(command, cwd=ROOT, env=env | {"TERM": "xterm"}, stdout=its, stderr=its, stdin=its):
        os.close(its)
        written = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the program has ended
                break
            if not chunk:
                break
            written += chunk
    os.close(ours)
    return written.decode()


def shown(written: str) -> list[str]:
    """The lines that a reader of the terminal sees in the end: a return goes back to where a line began."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in plain.split("\n")]


def test_a_terminal_has_one_live_line_below_all_that_is_said():
    written = in_terminal([sys.executable, "-c", JOB, "60"], columns=80)
    begun, warning, progress, summary = [line for line in shown(written) if line]
    assert (begun, warning, summary) == ("begun", "a warning", "summary")
    assert re.fullmatch(r"scoring \S+ 40/40 [\d.]+ a second, 0:00:\d\d in all 3 failed.*…", progress)
    assert written.count("scoring") > 5  # it was drawn anew as it went on
    assert "\x1b[1A" not in written  # and never took a second line
    assert all(len(line) <= 80 for line in shown(written))


@pytest.mark.parametrize(("every_seconds", "lines"), [("60", 2), ("0", 40)])
def test_a_job_log_has_a_line_at_first_now_and_then_and_at_the_end(every_seconds: str, lines: int):
    command = [sys.executable, "-c", JOB.replace("with ray_cluster():", "if True:"), every_seconds]
    command[2] = (
        command[2]
        .replace("import ray.data", "")
        .replace("ray.data.range(40).map(lambda row: row).iter_rows()", "range(40)")
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stdout.splitlines() if line.startswith("scoring")]
    assert len(said) == lines, done.stdout + done.stderr
    assert re.match(r"scoring: 1 of 40, [\d.]+ a second, 0:00:\d\d left, 3 failed", said[0])
    assert re.match(r"scoring: 40 of 40, [\d.]+ a second, 0:00:\d\d in all, 3 failed", said[-1])
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == "summary"


@pytest.mark.parametrize(
    ("done_per_s", "total", "says"),
    [
        (2.0, 1000, "2 a second, 0:08:10 left"),
        (0.05, 100, "3 a minute, 0:26:40 left"),
        (0.001, 100, "3.6 an hour, 22:13:20 left"),
        (250.0, 10_000, "250 a second, 0:00:40 left"),
    ],
)
def test_pace_is_told_in_the_unit_that_suits_it(done_per_s: float, total: int, says: str):
    now = 0.0
    progress = Progress(get_time=lambda: now, disable=True, speed_estimate_period=1e9)
    progress.add_task("", total=total)
    (task,) = progress.tasks
    for done in range(1, 21):
        now = done / done_per_s
        progress.update(task.id, completed=done)
    assert pace(task) == says


def test_pace_of_a_finished_task_is_its_mean():
    now = 0.0
    progress = Progress(get_time=lambda: now, disable=True)
    progress.add_task("", total=10)
    now = 40.0
    progress.update(progress.tasks[0].id, completed=10)
    assert pace(progress.tasks[0]) == "15 a minute, 0:00:40 in all"


def test_nothing_is_said_of_a_pace_before_anything_is_done(capsys: pytest.CaptureFixture[str]):
    progress = ProgressLog("decoding", 5)
    progress.update(0)
    progress.close()
    assert capsys.readouterr().out == "decoding: 0 of 5\n"


def test_the_closing_summary_fits_a_screen_whatever_failed(capsys: pytest.CaptureFixture[str]):
    gain = {"mean": 0.1, "low": -0.1, "high": 0.3, "infill": "blur", "over": "random"}
    alike = {"mean": 0.5, "low": 0.4, "high": 0.6}
    codes = [code.value for code in ErrorCode]
    summary = {
        "rows": 12_000,
        "videos": {"ok": 1, "not_localised": 2, "no_product": 3, "failed": 11_994},
        "errors": {code: n for n, code in enumerate(codes, 1)},
        "error_examples": dict.fromkeys(codes, f"video: {'a long path and its reason ' * 20}"),
        "wall_seconds": 100.0,
        "videos_per_hour": 3600.0,
        "video_minutes": 20.0,
        "core_seconds_per_video_minute": 3.0,
        "core_seconds_per_video_minute_by_stage": dict.fromkeys(STAGES, 1.0),
        "efficiency": 0.9,
        "gpu_seconds": 9.0,
        "gpu_seconds_per_video_minute": 0.5,
        "fetch_seconds_per_video_minute": 0.5,
        "pace": [{"wall_seconds": 20.0 * k, "videos": 2400.0 * k} for k in range(1, 6)],
        "faithfulness": {
            "gains": [gain | {"what": "deletion"}, gain | {"what": "insertion"}],
            "randomised": {"stem": alike},
            "randomised_inside": {"stem": alike},
        },
    }
    print_summary(OutputFolder("s3://bucket/scores/november"), summary)
    said = capsys.readouterr().out
    rows = sum(max(1, -(-len(line) // 80)) for line in said.splitlines())
    assert rows <= 24, said
    assert f"failed, {codes[-1]}: {len(codes)}, such as video: a long path" in said  # the most frequent first
    assert all(f"{code} {n}" in said for n, code in enumerate(codes[:-2], 1))  # and the others by their numbers
