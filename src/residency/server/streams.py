"""Answers over HTTP: server-sent events, and work that ends when nobody waits for it any more."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from json.encoder import encode_basestring
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from residency.server.problems import problem_of

Write = Callable[[bytes], Awaitable[None] | None]  # None where all is done, else what has to be awaited
FLOW = "residency.flow"  # the server's extension of ASGI: "write_now" sends a part of a body, or says that it cannot
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx sends events on as they come
]


def json_bytes(value: object) -> bytes:
    """JSON as it is sent."""
    return _encode(value).encode("utf-8", "replace")


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work. ClientDisconnect, with the work cancelled, if the client goes away before it is done."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def send_json(send: Send, value: object) -> None:
    """A whole answer."""
    body = json_bytes(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await _send(send, body, more=False)


def text_bytes(text: str) -> bytes:
    """A text as JSON, which it is within what is sent."""
    return encode_basestring(text).encode("utf-8", "replace")


def event_bytes(value: object) -> bytes:
    """An object as a server-sent event."""
    return b"data: %b\n\n" % json_bytes(value)


async def send_events(send: Send, bodies: "Bodies", stream: Callable[[Write], Awaitable[None]]) -> None:
    """Server-sent events that `stream` writes, and [DONE] at the end.

    Nothing is sent before the first: an error until then is raised as it is, and later it is an event too.
    """
    has_begun = False

    async def begin(data: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await _send(send, data, more=True)

    def write(data: bytes) -> Awaitable[None] | None:
        nonlocal has_begun
        if has_begun:
            return bodies.write(data)
        has_begun = True
        return asyncio.ensure_future(begin(data))

    try:
        await stream(write)
    except Exception as error:
        if has_begun:
            await _send(send, event_bytes(problem_of(error).body), more=False)
        raise
    await _send(send, b"data: [DONE]\n\n", more=False)


class Bodies:
    """Writes parts of a body to a connection."""

    def __init__(self, send: Send, write_now: Callable[[bytes], bool] | None) -> None:
        """send: the server's own. write_now: sends a part at once, or says that the client has to be waited for."""
        self._send = send
        self._write_now = write_now

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Send at once; or, where the client has to be waited for, when it has read."""
        if self._write_now is not None and self._write_now(data):
            return None
        return asyncio.ensure_future(_send(self._send, data, more=True))


class DirectBodies:
    """The outermost layer: hands the way to the server's own `send` on, as the state's "bodies". What a stream sends
    for each token need not pass the layers inside, which look at how an answer begins and at nothing else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        bodies = Bodies(send, scope.get("extensions", {}).get(FLOW, {}).get("write_now"))
        await self._app({**scope, "state": {**scope.get("state", {}), "bodies": bodies}}, receive, send)


async def _send(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
