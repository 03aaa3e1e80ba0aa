"""CPU time of a command and of every process that it starts, workers that detach themselves included (Linux)."""

import os
import subprocess
import threading
import time
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY_S = 0.1


def core_seconds_of(command: list[str], timeout_s: float, log: Path, cwd: Path, env: dict[str, str]) -> float:
    """Run a command to its end; its output goes to ``log``. Returns user + system seconds of its process tree.

    A process counts as far as it was seen, every tenth of a second. Raises RuntimeError with the log's end where
    the command fails, and where it takes longer than ``timeout_s``.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=env)
    tree = _Tree(process.pid)
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
    return sum(tree.ticks.values()) / TICKS_A_SECOND


class _Tree:
    """The descendants of a process and the ticks that each was last seen with."""

    def __init__(self, root: int):
        self.ticks: dict[tuple[int, int], int] = {}
        self.members = {root}
        self.stop = threading.Event()

    def watch(self) -> None:
        while not self.stop.is_set():
            self._look()
            self.stop.wait(SAMPLE_EVERY_S)

    def _look(self) -> None:
        seen = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    # after the name, which may hold anything, up to its closing bracket
                    fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue  # it has just ended
                seen[int(folder.name)] = (int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12]))
        self.members &= seen.keys()  # a number that was given back may be another process next time
        grown = True
        while grown:
            more = {pid for pid, (parent, _, _) in seen.items() if parent in self.members} - self.members
            self.members |= more
            grown = bool(more)
        for pid in self.members:
            _, began, ticks = seen[pid]
            self.ticks[pid, began] = ticks


def cpu_model() -> str:
    """Cores and vector units in words, without the machine's name."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags.split()]
    return f"{len(os.sched_getaffinity(0))} vCPU, {' '.join(units) or 'no AVX2'}; {time.strftime('%Y-%m-%d')}"
