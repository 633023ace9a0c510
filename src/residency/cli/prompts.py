"""Where prompts come from: the command line, standard input, or a conversation on a terminal."""

import sys

import click

from residency.cli.answer import print_answer
from residency.engine.engine import Engine, Prompt
from residency.engine.report import Report
from residency.engine.sampler import Sampling
from residency.errors import ContextError, UsageError


def read_prompt(prompt: str | None, *, chatting: bool) -> str | None:
    """The prompt's text, from standard input for "-" and where none is given; None to chat on a terminal.

    UsageError if it is empty, or there is none and no conversation can be had.
    """
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        if not chatting:
            raise UsageError("there is no prompt; give one, for a conversation has neither --json nor --raw.")
        return None
    if sys.stdin is not None and prompt in (None, "-"):
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")
    if not prompt:
        raise UsageError("the prompt is empty; give at least one character.")
    return prompt


def prompt_of(engine: Engine, text: str, *, system: str | None, raw: bool) -> Prompt:
    """What the engine is asked: tokens as they are, messages, or a text for the chat template."""
    if raw:
        return engine.tokenizer.encode(text, add_special=True)
    if system is not None:
        return [*_system_messages(system), {"role": "user", "content": text}]
    return text


def conversation(engine: Engine, *, system: str | None, max_tokens: int | None, sampling: Sampling) -> Report | None:
    """Ask and answer until Ctrl-D; returns what the last answer measured, None if there was none.

    Where the context is full, the oldest question and its answer are forgotten.
    """
    _edit_lines()
    before = _system_messages(system)
    said: list[dict[str, str]] = []
    report = None
    while (question := _ask()) is not None:
        if not question.strip():
            continue
        said.append({"role": "user", "content": question})
        try:
            while True:
                try:
                    stream = engine.stream([*before, *said], max_tokens=max_tokens, sampling=sampling)
                    break
                except ContextError:
                    if len(said) < 3:
                        raise
                    del said[:2]
        except ContextError as error:
            click.echo(f"residency: {error}", err=True)
            said.pop()
            continue
        report = print_answer(stream, at_once=False).report
        said.append({"role": "assistant", "content": report.text})
    return report


def _ask() -> str | None:
    """A line from the terminal; None at its end. Ctrl-C forgets the line."""
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)")


def _system_messages(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _edit_lines() -> None:
    """Arrow keys and a history in `input`, where the platform has readline."""
    try:
        import readline  # noqa: F401  (importing it is what makes the difference)
    except ImportError:
        pass
