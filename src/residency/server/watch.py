"""What is observed of each request: for the metrics, and for its line in the log."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from residency.server.choices import Delta, Usage


class Observer(Protocol):
    """Where observations go."""

    def first_token(self, seconds: float) -> None:
        """From a request's arrival to its first token."""

    def between_tokens(self, seconds: float) -> None:
        """From one piece of an answer to the next."""

    def ended(self, reason: str, seconds: float, usage: Usage) -> None:
        """A request has ended: with its answers' finish reason, or as cancelled or failed."""


class Watch:
    """The clock of one request."""

    def __init__(self, observer: Observer, fields: dict[str, Any]) -> None:
        """fields: of the request's line in the log; what is learnt is added to them."""
        self._observer = observer
        self._fields = fields
        self._started = time.perf_counter()
        self._last: dict[int, float] = {}
        self._usage = Usage(prompt_tokens=0)
        self._reason: str | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = self._reason or ("cancelled" if error is None or not isinstance(error, Exception) else "error")
        usage = self._usage
        self._fields |= {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish_reason": reason,
        }
        self._observer.ended(reason, time.perf_counter() - self._started, usage)

    def used(self, usage: Usage) -> None:
        """So many tokens, when it ends."""
        self._usage = usage

    def saw_text(self, index: int) -> None:
        """An answer has grown by text alone, and not for the first time."""
        now = time.perf_counter()
        self._observer.between_tokens(now - self._last[index])
        self._last[index] = now

    def saw(self, deltas: Sequence[Delta]) -> None:
        """Answers have grown."""
        now = time.perf_counter()
        if not self._last and deltas:
            self._observer.first_token(now - self._started)
            self._fields["first_token_seconds"] = round(now - self._started, 6)
        for delta in deltas:
            last = self._last.get(delta.index)
            if last is not None:
                self._observer.between_tokens(now - last)
            self._last[delta.index] = now
            self._reason = delta.finish_reason or self._reason


class Unobserved:
    """An observer that keeps nothing."""

    def first_token(self, seconds: float) -> None:
        """See Observer."""

    def between_tokens(self, seconds: float) -> None:
        """See Observer."""

    def ended(self, reason: str, seconds: float, usage: Usage) -> None:
        """See Observer."""
