"""What every job has in common at the shell: flags and --config, exit codes, the cluster, progress."""

import argparse
import contextlib
import dataclasses
import datetime
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import tyro
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from catalog.errors import Broken, Refused

DONE, BROKE, REFUSED, TOO_MANY_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

Config = TypeVar("Config")
RATE_OVER_S = 600.0
"""of blocks that take minutes, more than the last must count"""
console = Console(highlight=False, soft_wrap=True, markup=False)


def run_job(config_type: type[Config], main: Callable[[Config], int], description: str) -> NoReturn:
    """Parse the command line, run ``main`` and exit: 0 done, 1 broke, 2 refused at the door, 3 too many failed,
    130 stopped by Ctrl-C or SIGTERM."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[ConsoleHandler()]
    )
    for stop in (signal.SIGINT, signal.SIGTERM):  # a script's background jobs begin with SIGINT ignored
        signal.signal(stop, signal.default_int_handler)
    try:
        config = parse(config_type, sys.argv[1:], description)
        code = main(config)
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        code = REFUSED
    except Broken as error:
        print(f"the job broke: {error}", file=sys.stderr)
        code = BROKE
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        code = INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("the job broke; the same command goes on where this one ended", file=sys.stderr)
        code = BROKE
    sys.stdout.flush()
    sys.exit(code)


def parse(config_type: type[Config], arguments: list[str], description: str) -> Config:
    """Flags over ``--config FILE.yaml`` over defaults. The file's keys are the flags' names (with - or _)."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    found, flags = finder.parse_known_args(arguments)
    from_file = _flags_of(Path(found.config), config_type) if found.config else []
    given = {flag.split("=")[0].replace("_", "-").replace("--no-", "--") for flag in flags if flag.startswith("--")}
    kept = [group for group in from_file if group[0].replace("--no-", "--") not in given]
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[config_type],
        args=[flag for group in kept for flag in group] + flags,
        description=f"{description}\n\nEvery flag can also be set in a YAML file given with --config; flags win.",
    )


def read_flags(path: Path, flag: str, example: str) -> dict[str, Any]:
    """A YAML file of flags by name (with - or _), as given to ``flag``; name (with -) -> value. Raises Refused."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Refused(f"{flag} {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{flag} {path} is not YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise Refused(f"{flag} {path} holds a {type(content).__name__}, expected flags by name, e.g. {example}")
    return {str(key).replace("_", "-"): value for key, value in (content or {}).items()}


def _flags_of(path: Path, config_type: type[Any]) -> list[list[str]]:
    known = _flag_names(config_type)
    groups = []
    for name, value in read_flags(path, "--config", "max-seconds: 30").items():
        if name not in known:
            raise Refused(f"--config {path}: there is no flag --{name}; flags are {', '.join(sorted(known))}")
        if isinstance(value, bool):
            groups.append([f"--{name}" if value else f"--no-{name}"])
        elif value is not None:
            groups.append([f"--{name}", *(str(v) for v in (value if isinstance(value, list) else [value]))])
    return groups


def _flag_names(config_type: type[Any]) -> set[str]:
    names: set[str] = set()
    for field in dataclasses.fields(config_type):
        nested = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        names |= _flag_names(nested) if isinstance(nested, type) else {field.name.replace("_", "-")}  # pyright: ignore
    return names


def resolved(config: Any) -> dict[str, Any]:
    """The config as a flat dictionary of what is in force: flag -> value."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flat |= resolved(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flat


def print_config(flat: dict[str, Any]) -> None:
    console.print("config: " + ", ".join(f"{name}={value}" for name, value in flat.items()))


@contextlib.contextmanager
def ray_cluster(wait_seconds: float = 300.0) -> Iterator[Mapping[str, float]]:
    """Join the cluster of RAY_ADDRESS (set inside submitted jobs), else start a local one and stop it again.

    Yields the cluster's resources (CPU, GPU, ...). Raises Refused where no node offers a CPU in time.
    """
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray
    import ray.data

    if ray.is_initialized():  # within another job, such as the demo
        yield ray.cluster_resources()
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # workers' logs stay in the session's folder: Ray's own chatter would bury the job's progress
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # of many kinds; a machine with too much to do already raises a plain one
        where = f"no Ray cluster can be joined at RAY_ADDRESS={address}" if address else "Ray cannot be started here"
        raise Refused(f"{where}: {error}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init sets one that ends the process with 15
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        deadline = time.monotonic() + wait_seconds
        while (resources := ray.cluster_resources()).get("CPU", 0) <= 0:
            if time.monotonic() > deadline:
                raise Refused(f"the cluster offered no CPU within {wait_seconds:g} s; start worker nodes first")
            time.sleep(2)
        yield resources
    finally:
        raylets = [] if address else [p for p in psutil.Process().children() if p.name() == "raylet"]
        workers = [worker for raylet in raylets for worker in raylet.children(recursive=True)]
        ray.shutdown()
        end(workers)


def end(processes: list[psutil.Process], grace_seconds: float = 5.0) -> None:
    """Wait until processes have ended, then kill those left: a Ray worker that hangs in its own exit outlives its
    raylet, and nobody else would end it."""
    _, left = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=grace_seconds)


class ConsoleHandler(logging.Handler):
    """Log lines stand above the live line, which they would tear apart."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record))


class ProgressLog:
    """What is done, how fast, what is left and a note, such as of failures: one live line in a terminal; elsewhere (job
    logs) a line at the first news, then at most one every ``every_seconds``, and one at the end."""

    def __init__(self, what: str, total: int, every_seconds: float = 60.0):
        self.every_seconds, self.printed = every_seconds, -float("inf")
        self.bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            _PaceColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            speed_estimate_period=RATE_OVER_S,
            disable=not console.is_terminal,
            expand=True,  # or a long note would take a second line
        )
        self.bar.add_task(what, total=total, note="")
        (self.task,) = self.bar.tasks
        self.bar.start()

    def update(self, done: int, note: str = "") -> None:
        was_finished, now = self.task.finished, time.monotonic()
        self.bar.update(self.task.id, completed=done, note=note)
        is_due = now - self.printed >= self.every_seconds or self.task.finished != was_finished
        if self.bar.disable and is_due:
            self.printed = now
            counted = f"{self.task.description}: {done:,} of {self.task.total:,.0f}"
            console.print(", ".join(filter(None, (counted, pace(self.task), note))))

    def close(self) -> None:
        self.bar.stop()


class _PaceColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(pace(task), no_wrap=True)


def pace(task: Task) -> str:
    """``3.1 a minute, 0:12:04 left``; of a finished task its mean rate and how long it took."""
    elapsed = task.finished_time if task.finished else task.elapsed
    mean = task.completed / elapsed if elapsed else 0.0
    rate = mean if task.finished else task.speed or mean
    if not rate or elapsed is None:
        return ""
    per, unit = next(((s, u) for s, u in ((1, "a second"), (60, "a minute")) if rate * s >= 1), (3600, "an hour"))
    seconds, what = (elapsed, "in all") if task.finished else (((task.total or 0) - task.completed) / rate, "left")
    number = f"{rate * per:,.0f}" if rate * per >= 100 else f"{rate * per:.2g}"
    return f"{number} {unit}, {datetime.timedelta(seconds=round(seconds))} {what}"


class NodesLostError(Exception):
    """Nodes are gone and did not come back; ``left``: the cluster's resources now."""

    def __init__(self, left: Mapping[str, float]):
        super().__init__(left)
        self.left = left


ROUNDING = 1e-3


class CapacityWatch:
    """Interrupts the work, and raises NodesLostError on leaving, when the cluster has had less than ``needed``
    (resource -> amount) for ``grace_seconds``: Ray would wait for ever to put the lost nodes' actors somewhere.
    ``on_cores`` is told at every look how many CPUs there are."""

    def __init__(
        self,
        needed: Mapping[str, float],
        grace_seconds: float,
        poll_seconds: float = 2.0,
        on_cores: Callable[[float], None] = lambda cores: None,
    ):
        self.needed, self.grace_seconds, self.poll_seconds = needed, grace_seconds, poll_seconds
        self.on_cores = on_cores
        self.left: Mapping[str, float] | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "CapacityWatch":
        threading.Thread(target=self._watch, name="capacity", daemon=True).start()
        return self

    def _watch(self) -> None:
        import ray

        enough_at = time.monotonic()
        while not self._ended.wait(self.poll_seconds):
            try:
                there = ray.cluster_resources()
            except Exception:  # the head does not answer: the work will say so
                return
            self.on_cores(there.get("CPU", 0))
            if all(there.get(name, 0) >= amount - ROUNDING for name, amount in self.needed.items()):
                enough_at = time.monotonic()
            elif time.monotonic() - enough_at > self.grace_seconds:
                self.left = there
                os.kill(os.getpid(), signal.SIGINT)
                return

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._ended.set()
        if self.left is not None and isinstance(error, KeyboardInterrupt):
            raise NodesLostError(self.left) from error


class StallWatch:
    """Ends the job when nothing has come out for ``limit_seconds``: a run may be slow, it never hangs."""

    def __init__(self, limit_seconds: float):
        self.limit_seconds = limit_seconds
        self.stalled = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "StallWatch":
        self.alive()
        return self

    def alive(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self.limit_seconds, self._stop)
        self._timer.daemon = True
        self._timer.start()

    def _stop(self) -> None:
        self.stalled = True
        os.kill(os.getpid(), signal.SIGINT)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.stalled and isinstance(error, KeyboardInterrupt):
            raise TimeoutError(
                f"no video was finished for {self.limit_seconds:.0f} s; see the nodes' logs (ray status, ray logs)"
            ) from error
