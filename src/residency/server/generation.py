"""The engine's service, seen from the event loop: requests go in, events of their answers come out as they happen."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from residency.engine.generation import GenerationOptions, TokenEvent
from residency.errors import ServiceError
from residency.server.doorbell import Doorbell
from residency.server.problems import Problem, Refused


class Submits(Protocol):
    """What the server asks of the engine's service; all of it may be called from any thread."""

    def submit(
        self, prompt_ids: Sequence[int], options: GenerationOptions, listener: Callable[[Sequence[TokenEvent]], None]
    ) -> int:
        """Take a request in and give its number; its events are told to `listener`, in the service's thread, a step's
        all at once.
        """

    def cancel(self, request_id: int) -> None:
        """Forget a request; nothing happens for one that has ended."""

    def finish(self, request_id: int, answer: int) -> None:
        """End one answer that has begun; nothing happens for one that has ended."""

    @property
    def failure(self) -> BaseException | None:
        """Why the service has failed; None while it is well."""


PartEvent = tuple[int, TokenEvent]  # with the number of its submission
Take = Callable[[Sequence[PartEvent]], Awaitable[None] | None]


class Generation:
    """The answers to one HTTP request: of several prompts, or several of one."""

    def __init__(self, service: Submits) -> None:
        self._service = service
        self.request_ids: list[int] = []  # of each submission
        self._events: list[PartEvent] = []
        self._reader: _Reader | None = None

    def finish(self, part: int, answer: int) -> None:
        """Nothing more is wanted of one answer: it ends, and its pages are free."""
        self._service.finish(self.request_ids[part], answer)

    async def read(self, take: Take, *, until: Callable[[], bool]) -> None:
        """Hand all events to `take`, those of a step at once, until `until` is true of what it has taken.

        They are taken in the very call that brings them, for waking a task costs as much as writing a token. Where
        `take` returns something to wait for, such as a client that reads slowly, events gather meanwhile. What `take`
        raises is raised here; Refused if an answer has failed.
        """
        while not until():
            self._reader = _Reader(take, until, asyncio.get_running_loop().create_future())
            events, self._events = self._events, []
            self.hear(events)
            pending = await self._reader.pause
            if pending is not None:
                await pending

    def hear(self, events: list[PartEvent]) -> None:
        """Let events be taken: now, or when nobody is waited for any more."""
        reader = self._reader
        if reader is None or reader.pause.done():
            self._events += events
            return
        try:
            for _, event in events:
                if event.error is not None:
                    raise Refused(_failure(event.error))
            pending = reader.take(events) if events else None
            if pending is not None or reader.until():
                reader.pause.set_result(pending)
        except Exception as error:
            reader.pause.set_exception(error)


class _Reader(NamedTuple):
    """Who reads a generation, up to the next time that he waits."""

    take: Take
    until: Callable[[], bool]
    pause: asyncio.Future[Awaitable[None] | None]


class Generator:
    """Starts generations in the service and ends them. The service's thread wakes the event loop once a step."""

    def __init__(self, service: Submits) -> None:
        self._service = service
        self._places: dict[int, tuple[Generation, int]] = {}  # by request: the generation and its submission
        self._told: deque[Sequence[TokenEvent]] = deque()  # by the service's thread
        self._bell: Doorbell | None = None

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
        loop = asyncio.get_running_loop()
        if self._bell is None or self._bell.loop is not loop:
            self._bell = Doorbell(loop, self._deliver)
        generation = Generation(self._service)
        try:
            for part, (tokens, options) in enumerate(submissions):
                request_id = self._service.submit(tokens, options, self._post)
                self._places[request_id] = generation, part
                generation.request_ids.append(request_id)
            yield generation
        finally:
            for request_id in generation.request_ids:
                del self._places[request_id]
                self._service.cancel(request_id)

    def _post(self, events: Sequence[TokenEvent]) -> None:
        """Called in the service's thread."""
        assert self._bell is not None, "who listens has a loop"
        self._told.append(events)
        self._bell.ring()

    def _deliver(self) -> None:
        grown: dict[Generation, list[PartEvent]] = {}
        while self._told:
            for event in self._told.popleft():
                place = self._places.get(event.request_id)
                if place is not None:
                    generation, part = place
                    grown.setdefault(generation, []).append((part, event))
        for generation, events in grown.items():
            generation.hear(events)


def _failure(reason: str) -> Problem:
    message = f"The answer could not be completed: {reason.rstrip('.')}."
    return Problem(status=500, message=message, type="server_error", code="generation_failed")
