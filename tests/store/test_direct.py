"""Reads past the operating system's cache, on good days and bad ones."""

import ctypes
import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from residency.errors import StoreError
from residency.store.arena import Arena
from residency.store.direct import BLOCK_BYTES, DirectFile

CONTENT = os.urandom(BLOCK_BYTES + 3 * 4096)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(CONTENT)
    return tmp_path / "weights"


def read(path: Path, offset: int, num_bytes: int) -> bytes:
    arena = Arena(num_bytes)
    with DirectFile(path) as file:
        file.read(arena.memory, offset)
    return bytes(arena.memory)


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, 4096), (4096, 8192), (0, len(CONTENT))])
def test_what_is_read_is_what_the_file_holds(path: Path, offset: int, num_bytes: int) -> None:
    assert read(path, offset, num_bytes) == CONTENT[offset : offset + num_bytes]


def test_a_file_system_without_direct_reads_gives_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_open = os.open

    def open_without(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain_open(path, flags)

    monkeypatch.setattr(os, "open", open_without)
    assert read(path, 4096, 8192) == CONTENT[4096 : 4096 + 8192]


def cached_bytes(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), pages) == 0
    return mmap.PAGESIZE * sum(page & 1 for page in pages)


def test_direct_reads_leave_nothing_in_the_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with DirectFile(path) as file:
        if not file.is_direct:
            pytest.skip("this file system refuses direct reads")
        file.read(Arena(BLOCK_BYTES).memory, 0)
    assert cached_bytes(path) <= 2 * mmap.PAGESIZE  # no more than the page that was tried


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="could not be opened: No such file"):
        DirectFile(tmp_path / "weights")


def test_a_file_that_ends_too_early_is_an_error(path: Path) -> None:
    with pytest.raises(StoreError, match="before its weights do"):
        read(path, len(CONTENT) - 4096, 8192)


def test_a_file_that_was_written_to_is_an_error(path: Path) -> None:
    with DirectFile(path) as file:
        os.utime(path, (1, 1))
        with pytest.raises(StoreError, match="was changed while the model ran"):
            file.read(Arena(4096).memory, 0)


def failing(times: int, real: object) -> object:
    calls = iter(range(1000))

    def preadv(*arguments: object) -> int:
        if next(calls) < times:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)  # type: ignore[operator, no-any-return]

    return preadv


def test_a_disk_that_fails_once_is_asked_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(4096)
    with DirectFile(path) as file:
        monkeypatch.setattr(os, "preadv", failing(1, os.preadv))
        file.read(arena.memory, 0)
    assert bytes(arena.memory) == CONTENT[:4096]


def test_a_disk_that_fails_for_good_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DirectFile(path) as file:
        monkeypatch.setattr(os, "preadv", failing(1000, os.preadv))
        with pytest.raises(StoreError, match=r"the disk failed to read .*Input/output error"):
            file.read(Arena(4096).memory, 0)


def test_short_reads_are_read_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, real = Arena(3 * 4096), os.preadv
    with DirectFile(path) as file:
        monkeypatch.setattr(os, "preadv", lambda fd, blocks, offset: real(fd, [blocks[0][:4096]], offset))
        file.read(arena.memory, 4096)
    assert bytes(arena.memory) == CONTENT[4096 : 4 * 4096]
