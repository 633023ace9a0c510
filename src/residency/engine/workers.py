"""Worker threads that replay a recorded step: they live in native code between steps and sleep when there are none."""

import threading
from types import TracebackType

import numpy as np

from residency.kernels.library import Library
from residency.kernels.recorder import Program, address_of

_GENERATION, _PROGRAM, _NUM_KERNELS, _STOP = range(4)
_SEEN_WORD = 32  # of each thread, a cache line apart
_SPINS = 20_000  # about a millisecond of waiting for the next step before a thread sleeps


class Workers:
    """`threads` threads, the caller's included. A step runs on all of them."""

    def __init__(self, library: Library, threads: int) -> None:
        self._threads = threads
        self._run = library.driver("step.run", 5)
        self._serve = library.driver("step.serve", 6)
        self._control = np.zeros(64 * 8, np.int64)
        self._meeting = np.zeros(32, np.int64)
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

    def run(self, program: Program) -> None:
        """Run a program on all threads; returns when every kernel is done."""
        if self._others:
            with self._wake:
                self._control[_PROGRAM] = program.address
                self._control[_NUM_KERNELS] = len(program.table)
                self._control[_GENERATION] += 1
                self._wake.notify_all()
        self._run(program.address, len(program.table), address_of(self._meeting), 0, self._threads)

    def _work(self, thread: int) -> None:
        control, meeting = address_of(self._control), address_of(self._meeting)
        seen = _SEEN_WORD + 8 * thread
        while not self._control[_STOP]:
            with self._wake:
                while self._control[_GENERATION] == self._control[seen]:
                    self._wake.wait()
            self._serve(control, control + 8 * seen, meeting, thread, self._threads, _SPINS)
