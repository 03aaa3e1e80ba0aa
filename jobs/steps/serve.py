"""What jobs.serve does."""

import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from catalog.errors import Refused
from jobs.command import DONE, console, print_config, resolved
from jobs.serve import ServeConfig
from jobs.steps.pages import PageMaker, check_limits
from jobs.steps.scored import ScoredFolder

HOST = "127.0.0.1"
ASKED_AS = [HOST, "localhost"]
"""host names that are answered: another site's script that has its name point here is not"""
GRACE_S = 5


def main(config: ServeConfig) -> int:
    print_config(resolved(config))
    check_limits(config.limits)
    with _listening(config.port) as listener, _maker(config) as maker:
        server = uvicorn.Server(uvicorn.Config(explorer(maker), log_level="warning", timeout_graceful_shutdown=GRACE_S))
        console.print(f"http://{HOST}:{listener.getsockname()[1]}/    Ctrl-C ends it")
        server.run(sockets=[listener])
    return DONE


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # who comes before the server runs waits
    except (OSError, OverflowError) as error:
        listener.close()
        raise Refused(f"--port {port} cannot be used: {error}; give another") from error
    return listener


def _maker(config: ServeConfig) -> PageMaker:
    return PageMaker(ScoredFolder.read(config.scores), config.videos, config.products, config.limits)


def explorer(maker: PageMaker) -> Starlette:
    """/ is the catalogue, /video?id=... a video's page. An id is looked up among the scores, never taken for a path."""
    one_at_a_time = threading.Lock()  # the child that reads videos answers one call at a time
    home = maker.catalogue(prefix="video?id=")

    def catalogue(request: Request) -> Response:
        return HTMLResponse(home)

    def video(request: Request) -> Response:
        try:
            with one_at_a_time:
                return HTMLResponse(maker.page_of(request.query_params.get("id", ""), home="./"))
        except Refused as refusal:
            return PlainTextResponse(str(refusal), status_code=404)

    routes = [Route("/", catalogue), Route("/video", video)]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=ASKED_AS)])
