"""The engine's service, seen from the event loop: requests go in, events of their answers come out as they happen."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

from residency.engine.generation import GenerationOptions, TokenEvent
from residency.errors import ServiceError
from residency.server.problems import Problem, Refused


class Submits(Protocol):
    """What the server asks of the engine's service; all of it may be called from any thread."""

    def submit(
        self, prompt_ids: Sequence[int], options: GenerationOptions, listener: Callable[[TokenEvent], None]
    ) -> int:
        """Take a request in and give its number; its events are told to `listener`, in the service's thread."""

    def cancel(self, request_id: int) -> None:
        """Forget a request; nothing happens for one that has ended."""

    def finish(self, request_id: int, answer: int) -> None:
        """End one answer that has begun; nothing happens for one that has ended."""

    @property
    def failure(self) -> BaseException | None:
        """Why the service has failed; None while it is well."""


class Mailbox:
    """Events from the service's thread to the event loop, which is woken once for all that came in the meantime."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._arrived: list[tuple[Generation, int, TokenEvent]] = []

    def post(self, generation: "Generation", part: int, event: TokenEvent) -> None:
        """Called in any thread."""
        with self._lock:
            self._arrived.append((generation, part, event))
            if len(self._arrived) > 1:
                return
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            pass  # the event loop has ended, and with it whoever listened

    def _deliver(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for generation, part, event in arrived:
            generation.take(part, event)


class Generation:
    """The answers to one HTTP request: of several prompts, or several of one."""

    def __init__(self, service: Submits) -> None:
        self._service = service
        self.request_ids: list[int] = []  # of each submission
        self._events: deque[tuple[int, TokenEvent]] = deque()
        self._arrival = asyncio.Event()

    def take(self, part: int, event: TokenEvent) -> None:
        """An event of the submission `part`."""
        self._events.append((part, event))
        self._arrival.set()

    def finish(self, part: int, answer: int) -> None:
        """Nothing more is wanted of one answer: it ends, and its pages are free."""
        self._service.finish(self.request_ids[part], answer)

    async def events(self) -> list[tuple[int, TokenEvent]]:
        """All events since the last call, each with the number of its submission; waits for one. Refused if an answer
        has failed.
        """
        await self._arrival.wait()
        self._arrival.clear()
        arrived = list(self._events)
        self._events.clear()
        for _, event in arrived:
            if event.error is not None:
                raise Refused(_failure(event.error))
        return arrived


class Generator:
    """Starts generations in the service and ends them."""

    def __init__(self, service: Submits) -> None:
        self._service = service
        self._mailbox: Mailbox | None = None

    def require_service(self) -> None:
        """ServiceError if the service has failed."""
        if self._service.failure is not None:
            raise ServiceError(f"the service has failed ({self._service.failure}); start it anew.")

    @asynccontextmanager
    async def started(
        self, submissions: Sequence[tuple[Sequence[int], GenerationOptions]]
    ) -> AsyncIterator[Generation]:
        """The answers to all submissions. What still runs when the block is left is cancelled, and its pages are free.

        Raises what `submit` does; then none of them runs.
        """
        if self._mailbox is None:
            self._mailbox = Mailbox(asyncio.get_running_loop())
        generation = Generation(self._service)
        try:
            for part, (tokens, options) in enumerate(submissions):
                listener = partial(self._mailbox.post, generation, part)
                generation.request_ids.append(self._service.submit(tokens, options, listener))
            yield generation
        finally:
            for request_id in generation.request_ids:
                self._service.cancel(request_id)


def _failure(reason: str) -> Problem:
    message = f"The answer could not be completed: {reason.rstrip('.')}."
    return Problem(status=500, message=message, type="server_error", code="generation_failed")
