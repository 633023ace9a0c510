"""How fast this machine reads memory, by the number of threads.

As in J. McCalpin's STREAM: a buffer too large for the caches is read several times and the best time counts.
"""

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from residency.hardware import ThreadRate

ReadBytes = Callable[[int, int], object]
"""Reads so many bytes from an address, as fast as one thread can, without holding the interpreter's lock."""

PIECE_ALIGNMENT = 4096  # where each thread's part of the buffer begins, and what its length is a multiple of
_TRIAL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class _Span:
    begin_seconds: float
    end_seconds: float


def memory_read_rates(
    read: ReadBytes, *, max_threads: int, buffer_bytes: int, limit_seconds: float
) -> tuple[ThreadRate, ...]:
    """The best rate with 1, 2, 4, … and `max_threads` threads, each reading its own part of one buffer.

    Takes about `limit_seconds` beside filling the buffer, whose bytes are given back afterwards.
    """
    counts = thread_counts(max_threads)
    with _filled_buffer(buffer_bytes) as address:
        return tuple(
            ThreadRate(
                threads=threads,
                bytes_per_second=_best_rate(
                    read, address, threads=threads, buffer_bytes=buffer_bytes, limit_seconds=limit_seconds / len(counts)
                ),
            )
            for threads in counts
        )


def thread_counts(max_threads: int) -> tuple[int, ...]:
    """Powers of two below `max_threads`, and itself."""
    counts = [1]
    while counts[-1] * 2 < max_threads:
        counts.append(counts[-1] * 2)
    return (*counts, max_threads) if max_threads > 1 else (1,)


def _best_rate(read: ReadBytes, address: int, *, threads: int, buffer_bytes: int, limit_seconds: float) -> float:
    piece_bytes = buffer_bytes // threads // PIECE_ALIGNMENT * PIECE_ALIGNMENT
    deadline = time.perf_counter() + limit_seconds
    passes, best_rate = 1, 0.0
    while True:
        trial_seconds = _trial(read, address, threads=threads, piece_bytes=piece_bytes, passes=passes)
        best_rate = max(best_rate, passes * threads * piece_bytes / trial_seconds)
        if time.perf_counter() + trial_seconds > deadline:
            return best_rate
        if trial_seconds < _TRIAL_SECONDS:
            passes *= 2


def _trial(read: ReadBytes, address: int, *, threads: int, piece_bytes: int, passes: int) -> float:
    """From the first thread's first byte to the last thread's last."""
    spans: list[_Span] = []
    start_together = threading.Barrier(threads)

    def work(index: int) -> None:
        start_together.wait()
        begin_seconds = time.perf_counter()
        for _ in range(passes):
            read(address + index * piece_bytes, piece_bytes)
        spans.append(_Span(begin_seconds=begin_seconds, end_seconds=time.perf_counter()))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(1, threads)]
    for worker in workers:
        worker.start()
    work(0)
    for worker in workers:
        worker.join()
    return max(span.end_seconds for span in spans) - min(span.begin_seconds for span in spans)


@contextmanager
def _filled_buffer(num_bytes: int) -> Iterator[int]:
    """The address of anonymous memory whose every page exists; in huge pages where the system has them."""
    buffer = mmap.mmap(-1, num_bytes)
    try:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                buffer.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without them
        first = ctypes.c_char.from_buffer(buffer)
        address = ctypes.addressof(first)
        del first
        ctypes.memset(address, 1, num_bytes)
        yield address
    finally:
        buffer.close()
