"""Around every request: an id, a line in the log, the API key, and a bound on how many there are at a time."""

import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from residency.server.logs import log
from residency.server.problems import Problem, Refused, problem_of

OPEN_PATHS = frozenset({"/health", "/metrics", "/openapi.json"})  # for whoever watches the server: no key is asked for
_REQUEST_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
_NO_KEY = Problem(
    status=401,
    message="This server asks for an API key; send it as 'Authorization: Bearer KEY'.",
    type="authentication_error",
    code="invalid_api_key",
)


class Gate:
    """The outermost layer of the application. What escapes from the inner ones becomes an error in OpenAI's shape."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], max_requests: int) -> None:
        self._app = app
        self._api_keys = [key.encode() for key in api_keys]
        self._max_requests = max_requests
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        visit = _Visit(scope, headers)
        scope["state"] = {**scope.get("state", {}), "request_id": visit.request_id, "log": visit.fields}
        self._num_requests += 1
        try:
            self._admit(scope, headers)
            await self._app(scope, receive, visit.sending(send))
        except Exception as error:
            await visit.answer_problem(error, receive, send)
        finally:
            self._num_requests -= 1
            visit.log()

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return
        if self._num_requests > self._max_requests:
            raise Refused(
                Problem(
                    status=503,
                    message=f"{self._max_requests} requests are open, which is the most; try again in a second.",
                    type="server_error",
                    code="too_many_requests_open",
                    retry_after_seconds=1,
                )
            )
        if not self._api_keys:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(given.strip(), key) for key in self._api_keys]
        if kind.lower() != b"bearer" or not any(matches):
            raise Refused(_NO_KEY)


class _Visit:
    """What the log says of one request."""

    def __init__(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        self.fields: dict[str, Any] = {"request_id": self.request_id, "method": scope["method"], "path": scope["path"]}
        self._status: int | None = None
        self._started = time.perf_counter()

    def sending(self, send: Send) -> Send:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = self.request_id
            await send(message)

        return send_with_id

    async def answer_problem(self, error: Exception, receive: Receive, send: Send) -> None:
        """Send what went wrong, if nothing has been sent; the log has it in either case."""
        problem = problem_of(error)
        self.fields["problem"] = problem.message
        if problem.status == 500:
            log("fault", level=logging.ERROR, error=error, **self.fields)
        if self._status is None:
            response = JSONResponse(problem.body, problem.status, problem.headers)
            await response({"type": "http"}, receive, self.sending(send))

    def log(self) -> None:
        elapsed = round(time.perf_counter() - self._started, 6)
        log("request", **self.fields, status=self._status, seconds=elapsed)
