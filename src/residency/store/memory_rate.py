"""How fast this machine reads memory, by the number of threads and by how much they read over and over.

As in J. McCalpin's STREAM: a buffer too large for the caches is read several times and the best time counts.
"""

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from residency.hardware import ThreadRate

ReadBytes = Callable[[int, int], object]
"""Reads so many bytes from an address, as fast as one thread can, without holding the interpreter's lock."""

PIECE_ALIGNMENT = 4096  # where each thread's part of the buffer begins, and what its length is a multiple of
WORKING_SETS = tuple(32 * 1024**2 << doubling for doubling in range(5))  # 32 MiB to 512 MiB
_TRIAL_SECONDS = 0.05
_FILL_BYTES = 64 * 1024**2


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    address: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Span:
    begin_seconds: float
    end_seconds: float
    processor_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Trial:
    seconds: float  # from the first thread's first byte to the last thread's last
    processor_share: float


def memory_read_rates(
    read: ReadBytes, *, max_threads: int, buffer_bytes: int, limit_seconds: float, fill_seconds: float = 1.0
) -> tuple[ThreadRate, ...]:
    """The best rates with 1, 2, 4, … and `max_threads` threads, each reading its own part of one buffer, for working
    sets of WORKING_SETS that are smaller than the buffer, and the whole of it.

    Takes about `limit_seconds` beside filling the buffer, which stops after `fill_seconds` with a smaller buffer. Its
    bytes are given back afterwards.
    """
    counts = thread_counts(max_threads)
    with _filled_buffer(buffer_bytes, fill_seconds) as buffer:
        sets = [each for each in WORKING_SETS if each < buffer.num_bytes] + [buffer.num_bytes]
        each_seconds = limit_seconds / len(counts) / len(sets)
        return tuple(
            _best_rate(read, buffer, set_bytes, threads=threads, limit_seconds=each_seconds)
            for threads in counts
            for set_bytes in sets
        )


def thread_counts(max_threads: int) -> tuple[int, ...]:
    """Powers of two below `max_threads`, and itself."""
    counts = [1]
    while counts[-1] * 2 < max_threads:
        counts.append(counts[-1] * 2)
    return (*counts, max_threads) if max_threads > 1 else (1,)


def read_rate(read: ReadBytes, *, threads: int, set_bytes: int, limit_seconds: float) -> float:
    """The best rate of so many threads that read so many bytes over and over."""
    with _filled_buffer(set_bytes, limit_seconds) as buffer:
        set_bytes = min(set_bytes, buffer.num_bytes)
        return _best_rate(read, buffer, set_bytes, threads=threads, limit_seconds=limit_seconds).bytes_per_second


def _best_rate(read: ReadBytes, buffer: _Buffer, set_bytes: int, *, threads: int, limit_seconds: float) -> ThreadRate:
    piece_bytes = set_bytes // threads // PIECE_ALIGNMENT * PIECE_ALIGNMENT
    deadline = time.perf_counter() + limit_seconds
    passes, rates = 1, []
    while True:
        trial = _trial(read, buffer.address, threads=threads, piece_bytes=piece_bytes, passes=passes)
        rates.append((passes * threads * piece_bytes / trial.seconds, trial.processor_share))
        if time.perf_counter() + trial.seconds > deadline:
            rate, share = max(rates)
            return ThreadRate(
                threads=threads, bytes_per_second=rate, working_set_bytes=set_bytes, processor_share=min(1.0, share)
            )
        if trial.seconds < _TRIAL_SECONDS:
            passes *= 2


def _trial(read: ReadBytes, address: int, *, threads: int, piece_bytes: int, passes: int) -> _Trial:
    spans: list[_Span] = []
    start_together = threading.Barrier(threads)

    def work(index: int) -> None:
        start_together.wait()
        begin_seconds, processor_seconds = time.perf_counter(), time.thread_time()
        for _ in range(passes):
            read(address + index * piece_bytes, piece_bytes)
        end_seconds, processor_seconds = time.perf_counter(), time.thread_time() - processor_seconds
        spans.append(_Span(begin_seconds=begin_seconds, end_seconds=end_seconds, processor_seconds=processor_seconds))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(1, threads)]
    for worker in workers:
        worker.start()
    work(0)
    for worker in workers:
        worker.join()
    seconds = max(span.end_seconds for span in spans) - min(span.begin_seconds for span in spans)
    return _Trial(seconds=seconds, processor_share=sum(span.processor_seconds for span in spans) / (seconds * threads))


@contextmanager
def _filled_buffer(num_bytes: int, fill_seconds: float) -> Iterator[_Buffer]:
    """Anonymous memory whose every page exists; in huge pages where the system has them.

    It ends where `fill_seconds` are over, as some machines take long to hand out pages, but not before its first
    piece.
    """
    memory = mmap.mmap(-1, num_bytes)
    try:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        deadline = time.perf_counter() + fill_seconds
        filled_bytes = 0
        while filled_bytes < num_bytes and (filled_bytes == 0 or time.perf_counter() < deadline):
            piece_bytes = min(_FILL_BYTES, num_bytes - filled_bytes)
            ctypes.memset(address + filled_bytes, 1, piece_bytes)
            filled_bytes += piece_bytes
        yield _Buffer(address=address, num_bytes=filled_bytes)
    finally:
        memory.close()
