"""The child's side of `catalog.isolation`: builds one function and answers until its pipe closes."""

import ctypes
import faulthandler
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pkgutil import resolve_name
from typing import Any

from catalog.errors import ErrorCode, Stage, VideoError

MAX_REPLY_BYTES = 1 << 30
OPENCV_NO_MEMORY = -4
PR_SET_PDEATHSIG = 1


def send(connection: Connection, message: Any) -> None:
    """Pickles `message`; the data of its arrays follows out of band, uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    if (total := len(head) + sum(len(view) for view in views)) > MAX_REPLY_BYTES:
        raise ValueError(f"a message of {total} bytes is larger than the {MAX_REPLY_BYTES} that are allowed")
    connection.send_bytes(pickle.dumps((head, [len(view) for view in views])))
    for view in views:
        if len(view):
            connection.send_bytes(view)


def receive(connection: Connection) -> Any:
    """The next message, its arrays writable. Raises EOFError once the other side is gone."""
    head, sizes = pickle.loads(connection.recv_bytes(MAX_REPLY_BYTES))
    if sum(sizes) > MAX_REPLY_BYTES:
        raise OSError("message too large")
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        if buffer:
            connection.recv_bytes_into(buffer)
    return pickle.loads(head, buffers=buffers)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or getattr(error, "code", None) == OPENCV_NO_MEMORY


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _build(target: str, init_args: tuple[Any, ...] | None) -> Callable[[Any], Any]:
    function = resolve_name(target)
    return function if init_args is None else function(*init_args)


def _answer(function: Callable[[Any], Any], argument: Any, stage: Stage) -> tuple[str, Any]:
    try:
        return "result", function(argument)
    except VideoError as error:
        return "error", error
    except (Exception, SystemExit) as error:
        code = ErrorCode.OUT_OF_MEMORY if _is_out_of_memory(error) else ErrorCode.INTERNAL
        return "error", VideoError(code, _describe(error), stage)


def main(descriptor: int) -> None:
    faulthandler.enable()
    with suppress(AttributeError):  # not Linux: it ends at its next look at the pipe, or by its alarm
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = Connection(descriptor)
    target, init_args, memory_limit_bytes, stage = receive(connection)
    try:
        function = _build(target, init_args)
    except Exception as error:
        send(connection, ("broken", _describe(error)))
        return
    if memory_limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))
    send(connection, ("ready", None))
    while True:
        try:
            argument, limit_s = receive(connection)
        except EOFError:
            return
        # The kernel's own action on SIGALRM ends even a child stuck in C, should its parent be gone.
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        reply = _answer(function, argument, stage)
        try:
            send(connection, reply)
        except BrokenPipeError:
            return
        except Exception as error:  # a result that cannot be pickled, or is too large
            send(connection, ("error", VideoError(ErrorCode.INTERNAL, _describe(error), stage)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        del argument, reply


if __name__ == "__main__":
    main(int(sys.argv[1]))
