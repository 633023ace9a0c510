"""How fast the disk under a folder reads, past the operating system's cache."""

import contextlib
import fcntl
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from residency.errors import StoreError
from residency.hardware import ThreadRate
from residency.store.arena import Arena
from residency.store.direct import BLOCK_BYTES
from residency.store.stream import Range

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
            blocks = _blocks([Range(offset=0, num_bytes=num_blocks * BLOCK_BYTES)])
            read_seconds = limit_seconds / 2 / len(_THREADS)
            return tuple(
                ThreadRate(
                    threads=threads,
                    bytes_per_second=_read_rate(file, iter(blocks), threads=threads, limit_seconds=read_seconds),
                )
                for threads in _THREADS
            )
    except OSError:
        return ()


def file_read_rate(path: Path, ranges: Sequence[Range], *, room_bytes: int, threads: int, seconds: float) -> float:
    """Bytes per second of reads of a file's ranges, round and round and block by block as weights stream, into so much
    memory: what lies in a cache is written faster. StoreError where that fails.
    """
    try:
        with contextlib.ExitStack() as stack:
            file, blocks = _opened(str(path), stack), cycle(_blocks(ranges))
            return _read_rate(file, blocks, room_bytes=room_bytes, threads=threads, limit_seconds=seconds)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None


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


def _blocks(ranges: Sequence[Range]) -> list[Range]:
    return [
        Range(offset=each.offset + start, num_bytes=min(BLOCK_BYTES, each.num_bytes - start))
        for each in ranges
        for start in range(0, each.num_bytes, BLOCK_BYTES)
    ]


def _read_rate(
    file: _File, blocks: Iterator[Range], *, threads: int, limit_seconds: float, room_bytes: int = 0
) -> float:
    """Threads take one block after another, until there are none or time is up. Each has room for one at least."""
    places = max(threads, room_bytes // BLOCK_BYTES)
    room = Arena(places * BLOCK_BYTES)
    room.bytes[:: mmap.PAGESIZE] = 0  # every page is there before time counts
    numbered = enumerate(blocks)
    if hasattr(os, "posix_fadvise"):  # for what reads through the cache after all
        os.posix_fadvise(file.cached_reader, 0, 0, os.POSIX_FADV_DONTNEED)
    bytes_read: list[int] = []
    begin_seconds = time.perf_counter()
    deadline = begin_seconds + limit_seconds

    def work() -> None:
        done = 0
        for number, block in numbered:
            place = number % places * BLOCK_BYTES
            done += _read(file, room.memory[place : place + block.num_bytes], block.offset)
            if time.perf_counter() > deadline:
                break
        bytes_read.append(done)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begin_seconds
    room.close()
    if not sum(bytes_read):
        raise OSError("nothing could be read")
    return sum(bytes_read) / seconds


def _read(file: _File, into: memoryview, offset: int) -> int:
    """Bytes of a block that was read whole: directly, or through the cache where direct reads are refused."""
    for descriptor in (file.reader, file.cached_reader):
        with contextlib.suppress(OSError):
            if os.preadv(descriptor, [into], offset) == len(into):
                return len(into)
    return 0
