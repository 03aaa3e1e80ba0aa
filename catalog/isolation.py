"""A supervised child process: a function on untrusted input whose crash or hang costs that one call.

The child is a clean interpreter that imports only what its function needs. It protects from accidents of
decoders, not from attackers: its replies are unpickled.
"""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from catalog.errors import ErrorCode, KilledError, Stage, VideoError
from catalog.isolated_child import receive, send

GRACE_S = 5.0
START_TIMEOUT_S = 120.0
SEND_TIMEOUT_S = 60
STDERR_KEPT_BYTES = 1 << 14
NO_ROOM = (errno.ENOMEM, errno.EAGAIN)


class IsolatedWorker:
    """A child process that answers one call at a time; it starts on the first call and again after a failure.

    `target`: "package.module:function", called in the child with each call's argument. With `init_args` the
    target is a factory instead: the child calls it once with these and uses the function that it returns.
    `memory_limit_bytes`: RLIMIT_DATA of the child, set once the function is built. `stage`: the stage that
    its errors carry. `max_calls`: a fresh child after so many calls, for functions that leak.
    Arguments and results are pickled (arrays without a copy; at most 1 GiB). The child uses one thread in
    OpenMP and BLAS. Not thread-safe: one worker, one thread. Close it, or use it in `with`.
    """

    def __init__(
        self,
        target: str,
        init_args: tuple[Any, ...] | None = None,
        memory_limit_bytes: int | None = None,
        stage: Stage = Stage.DECODE,
        max_calls: int | None = None,
    ):
        self.target, self.init_args, self.memory_limit_bytes = target, init_args, memory_limit_bytes
        self.stage, self.max_calls = stage, max_calls
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._noise: _Tail | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._calls = 0

    def call(self, argument: Any, timeout_s: float) -> Any:
        """The function's result for `argument`.

        Raises VideoError: the function's own; decode_timeout (the child was killed after `timeout_s`, which
        does not count the child's start); decode_crash (it died, by which signal); out_of_memory (KilledError where
        it was killed from outside); internal
        (another exception: type, message, last line of code). KilledError also where the machine let no child start.
        RuntimeError: the function cannot be built.
        """
        if self.max_calls is not None and self._calls >= self.max_calls:
            self.close()
        if self.pid is None or self._connection is None or self._connection.poll(0):
            self._start()  # an idle child says nothing: what can be read is its end
        assert self._connection is not None
        self._calls += 1
        try:
            try:
                send(self._connection, (argument, timeout_s + GRACE_S))
                if not self._connection.poll(timeout_s):
                    self._timed_out(timeout_s)
                kind, value = receive(self._connection)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self._died(timeout_s)
            except BlockingIOError:
                self._timed_out(timeout_s)
        except BaseException:  # also Ctrl-C: a reply that comes late must not answer the next call
            self.close()
            raise
        if kind == "error":
            if value.code == ErrorCode.OUT_OF_MEMORY:
                self.close()  # what it still holds is unknown
            raise value
        return value

    @property
    def pid(self) -> int | None:
        """The child's process id, None while none runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def close(self) -> None:
        """Ends the child and its descendants; the next call starts a fresh one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            if self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # the kernel holds it, in a dead mount for one: leave it behind
                self._process.wait(GRACE_S)
        if self._scratch is not None:
            self._scratch.cleanup()
        self._process = self._connection = self._noise = self._scratch = None
        self._calls = 0

    def __enter__(self) -> "IsolatedWorker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _start(self) -> None:
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            # A child that stops reading must not hold its parent in a write.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
            environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | os.environ
            # a child that is killed leaves its temporary files behind; its folder goes with it
            self._scratch = tempfile.TemporaryDirectory(prefix="isolated-", ignore_cleanup_errors=True)
            environment["TMPDIR"] = self._scratch.name
            environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "catalog.isolated_child", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    process_group=0,
                )
            except OSError as error:
                ours.close()
                if error.errno not in NO_ROOM:
                    raise
                how = f"no decoding process could be started: {error.strerror}"
                raise KilledError(ErrorCode.OUT_OF_MEMORY, how, self.stage) from error
        assert self._process.stdout is not None
        self._noise = _Tail(self._process.stdout)
        self._connection = Connection(ours.detach())
        try:
            self._hand_over()
        except BaseException:
            self.close()
            raise

    def _hand_over(self) -> None:
        """Tells the new child what it is for and waits until its function is built."""
        assert self._connection is not None and self._noise is not None
        try:
            send(self._connection, (self.target, self.init_args, self.memory_limit_bytes, self.stage))
            if not self._connection.poll(START_TIMEOUT_S):
                how = f"the decoding process was not ready after {START_TIMEOUT_S:g} s; killed"
                raise KilledError(ErrorCode.DECODE_TIMEOUT, how, self.stage)
            kind, value = receive(self._connection)
        except (EOFError, OSError) as error:
            self._died_early(error)
        if kind == "broken":
            raise RuntimeError(f"{self.target} cannot be built in a child process: {value}")

    def _died_early(self, error: Exception) -> NoReturn:
        """A signal may hit any child; one that exits on its own would do so at every video."""
        assert self._process is not None and self._noise is not None
        status = 0
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(GRACE_S)
        if status >= 0:
            raise RuntimeError(f"{self.target} died while it started: {self._noise.text()}") from error
        code = ErrorCode.OUT_OF_MEMORY if status == -signal.SIGKILL else ErrorCode.DECODE_CRASH
        how = f"the decoding process was ended by {signal.Signals(-status).name} while it started"
        raise KilledError(code, f"{how}. {self._noise.text()}".strip(), self.stage) from error

    def _timed_out(self, timeout_s: float) -> NoReturn:
        raise VideoError(ErrorCode.DECODE_TIMEOUT, f"no answer after {timeout_s:g} s; killed", self.stage)

    def _died(self, timeout_s: float) -> NoReturn:
        assert self._process is not None and self._noise is not None
        try:
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            how = "the decoding process closed its connection but does not end"
            raise VideoError(ErrorCode.DECODE_CRASH, how, self.stage) from None
        noise = self._noise.text()
        if status == -signal.SIGALRM:
            self._timed_out(timeout_s)
        if status == -signal.SIGKILL or "bad_alloc" in noise:
            kind = KilledError if status == -signal.SIGKILL else VideoError
            raise kind(ErrorCode.OUT_OF_MEMORY, "the decoding process ran out of memory", self.stage)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        raise VideoError(ErrorCode.DECODE_CRASH, f"the decoding process {how}. {noise}".strip(), self.stage)


class _Tail:
    """Reads a pipe to its end, so that its writer never waits, and keeps the last lines."""

    def __init__(self, pipe: IO[bytes]):
        self._kept = b""
        self._reader = threading.Thread(target=self._drain, args=(pipe,), daemon=True)
        self._reader.start()

    def _drain(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self._kept = (self._kept + chunk)[-STDERR_KEPT_BYTES:]

    def text(self) -> str:
        self._reader.join(1.0)
        lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines() if line.strip()]
        crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
        # faulthandler's dump: a title, the thread, then the frames, the innermost first.
        return " | ".join(lines[max(0, crash - 3) : crash] + lines[crash + 2 : crash + 4])[-600:]
