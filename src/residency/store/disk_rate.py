"""How fast the disk under a folder reads, past the operating system's cache."""

import contextlib
import fcntl
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from residency.hardware import ThreadRate
from residency.store.direct import BLOCK_BYTES

_THREADS = (1, 4)


def disk_read_rates(folder: Path, *, max_bytes: int, limit_seconds: float) -> tuple[ThreadRate, ...]:
    """Sequential reads of a temporary file, block by block as weights stream, on one thread and on four.

    The file is at most `max_bytes` long and has no name while it exists, so that nothing of it outlives the process.
    Writing takes half of the time, reading the other half. Empty where the folder cannot be written to or is full.
    """
    deadline = time.perf_counter() + limit_seconds / 2
    try:
        with _nameless_file(folder) as (writer, file):
            num_blocks = _write(writer, max_bytes // BLOCK_BYTES, deadline)
            read_seconds = limit_seconds / 2 / len(_THREADS)
            return tuple(
                ThreadRate(
                    threads=threads,
                    bytes_per_second=_read_rate(file, num_blocks, threads=threads, limit_seconds=read_seconds),
                )
                for threads in _THREADS
            )
    except OSError:
        return ()


def file_read_rate(path: Path, *, threads: int, limit_seconds: float) -> float:
    """Bytes per second of sequential reads of a file, block by block as weights stream. OSError where that fails."""
    with contextlib.ExitStack() as stack:
        file = _opened(str(path), stack)
        num_blocks = path.stat().st_size // BLOCK_BYTES
        return _read_rate(file, num_blocks, threads=threads, limit_seconds=limit_seconds)


@dataclass(frozen=True, kw_only=True)
class _File:
    """Descriptors of one file."""

    reader: int  # its reads come from the disk where the system can do that
    cached_reader: int


def _opened(name: str, stack: contextlib.ExitStack) -> _File:
    cached_reader = os.open(name, os.O_RDONLY)
    stack.callback(os.close, cached_reader)
    try:
        reader = os.open(name, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system without direct reads
        reader = os.open(name, os.O_RDONLY)
    stack.callback(os.close, reader)
    if not hasattr(os, "O_DIRECT") and hasattr(fcntl, "F_NOCACHE"):
        fcntl.fcntl(reader, fcntl.F_NOCACHE, 1)
    return _File(reader=reader, cached_reader=cached_reader)


@contextlib.contextmanager
def _nameless_file(folder: Path) -> Iterator[tuple[int, _File]]:
    """A descriptor to write by, and those to read by."""
    with contextlib.ExitStack() as stack:
        writer, name = tempfile.mkstemp(dir=folder, prefix="probe-")
        stack.callback(os.close, writer)
        try:
            file = _opened(name, stack)
        finally:
            os.unlink(name)
        yield writer, file


def _write(descriptor: int, max_blocks: int, deadline: float) -> int:
    """Blocks that are on the disk, not only in a cache, when this returns."""
    block = os.urandom(BLOCK_BYTES)  # disks compress what repeats
    for index in range(max_blocks):
        os.pwrite(descriptor, block, index * BLOCK_BYTES)
        os.fsync(descriptor)
        if time.perf_counter() > deadline:
            return index + 1
    return max_blocks


def _read_rate(file: _File, num_blocks: int, *, threads: int, limit_seconds: float) -> float:
    if hasattr(os, "posix_fadvise"):  # for what reads through the cache after all
        os.posix_fadvise(file.cached_reader, 0, 0, os.POSIX_FADV_DONTNEED)
    blocks_read: list[int] = []
    begin_seconds = time.perf_counter()
    deadline = begin_seconds + limit_seconds

    def work(index: int) -> None:
        with mmap.mmap(-1, BLOCK_BYTES) as block:
            done = 0
            for number in range(index, num_blocks, threads):
                done += _read(file, block, number)
                if time.perf_counter() > deadline:
                    break
            blocks_read.append(done)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if not sum(blocks_read):
        raise OSError("nothing could be read")
    return sum(blocks_read) * BLOCK_BYTES / (time.perf_counter() - begin_seconds)


def _read(file: _File, block: mmap.mmap, number: int) -> bool:
    """Whether a whole block was read: directly, or through the cache where direct reads are refused."""
    for descriptor in (file.reader, file.cached_reader):
        with contextlib.suppress(OSError):
            if os.preadv(descriptor, [block], number * BLOCK_BYTES) == BLOCK_BYTES:
                return True
    return False
