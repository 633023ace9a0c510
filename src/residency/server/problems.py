"""Whatever goes wrong, in the shape in which OpenAI's API says it. A client never sees a traceback."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from typing_extensions import TypedDict  # as pydantic wants it before Python 3.12

from residency.errors import ContextError, QueueFullError, ResidencyError, ServiceError

_MOST_CHARACTERS = 1000  # of a sentence that repeats what a client sent


class Described(TypedDict):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ProblemBody(TypedDict):
    """The body of every answer that is not 2xx."""

    error: Described


_RESTART_SECONDS = 10  # after which a server that ends may have been started again


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a request has no answer."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_seconds: int | None = None

    @property
    def body(self) -> ProblemBody:
        """As it is sent."""
        message = self.message[:_MOST_CHARACTERS]
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body: when to come back."""
        return {} if self.retry_after_seconds is None else {"retry-after": str(self.retry_after_seconds)}


class Refused(Exception):
    """A request that is answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: Exception) -> Problem:
    """How a client hears of `error`; what is none of its business is an internal error."""
    match error:
        case Refused():
            return error.problem
        case ValidationError():
            return _invalid(error)
        case QueueFullError():
            return _unavailable(error, "queue_full", error.retry_after_seconds)
        case ServiceError():
            return _unavailable(error, "unavailable", _RESTART_SECONDS)
        case ContextError():
            return Problem(status=400, message=str(error), param="messages", code="context_length_exceeded")
        case ResidencyError():
            return Problem(status=400, message=str(error))
    return Problem(
        status=500,
        message="The server failed at this request; its log says why, under this request's id.",
        type="server_error",
        code="internal_error",
    )


def _unavailable(error: ResidencyError, code: str, wait_seconds: int) -> Problem:
    return Problem(
        status=503, message=str(error), type="server_error", code=code, retry_after_seconds=max(1, wait_seconds)
    )


def _invalid(error: ValidationError) -> Problem:
    """The first thing that does not hold: the shallowest, for a union reports every branch."""
    found: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return Problem(status=400, message=f"The body is not JSON: {first['msg']}.", code="invalid_json")
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "is not a field that this server knows; leave it away"
    subject = f"'{place}': " if place else ""
    return Problem(status=400, message=f"{subject}{what}.", param=place or None, code="invalid_value")
