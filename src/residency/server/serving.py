"""Listens: uvicorn around the application, with an end that finishes what was begun."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from residency.engine.service import Service
from residency.errors import UsageError
from residency.server.app import App
from residency.server.protocol import BoundedProtocol

_KEEP_ALIVE_SECONDS = 30
_MOST_CONNECTIONS = 1024  # one more is told 503 and closed
_BACKLOG = 2048  # connections that nobody has accepted yet
_SWITCH_SECONDS = 0.0005  # how long the event loop may keep the interpreter from the thread that computes


class _Server(uvicorn.Server):
    """Ends as it was asked to, where uvicorn would then die of the signal; a second Ctrl-C ends at once."""

    def __init__(self, config: uvicorn.Config, *, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_end = on_end

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._on_end()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def bound_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any that is free. UsageError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle's delay on
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{host}:{port} cannot be listened at: {reason}; give another --host or --port.") from error
    return bound


def listen(bound: socket.socket) -> str:
    """Let clients connect, though they wait for their answers until `serve`. The address as they write it."""
    bound.listen(_BACKLOG)
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: App, service: Service, bound: socket.socket, *, drain_seconds: float) -> None:
    """Answer until a signal says to end; then take no more, and give what runs `drain_seconds` to complete."""

    def end() -> None:
        app.is_ending = True

    config = uvicorn.Config(
        app.application,
        http=BoundedProtocol,
        limit_concurrency=_MOST_CONNECTIONS,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    sys.setswitchinterval(_SWITCH_SECONDS)
    asyncio.run(_Server(config, on_end=end).serve(sockets=[bound]))
    service.drain(drain_seconds)
