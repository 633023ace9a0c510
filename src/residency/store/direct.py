"""Reads of the store past the operating system's cache: what streams through memory shall leave nothing behind."""

import mmap
import os
import time
from pathlib import Path
from types import TracebackType

from residency.errors import StoreError

BLOCK_BYTES = 512 * 1024  # of one read; several are in flight. More than 128 to 254 pages are cut up by many devices
_RETRY_SECONDS = (0.01, 0.1)  # a disk may fail once and work again


def file_identity(descriptor: int) -> tuple[int, int, int]:
    """What changes when an open file does: its number, bytes and time."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


class DirectFile:
    """A file that is read in whole pages into memory that begins on one. Threads may read side by side.

    Where the file system refuses direct reads, what is read goes through the cache and is dropped from it at once.
    """

    def __init__(self, path: Path) -> None:
        """StoreError where there is no such file."""
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"the store {path} could not be opened: {error.strerror}; run again to convert."
            ) from error
        try:
            self._reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0))
        except OSError:
            self._reader = os.dup(self._file)
        self.is_direct = hasattr(os, "O_DIRECT") and self._takes_direct_reads()
        self._identity = file_identity(self._file)

    def __enter__(self) -> "DirectFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._reader)
        os.close(self._file)

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` from `offset`, both on pages. StoreError where the disk fails or the file is not what it was."""
        done = 0
        while done < len(into):
            block = into[done : done + BLOCK_BYTES]
            done += self._read_block(block, offset + done)
        if file_identity(self._file) != self._identity:
            raise StoreError(f"{self._path} was changed while the model ran; start again.")

    def _read_block(self, block: memoryview, offset: int) -> int:
        """Bytes read, at least one; tried again where the disk fails."""
        directly = self.is_direct and offset % mmap.PAGESIZE == 0  # after a short read it is not
        for pause_seconds in (*_RETRY_SECONDS, None):
            try:
                num_bytes = os.preadv(self._reader if directly else self._file, [block], offset)
                break
            except OSError as error:
                if pause_seconds is None:
                    raise StoreError(
                        f"the disk failed to read {self._path}: {error.strerror}; check it, or move the cache folder."
                    ) from error
                time.sleep(pause_seconds)
        if not num_bytes:
            raise StoreError(f"{self._path} ends at {offset} bytes, before its weights do; delete it and run again.")
        if not directly and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, offset, num_bytes, os.POSIX_FADV_DONTNEED)
        return num_bytes

    def _takes_direct_reads(self) -> bool:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            try:
                return os.preadv(self._reader, [page], 0) > 0
            except OSError:
                return False
