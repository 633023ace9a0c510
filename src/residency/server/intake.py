"""Bodies of requests: bounded one by one and together, for what strangers send lies in memory too."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from residency.server.problems import Problem, Refused
from residency.units import binary_bytes

_BASE_BYTES = 64 << 10  # what is no prompt: options, a schema
_BYTES_PER_CONTEXT_TOKEN = 8  # a token as text seldom takes more, nor as a number and a comma
OPEN_BODIES_BYTES = 1 << 20  # of all requests that have not been answered, but always room for one


def body_bytes_for(context_tokens: int) -> int:
    """Bytes of a body at most: a bound that hardly a prompt which fits into the context meets."""
    return _BASE_BYTES + _BYTES_PER_CONTEXT_TOKEN * context_tokens


class Intake:
    """Reads bodies."""

    def __init__(self, *, body_bytes: int, open_bytes: int = OPEN_BODIES_BYTES) -> None:
        """At most `body_bytes` of one request, and about `open_bytes` of all that are open."""
        self._body_bytes = body_bytes
        self._open_limit = max(open_bytes, body_bytes)
        self._open_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The request's body; it counts as open until the block is left.

        Refused if it is too large, or all together are; ClientDisconnect if it never comes whole.
        """
        parts: list[bytes] = []
        held_bytes = 0
        try:
            if _announced_bytes(request) > self._body_bytes:
                raise self._too_large()
            async for part in request.stream():
                held_bytes += len(part)
                self._open_bytes += len(part)
                if held_bytes > self._body_bytes:
                    raise self._too_large()
                if self._open_bytes > self._open_limit:
                    raise Refused(_TOO_MUCH)
                parts.append(part)
            yield b"".join(parts)
        finally:
            self._open_bytes -= held_bytes

    def _too_large(self) -> Refused:
        message = f"The body is larger than {binary_bytes(self._body_bytes)}, which is the most; send a shorter prompt."
        return Refused(Problem(status=413, message=message, code="request_too_large"))


def _announced_bytes(request: Request) -> int:
    """What the client says that the body has; 0 where it does not say."""
    announced = request.headers.get("content-length", "0")
    return int(announced) if announced.isdecimal() else 0


_TOO_MUCH = Problem(
    status=503,
    message="The requests that are open hold as much as they may; try again in a second.",
    type="server_error",
    code="overloaded",
    retry_after_seconds=1,
)

__all__ = ["OPEN_BODIES_BYTES", "ClientDisconnect", "Intake", "body_bytes_for"]
