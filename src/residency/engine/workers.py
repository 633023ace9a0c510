"""Worker threads that replay a recorded step: they live in native code between steps and sleep when there are none.

A thread whose processor somebody else keeps busy makes all others wait for it, some milliseconds at a time. Where
that costs more than the thread brings, the step goes on with the caller's thread alone, and so do the next steps; all
threads are tried again after a while, ever longer while it keeps happening.

A thread of somebody else that is woken for a moment, such as a server's, may put two of ours on one processor, where
Linux' scheduler leaves them for many milliseconds. Where a thread does nothing but run steps, and there are as many
processors as threads, each gets one of its own.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

import numpy as np

from residency.kernels.library import Library
from residency.kernels.recorder import MOST_KERNELS, Program, address_of

_GENERATION, _PROGRAM, _NUM_KERNELS, _STOP = range(4)
_SEEN_WORD = 32  # of each thread, a cache line apart
_LOST_WORD, _ALONE_WORD, _TOGETHER_WORD, _SHARES_WORD = 16, 24, 32, 40  # of the meeting: see kernels/step/cpu.py
_SPINS = 20_000  # about a millisecond of waiting for the next step before a thread sleeps
_FIRST_GUESS_CYCLES = 5_000_000  # some 2 milliseconds: of a step, before there was one
_LATE_SHARE = 0.25  # of a step that waiting for late threads may take
_SHORTEST_RETREAT_SECONDS = 0.05
_LONGEST_RETREAT_SECONDS = 1.0


class Workers:
    """`threads` threads, the caller's included. A step runs on all of them, or on the caller's alone."""

    def __init__(self, library: Library, threads: int) -> None:
        self._threads = threads
        self._run = library.driver("step.run", 6)
        self._serve = library.driver("step.serve", 6)
        self._control = np.zeros(_SEEN_WORD + 8 * (threads + 1), np.int64)
        self._meeting = np.zeros(_SHARES_WORD + 8 * threads, np.int64)
        self._meeting[_TOGETHER_WORD] = _FIRST_GUESS_CYCLES
        self._retreat_until = 0.0
        self._late: deque[bool] = deque(maxlen=4)
        self._retreat_seconds = _SHORTEST_RETREAT_SECONDS
        self._staying: int | None = None  # the thread that said so
        self._processors: list[int] = []  # then: one for each thread
        self._is_bound = False  # whether that thread is held to the first
        self._wake = threading.Condition()
        self._others = [
            threading.Thread(target=self._work, args=(thread,), name=f"residency-{thread}", daemon=True)
            for thread in range(1, threads)
        ]
        for other in self._others:
            other.start()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        with self._wake:
            self._control[_STOP] = 1
            self._control[_GENERATION] += 1
            self._wake.notify_all()
        for other in self._others:
            other.join()
        self._others = []

    def stay(self) -> None:
        """The calling thread does nothing from now on but run programs: where there are as many processors as threads,
        each gets one of its own.
        """
        self._processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if self._others and len(self._processors) == self._threads:
            self._staying, self._is_bound = threading.get_native_id(), False
            for other, processor in zip(self._others, self._processors[1:], strict=True):
                _bind(other.native_id, [processor])

    def run(self, program: Program) -> None:
        """Run a program; returns when every kernel is done."""
        active = self._threads if self._others and time.perf_counter() >= self._retreat_until else 1
        if self._staying is not None:
            self._place(together=active > 1)
        if active > 1:
            with self._wake:
                self._control[_PROGRAM] = program.address
                self._control[_NUM_KERNELS] = len(program.table)
                self._control[_GENERATION] += 1
                self._wake.notify_all()
        generation = int(self._control[_GENERATION])
        self._meeting[_LOST_WORD] = 0
        self._run(program.address, len(program.table), address_of(self._meeting), generation, 0, active)
        if active > 1:
            went_on_alone = int(self._meeting[_ALONE_WORD]) // MOST_KERNELS == generation
            lost = int(self._meeting[_LOST_WORD]) // (active - 1)
            self._judge(was_late=went_on_alone or lost > _LATE_SHARE * int(self._meeting[_TOGETHER_WORD]))

    def _place(self, *, together: bool) -> None:
        """Hold the thread that stays to its processor; alone it goes wherever one is free."""
        if together != self._is_bound and threading.get_native_id() == self._staying:
            self._is_bound = together
            _bind(0, self._processors[:1] if together else self._processors)

    def _judge(self, *, was_late: bool) -> None:
        """Retreat to one thread where the others were late in two of four steps: for twice as long as the last time,
        unless there were four good steps since."""
        self._late.append(was_late)
        if sum(self._late) >= 2:
            self._late.clear()
            self._retreat_until = time.perf_counter() + self._retreat_seconds
            self._retreat_seconds = min(2 * self._retreat_seconds, _LONGEST_RETREAT_SECONDS)
        elif len(self._late) == self._late.maxlen and not any(self._late):
            self._retreat_seconds = _SHORTEST_RETREAT_SECONDS

    def _work(self, thread: int) -> None:
        control, meeting = address_of(self._control), address_of(self._meeting)
        seen = _SEEN_WORD + 8 * thread
        while not self._control[_STOP]:
            with self._wake:
                while self._control[_GENERATION] == self._control[seen]:
                    self._wake.wait()
            self._serve(control, control + 8 * seen, meeting, thread, self._threads, _SPINS)


def _bind(thread: int | None, processors: Iterable[int]) -> None:
    """Let a thread (0: the caller's) run on these processors alone, where it may."""
    with suppress(OSError):
        os.sched_setaffinity(thread or 0, processors)
