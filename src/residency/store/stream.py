"""A cycle of reads into a ring of buffers that a step's native code waits for and gives back, without Python between.

Reads are numbered from 0 for ever: number n brings the n-th of the cycle's ranges, round and round, into slot n modulo
the slots. Three counters are all that readers and steps share: how many reads have arrived, how many slots have been
given back, and, written by whoever runs the steps, how many were given back before this one.
"""

import ctypes
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from residency.errors import StoreError
from residency.store.direct import BLOCK_BYTES

_ARRIVED, _RELEASED, _BASE = 0, 8, 16  # words, a cache line apart
_POLL_SECONDS = 0.0001  # a read takes a thousand times as long
_ALL_ARRIVED = (1 << 62) - 1  # lets a step run to its end after a failure
_FUTEX, _WAKE_PRIVATE, _EVERYBODY = 202, 129, (1 << 31) - 1  # of Linux on x86-64, as the kernels that wait are
_LIBC = ctypes.CDLL(None)
Read = Callable[[memoryview, int], None]  # into memory, from an offset: fills it, or raises


@dataclass(frozen=True, kw_only=True)
class Range:
    """Whole pages of a file."""

    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class StreamWords:
    """Addresses of what readers and steps share, for kernels."""

    arrived: int
    released: int
    base: int
    bell: int  # the file descriptor that is written to when a slot is given back


class Stream:
    """Threads that keep the slots full. Use it in a `with` statement; the slots must outlive it."""

    def __init__(self, read: Read, cycle: Sequence[Range], slots: Sequence[memoryview], *, readers: int) -> None:
        """Each slot is at least as large as each range of the cycle."""
        self._read = read
        self._cycle = cycle
        self._slots = slots
        self._counters = np.zeros(24, np.int64)
        self._next = (0, 0)  # the read that is begun next, and from where in its range
        self._missing: Counter[int] = Counter()  # bytes of the reads that have begun
        self._failure: Exception | None = None
        self._closing = False
        self._turn, self._count = threading.Lock(), threading.Lock()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._work, name=f"residency-reader-{number}", daemon=True)
            for number in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads, after the reads that are under way. Nothing happens the second time."""
        if not self._threads:
            return
        self._closing = True
        os.eventfd_write(self._bell, 1)
        for thread in self._threads:
            thread.join()
        self._threads = []
        os.close(self._bell)

    @property
    def words(self) -> StreamWords:
        """What kernels wait by."""
        start = int(self._counters.ctypes.data)
        return StreamWords(
            arrived=start + 8 * _ARRIVED, released=start + 8 * _RELEASED, base=start + 8 * _BASE, bell=self._bell
        )

    @property
    def num_arrived(self) -> int:
        """Reads that are done, with all before them; after a failure, more than there are."""
        return int(self._counters[_ARRIVED])

    @property
    def slot_of_next(self) -> int:
        """The slot of the next step's first read."""
        return int(self._counters[_RELEASED]) % len(self._slots)

    def begin(self) -> None:
        """A step begins. StoreError where a read has failed, or nobody reads any more."""
        self.check()
        if not self._threads:
            raise StoreError("the weights cannot be read any more; start again.")
        self._counters[_BASE] = self._counters[_RELEASED]

    def wait(self, number: int) -> None:
        """Until a read has arrived, for those who have no kernel that waits. StoreError where one has failed."""
        while self.num_arrived <= number and self._threads:
            time.sleep(_POLL_SECONDS)
        self.check()

    def release(self) -> None:
        """The slot of the oldest read is free again."""
        self._counters[_RELEASED] += 1
        os.eventfd_write(self._bell, 1)

    def read_rate(self, seconds: float) -> float:
        """Bytes per second of whole cycles, for about so long, that nobody computes with: between two steps. StoreError
        where a read has failed.

        A disk's rate depends on the memory that is read into, and not only by its amount: so these are the slots.
        """
        number, last = int(self._counters[_RELEASED]), len(self._slots) - 1
        self.wait(number + last)
        started, num_bytes = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for each in self._cycle:
                self.wait(number)
                self.release()
                number += 1
                num_bytes += each.num_bytes
        self.wait(number + last)
        return num_bytes / (time.perf_counter() - started)

    def check(self) -> None:
        """StoreError where a read has failed; what steps have computed since is worth nothing."""
        if self._failure is not None:
            if isinstance(self._failure, StoreError):
                raise StoreError(str(self._failure)) from self._failure
            raise StoreError(f"the store could not be read: {self._failure}; start again.") from self._failure

    def _work(self) -> None:
        try:
            while (block := self._next_block()) is not None:
                number, into, offset = block
                self._read(into, offset)
                self._arrive(number, len(into))
        except Exception as error:  # whatever it is, the steps that wait must end
            with self._count:
                self._failure = self._failure or error
                self._closing = True
                self._counters[_ARRIVED] = _ALL_ARRIVED
            self._wake()

    def _next_block(self) -> tuple[int, memoryview, int] | None:
        """The next block to read, once its slot is free: its read's number, where it goes, and where it lies."""
        with self._turn:
            number, start = self._next
            while not self._closing and number - self._counters[_RELEASED] >= len(self._slots):
                os.eventfd_read(self._bell)
            if self._closing:
                return None
            source = self._cycle[number % len(self._cycle)]
            end = min(start + BLOCK_BYTES, source.num_bytes)
            if not start:
                with self._count:
                    self._missing[number] = source.num_bytes
            self._next = (number + 1, 0) if end == source.num_bytes else (number, end)
            return number, self._slots[number % len(self._slots)][start:end], source.offset + start

    def _arrive(self, number: int, num_bytes: int) -> None:
        with self._count:
            self._missing[number] -= num_bytes
            before = arrived = int(self._counters[_ARRIVED])
            while self._missing.get(arrived) == 0:
                del self._missing[arrived]
                arrived += 1
            self._counters[_ARRIVED] = arrived
        if arrived > before:
            self._wake()

    def _wake(self) -> None:
        """Steps that wait for a read look again."""
        _LIBC.syscall(
            ctypes.c_long(_FUTEX),
            ctypes.c_void_p(self.words.arrived),
            ctypes.c_long(_WAKE_PRIVATE),
            ctypes.c_long(_EVERYBODY),
        )
