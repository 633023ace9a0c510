"""Conversations: what is kept, what a full context does, and what Ctrl-C stops."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import residency
from residency.cli.prompts import conversation
from residency.engine.engine import Stream
from residency.engine.report import Report
from support.machines import unmeasured_machine


def test_the_second_prompt_holds_the_first_and_its_answer(asked: "Asked") -> None:
    first, second = asked("hello", context=256), asked("hello", "again", context=256)
    assert second.prompt_tokens > first.prompt_tokens + first.completion_tokens


def test_a_full_context_forgets_the_oldest_question(asked: "Asked") -> None:
    assert asked(*["tell me of the other garden"] * 8, context=96).completion_tokens > 0


def test_a_question_that_alone_is_too_long_is_refused_and_the_next_is_answered(
    asked: "Asked", capsys: pytest.CaptureFixture[str]
) -> None:
    asked("word " * 200, "hello", context=96)
    assert "too many" in capsys.readouterr().err


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(asked: "Asked", monkeypatch: pytest.MonkeyPatch) -> None:
    make_next = Stream.__next__
    pressed: list[bool] = []

    def interrupted_next(stream: Stream) -> str:
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        return make_next(stream)

    monkeypatch.setattr(Stream, "__next__", interrupted_next)
    assert asked("hello", "again", context=256).finish_reason != "interrupted"


def test_ctrl_c_at_the_prompt_forgets_the_line(asked: "Asked") -> None:
    assert asked(KeyboardInterrupt, "hello", context=256).completion_tokens > 0


class Asked:
    """Asks questions as if they were typed and returns what the last answer measured."""

    def __init__(self, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._model_path = model_path
        self._monkeypatch = monkeypatch

    def __call__(self, *lines: str | type[BaseException], context: int) -> Report:
        self._monkeypatch.setattr("builtins.input", typed(lines))
        plan = residency.plan(self._model_path, memory="300MiB", context=context, machine=unmeasured_machine())
        with residency.Engine.open(plan) as engine:
            report = conversation(engine, system=None, max_tokens=8, sampling=residency.Sampling())
        assert report is not None
        return report


def typed(lines: tuple[str | type[BaseException], ...]) -> object:
    """An `input` that gives these lines, or raises them, and then ends."""
    left: Iterator[str | type[BaseException]] = iter((*lines, EOFError))

    def next_line(prompt: str) -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return next_line


@pytest.fixture
def asked(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(model_path, monkeypatch)
