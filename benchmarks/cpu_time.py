"""CPU time of a command and of every process that it starts, workers that detach themselves included."""

import collections
import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

SAMPLE_EVERY_S = 0.25


class CoreTime:
    """User + system seconds of a process and its descendants, each as far as it was seen, every quarter of a second."""

    def __init__(self, root: psutil.Process):
        self.begun = time.monotonic()
        self.members = {root}
        self.seen: dict[psutil.Process, tuple[str, float]] = {}
        self.course: list[tuple[float, dict[str, float]]] = []
        """seconds since the start, and what each command line had taken by then"""
        self.stop = threading.Event()

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.seen.values())

    def watch(self) -> None:
        while not self.stop.is_set():
            self._look()
            self.stop.wait(SAMPLE_EVERY_S)

    def _look(self) -> None:
        # one pass over all processes a look, for what looks costs the run that it looks at; parents come first
        known = {process.pid for process in self.members}
        for process in psutil.process_iter(["ppid"]):
            if process.info["ppid"] in known:  # pyright: ignore[reportAttributeAccessIssue]
                self.members.add(process)  # and stays one when its parent has gone
                known.add(process.pid)
        for process in self.members:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                spent = process.cpu_times()
                self.seen[process] = (" ".join(process.cmdline()).strip(), spent.user + spent.system)
        so_far: collections.defaultdict[str, float] = collections.defaultdict(float)
        for name, seconds in self.seen.values():
            so_far[name] += seconds
        self.course.append((time.monotonic() - self.begun, dict(so_far)))


def core_time_of(command: list[str], timeout_s: float, log: Path, cwd: Path, env: dict[str, str]) -> CoreTime:
    """Run a command to its end; its output goes to ``log``.

    Raises RuntimeError with the log's end where the command fails, and where it takes longer than ``timeout_s``.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=env)
    tree = CoreTime(psutil.Process(process.pid))
    watcher = threading.Thread(target=tree.watch, daemon=True)
    watcher.start()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        code = f"no end within {timeout_s:g} s"
    finally:
        tree.stop.set()
        watcher.join()
    if code != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)}: {code}\n{end}")
    return tree


def cpu_model() -> str:
    """Cores and vector units in words, without the machine's name."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags.split()]
    return f"{len(os.sched_getaffinity(0))} vCPU, {' '.join(units) or 'no AVX2'}; {time.strftime('%Y-%m-%d')}"
