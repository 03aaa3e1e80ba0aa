"""A real S3 server on the loopback that can be told to misbehave: moto's, behind a small WSGI middleware."""

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Application = Callable[[dict[str, Any], Callable], Iterable[bytes]]
Fault = Callable[[Application, dict[str, Any], Callable], Iterable[bytes]]


class FaultyS3:
    """Each fault planned for an object's path spoils one request for it; the last one stays where ``for_ever``."""

    def __init__(self, application: Application):
        self.application, self.url = application, ""
        self.planned: dict[str, deque[Fault]] = defaultdict(deque)
        self.for_ever: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, Range)"""

    def plan(self, path: str, *faults: Fault, for_ever: bool = False) -> None:
        self.planned[path].extend(faults)
        if for_ever:
            self.for_ever.add(path)

    def asked(self, path: str) -> list[tuple[str, str]]:
        return [(method, its_range) for method, its_path, its_range in self.requests if its_path == path]

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.requests.append((environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE", "")))
        faults = self.planned[path]
        if not faults:
            return self.application(environ, start_response)
        fault = faults[0] if path in self.for_ever and len(faults) == 1 else faults.popleft()
        return fault(self.application, environ, start_response)


def answers(status: str, code: str) -> Fault:
    """An S3 error in place of the answer; HEAD has no body to say which."""

    def fault(_application: Application, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        body = f"<Error><Code>{code}</Code><Message>planned by a test</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    return fault


def healthy(application: Application, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
    return application(environ, start_response)


def cut(application: Application, environ: dict[str, Any], start_response: Callable) -> Iterator[bytes]:
    """The connection ends in the middle of the body."""
    body = b"".join(application(environ, start_response))
    yield body[: len(body) // 2]
    raise ConnectionResetError


def slow(application: Application, environ: dict[str, Any], start_response: Callable) -> Iterator[bytes]:
    """A byte now and then."""
    for byte in b"".join(application(environ, start_response)):
        yield bytes([byte])
        time.sleep(0.2)


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    store = FaultyS3(DomainDispatcherApplication(create_backend_app))  # pyright: ignore
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_Quiet)  # pyright: ignore
    store.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join(10)
