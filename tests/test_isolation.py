"""A crash, a hang or a flood in the child costs one call; the next call works."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from catalog import isolation
from catalog.errors import ErrorCode, KilledError, Stage, VideoError
from catalog.isolation import IsolatedWorker

TARGETS = """
    import ctypes, os, re, sys, tempfile, time
    import numpy as np
    from catalog.errors import ErrorCode, Stage, VideoError

    held = []

    def act(what):
        if what == "segfault":
            ctypes.string_at(0)
        if what == "abort":
            os.abort()
        if what == "exit":
            os._exit(3)
        if what == "sys.exit":
            sys.exit("gone")
        if what == "hang":
            time.sleep(600)
        if what == "hang in C":
            re.match(r"(a+)+$", "a" * 64 + "b")
        if what == "hog":
            while True:
                held.append(np.empty(1 << 22))
        if what == "half-fetched":
            held.append(tempfile.NamedTemporaryFile(prefix="video-"))
            print(held[-1].name, flush=True)
            time.sleep(600)
        if what == "killed":
            os.kill(os.getpid(), 9)
        if what == "video error":
            raise VideoError(ErrorCode.TRUNCATED, "cut", Stage.LOCATE)
        if what == "value error":
            raise ValueError("seven is no colour")
        if what == "unpicklable":
            return lambda: None
        if what == "noise":
            for _ in range(20_000):
                print("garbage " * 10)
                os.write(2, b"\\xff\\xfe more garbage")
        if what == "noise and crash":
            os.write(2, b"first line\\nthe last words\\n")
            os.abort()
        return what

    def double(array):
        return {"twice": array * 2, "empty": array[:0]}

    def pid(_):
        return os.getpid()

    def modules(_):
        return sorted(sys.modules)

    class Adder:
        def __init__(self, start, step):
            self.total, self.step = start, step

        def __call__(self, count):
            self.total += self.step * count
            return self.total

    def broken_factory(x):
        raise KeyError("no such index")

    def exits(x):
        os._exit(3)

    def killed_once(flag):
        if not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), 9)
        return act
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "isolated_targets.py").write_text(textwrap.dedent(TARGETS))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def worker(targets: Path) -> Iterator[IsolatedWorker]:
    with IsolatedWorker("isolated_targets:act", memory_limit_bytes=1 << 30) as worker:
        yield worker


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("segfault", ErrorCode.DECODE_CRASH, "SIGSEGV"),
        ("abort", ErrorCode.DECODE_CRASH, "SIGABRT"),
        ("exit", ErrorCode.DECODE_CRASH, "status 3"),
        ("hog", ErrorCode.OUT_OF_MEMORY, "Memory"),
        ("killed", ErrorCode.OUT_OF_MEMORY, "ran out of memory"),
        ("value error", ErrorCode.INTERNAL, "ValueError: seven is no colour"),
        ("sys.exit", ErrorCode.INTERNAL, "SystemExit: gone"),
        ("unpicklable", ErrorCode.INTERNAL, "pickle"),
    ],
)
def test_a_failure_is_named_and_the_next_call_works(
    worker: IsolatedWorker, what: str, code: ErrorCode, words: str
) -> None:
    with pytest.raises(VideoError, match=words) as raised:
        worker.call(what, 30)
    assert raised.value.code == code
    assert raised.value.stage == Stage.DECODE
    assert worker.call("fine", 30) == "fine"


@pytest.mark.parametrize("what", ["hang", "hang in C"])
def test_a_hanging_call_is_killed_and_the_next_call_works(worker: IsolatedWorker, what: str) -> None:
    assert worker.call("warm", 30) == "warm"
    pid = worker.pid
    with pytest.raises(VideoError) as raised:
        worker.call(what, 0.5)
    assert raised.value.code == ErrorCode.DECODE_TIMEOUT
    assert pid is not None and not _alive(pid)
    assert worker.call("fine", 30) == "fine"


def test_a_killed_call_leaves_no_temporary_file(
    worker: IsolatedWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert worker.call("warm", 30) == "warm"
    (folder,) = (tmp_path / "scratch").iterdir()
    with pytest.raises(VideoError):
        worker.call("half-fetched", 0.5)
    assert not folder.exists()


def test_a_child_that_the_kernel_holds_costs_its_call_only(
    worker: IsolatedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.call("warm", 30) == "warm"
    held = worker._process
    assert held is not None

    def never_ends(timeout: float) -> None:
        raise subprocess.TimeoutExpired("child", timeout)

    with monkeypatch.context() as kernel, pytest.raises(VideoError) as raised:
        kernel.setattr(held, "wait", never_ends)
        worker.call("hang", 0.2)
    assert raised.value.code == ErrorCode.DECODE_TIMEOUT
    held.wait(10)
    assert worker.call("fine", 30) == "fine"


def test_an_exception_names_the_last_line_of_code(worker: IsolatedWorker) -> None:
    with pytest.raises(VideoError, match=r"isolated_targets\.py:\d+: raise ValueError"):
        worker.call("value error", 30)


def test_a_video_error_of_the_function_passes_through_unchanged(worker: IsolatedWorker) -> None:
    with pytest.raises(VideoError) as raised:
        worker.call("video error", 30)
    assert (raised.value.code, raised.value.message, raised.value.stage) == (
        ErrorCode.TRUNCATED,
        "cut",
        Stage.LOCATE,
    )


def test_errors_carry_the_stage_that_the_worker_was_given() -> None:
    with (
        IsolatedWorker("isolated_targets:act", stage=Stage.LOCATE) as worker,
        pytest.raises(VideoError) as raised,
    ):
        worker.call("abort", 30)
    assert raised.value.stage == Stage.LOCATE


def test_a_flood_of_output_neither_blocks_nor_reaches_the_job(
    worker: IsolatedWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    assert worker.call("noise", 30) == "noise"
    assert worker.call("fine", 30) == "fine"
    assert capfd.readouterr() == ("", "")


def test_a_crash_message_holds_the_last_lines_that_the_child_printed(worker: IsolatedWorker) -> None:
    with pytest.raises(VideoError, match=r"SIGABRT.*the last words"):
        worker.call("noise and crash", 30)
    with pytest.raises(VideoError, match="in act"):  # faulthandler's line
        worker.call("segfault", 30)


def test_big_arrays_come_back_equal_and_writable() -> None:
    array = np.random.default_rng(0).integers(0, 100, (20, 512, 512, 3), dtype=np.uint8)
    with IsolatedWorker("isolated_targets:double") as worker:
        answer = worker.call(array, 60)
    np.testing.assert_array_equal(answer["twice"], array * 2)
    assert answer["empty"].shape == (0, 512, 512, 3)
    answer["twice"][0] = 1


def test_a_factory_is_built_once_in_the_child() -> None:
    with IsolatedWorker("isolated_targets:Adder", init_args=(100, 5)) as worker:
        assert [worker.call(1, 30), worker.call(2, 30)] == [105, 115]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("isolated_targets:broken_factory", "no such index"),
        ("isolated_targets:absent", "absent"),
        ("isolated_targets:exits", "died while it started"),
    ],
)
def test_a_function_that_cannot_be_built_breaks_the_job_not_the_video(target: str, words: str) -> None:
    with IsolatedWorker(target, init_args=(1,)) as worker, pytest.raises(RuntimeError, match=words):
        worker.call(1, 30)


def test_a_child_killed_while_it_starts_costs_a_try_and_the_next_call_works(tmp_path: Path) -> None:
    with IsolatedWorker("isolated_targets:killed_once", init_args=(str(tmp_path / "flag"),)) as worker:
        with pytest.raises(KilledError, match="SIGKILL while it started") as raised:
            worker.call("fine", 30)
        assert (raised.value.code, raised.value.stage) == (ErrorCode.OUT_OF_MEMORY, Stage.DECODE)
        assert worker.call("fine", 30) == "fine"


def test_a_machine_without_room_for_a_child_costs_a_try(
    worker: IsolatedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as full, pytest.raises(KilledError, match="Cannot allocate memory") as raised:
        full.setattr(subprocess, "Popen", no_room)
        worker.call("fine", 30)
    assert raised.value.code == ErrorCode.OUT_OF_MEMORY
    assert worker.call("fine", 30) == "fine"


def test_a_child_that_is_not_ready_in_time_costs_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    with IsolatedWorker("isolated_targets:act") as worker:
        with monkeypatch.context() as hurried, pytest.raises(KilledError, match="not ready") as raised:
            hurried.setattr(isolation, "START_TIMEOUT_S", 0.0)
            worker.call("fine", 30)
        assert raised.value.code == ErrorCode.DECODE_TIMEOUT
        assert worker.call("fine", 30) == "fine"


def test_the_child_is_kept_between_calls_and_renewed_after_max_calls() -> None:
    with IsolatedWorker("isolated_targets:pid", max_calls=2) as worker:
        pids = [worker.call(None, 30) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_the_child_imports_only_what_its_function_needs() -> None:
    with IsolatedWorker("isolated_targets:modules") as worker:
        loaded = set(worker.call(None, 30))
    assert not loaded & {"ray", "mlflow", "torch", "pytest", "cv2", "av"}


def test_close_ends_the_child_and_a_child_that_died_idle_is_replaced(worker: IsolatedWorker) -> None:
    worker.call("fine", 30)
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    while worker.pid is not None:
        time.sleep(0.01)
    assert worker.call("fine", 30) == "fine"
    second = worker.pid
    assert second is not None and second != first
    worker.close()
    assert worker.pid is None and not _alive(second)


@pytest.mark.parametrize("what", ["idle", "hang in C"])
def test_a_killed_parent_leaves_no_child(targets: Path, what: str) -> None:
    script = f"""
        import sys, threading
        from catalog import isolation
        isolation.GRACE_S = 0.5
        worker = isolation.IsolatedWorker("isolated_targets:act")
        worker.call("fine", 30)
        print(worker.pid, flush=True)
        worker.call({what!r}, 1.0) if {what!r} != "idle" else sys.stdin.read()
    """
    root = Path(__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{targets}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        assert _alive(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
