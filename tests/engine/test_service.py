"""Many callers are answered by one engine, and what goes wrong with one is its own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from residency.engine.engine import Engine
from residency.engine.generation import GenerationOptions, TokenEvent
from residency.engine.service import Service
from residency.errors import ContextError, QueueFullError, ServiceError, UsageError
from support.engines import plan_of

PROMPT = [7, 8, 9]


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self, answers: int = 1) -> None:
        self.events: list[TokenEvent] = []
        self._open_answers = answers
        self._ended = threading.Event()

    def __call__(self, events: Sequence[TokenEvent]) -> None:
        self.events += events
        self._open_answers -= sum(event.is_last for event in events)
        if self._open_answers == 0:
            self._ended.set()

    def wait(self) -> list[int | None]:
        """The tokens, once the answer has ended."""
        assert self._ended.wait(20)
        return [event.token for event in self.events]

    @property
    def finish_reason(self) -> str | None:
        self.wait()
        return self.events[-1].finish_reason


def options(max_tokens: int = 8, **more: object) -> GenerationOptions:
    return GenerationOptions(max_tokens=max_tokens, ignore_eos=True, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared(path: Path) -> Iterator[Engine]:
    with Engine.open(plan_of(path, context_tokens=128, chunk_tokens=32, max_sequences=4)) as opened:
        yield opened


@pytest.fixture
def service(shared: Engine) -> Iterator[Service]:
    with Service(shared, queue_limit=2) as running:
        yield running


def blocked(service: Service) -> Callable[[], None]:
    """Keeps the service inside a listener until the returned function is called."""
    entered, leave = threading.Event(), threading.Event()

    def hold(_: Sequence[TokenEvent]) -> None:
        entered.set()
        leave.wait(20)

    service.submit(PROMPT, options(1), hold)
    assert entered.wait(20)
    return leave.set


def test_an_answer_comes_token_by_token_to_its_listener(service: Service) -> None:
    heard = Heard()
    service.submit(PROMPT, options(5), heard)
    assert len(heard.wait()) == 5
    assert [event.finish_reason for event in heard.events] == [None] * 4 + ["length"]


def told_at_once(shared: Engine, interval_seconds: float) -> list[int]:
    """How many of nine tokens a listener is told each time."""
    told: list[int] = []
    heard = Heard()

    def listen(events: Sequence[TokenEvent]) -> None:
        told.append(len(events))
        heard(events)

    with Service(shared, stream_interval_seconds=interval_seconds) as service:
        service.submit(PROMPT, options(9), listen)
        heard.wait()
    return told


def test_tokens_between_the_first_and_the_last_may_wait_to_be_told_together(shared: Engine) -> None:
    assert told_at_once(shared, 60.0) == [1, 8]


def test_a_token_waits_no_longer_than_it_may(shared: Engine) -> None:
    assert told_at_once(shared, 1e-6) == [1] * 9


def test_callers_of_many_threads_get_what_each_would_get_alone(service: Service, shared: Engine) -> None:
    def answer(token: int) -> list[int | None]:
        heard = Heard()
        while True:
            try:
                service.submit([token] * 9, options(), heard)
                return heard.wait()
            except QueueFullError:
                continue

    alone = {token: answer(token) for token in range(6)}
    together: dict[int, list[int | None]] = {}
    threads = [threading.Thread(target=lambda t=token: together.update({t: answer(t)})) for token in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_request_beyond_the_queue_is_refused_with_when_to_come_again(service: Service) -> None:
    """Four run at one time and two may wait."""
    release = blocked(service)
    for _ in range(5):
        service.submit(PROMPT, options(), Heard())
    with pytest.raises(QueueFullError, match="6 answers are running or waiting and no more may") as refused:
        service.submit(PROMPT, options(), Heard())
    release()
    assert refused.value.retry_after_seconds >= 1


def test_a_prompt_that_can_never_be_answered_is_refused_at_once(service: Service) -> None:
    with pytest.raises(ContextError, match="over the context of 128"):
        service.submit([1] * 128, options(1), Heard())


def test_a_token_that_the_model_does_not_have_is_refused(service: Service) -> None:
    with pytest.raises(UsageError, match="the token 320 is not one"):
        service.submit([320], options(), Heard())


def test_a_cancelled_request_hears_so_and_leaves_its_pages(service: Service) -> None:
    heard = Heard()
    request_id = service.submit(PROMPT, options(100), heard)
    service.cancel(request_id)
    assert heard.finish_reason == "cancelled"
    assert service.metrics().loop.used_pages == 0


def test_who_hears_that_an_answer_has_ended_finds_its_pages_free(service: Service) -> None:
    heard = Heard()
    service.submit(PROMPT, options(5), heard)
    heard.wait()
    assert service.metrics().loop.used_pages == 0


def test_a_listener_that_fails_ends_its_own_request_alone(service: Service) -> None:
    def failing(events: Sequence[TokenEvent]) -> None:
        raise RuntimeError("gone")

    heard = Heard()
    service.submit(PROMPT, options(100), failing)
    service.submit(PROMPT, options(9), heard)
    assert len(heard.wait()) == 9
    assert service.metrics().loop.running == 0


def test_each_answer_to_a_prompt_comes_and_ends_on_its_own(service: Service) -> None:
    heard = Heard(answers=3)
    service.submit(PROMPT, options(4, num_answers=3), heard)
    heard.wait()
    assert sorted(event.answer for event in heard.events if event.is_last) == [0, 1, 2]


def test_a_listener_hears_a_step_of_all_its_requests_at_once(service: Service) -> None:
    release, heard, steps = blocked(service), Heard(answers=2), []

    def listen(events: Sequence[TokenEvent]) -> None:
        steps.append([event.request_id for event in events])
        heard(events)

    asked = [service.submit(PROMPT, options(5), listen) for _ in range(2)]
    release()
    heard.wait()
    assert steps == [asked] * 5


def test_draining_finishes_what_was_taken_in(shared: Engine) -> None:
    heard = Heard()
    with Service(shared) as service:
        service.submit(PROMPT, options(20), heard)
        assert service.drain(20)
    assert (len(heard.wait()), heard.finish_reason) == (20, "length")


def test_what_does_not_end_in_time_is_cancelled(shared: Engine) -> None:
    heard = Heard()
    with Service(shared) as service:
        service.submit(PROMPT, options(120), heard)
        assert not service.drain(0.0)
    assert heard.finish_reason == "cancelled"


def test_after_its_end_a_service_takes_no_requests(shared: Engine) -> None:
    with Service(shared) as service:
        service.drain(0.0)
        with pytest.raises(ServiceError, match="is ending"):
            service.submit(PROMPT, options(), Heard())


def test_a_service_that_fails_tells_every_caller(shared: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    with Service(shared) as service:
        release = blocked(service)
        service.submit(PROMPT, options(), heard)
        monkeypatch.setattr("residency.engine.executor.CpuExecutor.compute", lambda *_: 1 / 0)
        release()
        assert heard.finish_reason == "error"
        assert not service.metrics().healthy
        with pytest.raises(ServiceError, match="has failed"):
            service.submit(PROMPT, options(), Heard())


def test_memory_is_told_by_class_within_what_was_planned(service: Service) -> None:
    heard = Heard()
    service.submit(PROMPT, options(), heard)
    heard.wait()
    kv_cache = service.memory()["classes"]["kv_cache"]  # type: ignore[index]
    assert 0 < kv_cache["measured_bytes"] <= kv_cache["planned_bytes"]


def test_an_answer_that_is_finished_ends_while_the_others_go_on(service: Service) -> None:
    release, heard = blocked(service), Heard(answers=2)
    enough = threading.Event()

    def listen(events: Sequence[TokenEvent]) -> None:
        heard(events)
        if any(event.answer == 1 and not event.is_last for event in events):
            enough.set()

    request_id = service.submit(PROMPT, options(100, num_answers=2), listen)
    release()
    assert enough.wait(20)
    service.finish(request_id, 1)
    heard.wait()
    lengths = [sum(event.answer == answer for event in heard.events) for answer in (0, 1)]
    assert lengths[0] == 100 > lengths[1]


def test_the_pages_of_an_answer_that_is_finished_are_free(service: Service) -> None:
    heard = Heard()
    first = threading.Event()

    def listen(events: Sequence[TokenEvent]) -> None:
        heard(events)
        first.set()

    request_id = service.submit(PROMPT, options(100), listen)
    assert first.wait(20)
    service.finish(request_id, 0)
    assert heard.finish_reason == "stop"
    assert service.metrics().loop.used_pages == 0
