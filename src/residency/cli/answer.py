"""Prints an answer as it comes, and stops it cleanly on Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from residency.engine.engine import Stream
from residency.engine.report import Report

# What could move a terminal's cursor or worse; the model's text is not trusted with it.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A printed answer. Interrupted: stopped by Ctrl-C, and complete up to there."""

    report: Report
    interrupted: bool


@dataclass
class _Interrupt:
    waits: bool  # until the piece that is being made is printed; a second Ctrl-C does not wait
    asked: bool = False


def print_answer(stream: Stream, *, visible: bool = True, at_once: bool = True) -> Answer:
    """Print the pieces of `stream` (unless not `visible`) and a newline after the last.

    Ctrl-C stops between two pieces. Before the first piece it is a KeyboardInterrupt, which leaves the engine good
    for nothing but closing; with `at_once` False it waits for the first piece.
    """
    for_terminal = sys.stdout.isatty()
    text = ""
    with _interruptible(waits=not at_once) as interrupt:
        for text in stream:
            interrupt.waits = True
            if visible:
                sys.stdout.write(text.translate(_CONTROLS) if for_terminal else text)
                sys.stdout.flush()
            if interrupt.asked:
                stream.close()
                break
    if visible and not text.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    report = stream.report
    if interrupt.asked:
        report = replace(report, finish_reason="interrupted")
    return Answer(report=report, interrupted=interrupt.asked)


@contextmanager
def _interruptible(*, waits: bool) -> Iterator[_Interrupt]:
    interrupt = _Interrupt(waits)

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.asked or not interrupt.waits:
            raise KeyboardInterrupt
        interrupt.asked = True

    if threading.current_thread() is not threading.main_thread():  # only that one hears of signals
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
