"""Long runs of length-prefixed strings (a vocabulary) in a file: walked quickly, decoded only when asked."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
import numpy.typing as npt

from residency.errors import FileError

PREFIX_BYTES = 8  # a little-endian uint64 length before each string
CHUNK_BYTES = 1 << 20


class StringArray(Sequence[str]):
    """Strings that stay in their file until they are asked for.

    Iterating reads and decodes all of them and keeps nothing; indexing decodes them once and keeps them.
    FileError if the file has changed or a string is not UTF-8.
    """

    def __init__(self, path: Path, offset: int, num_bytes: int, num_strings: int) -> None:
        self._path = path
        self._offset = offset
        self._num_bytes = num_bytes
        self._num_strings = num_strings
        self._strings: list[str] | None = None

    def __len__(self) -> int:
        return self._num_strings

    def __iter__(self) -> Iterator[str]:
        return iter(self.decode() if self._strings is None else self._strings)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if self._strings is None:
            self._strings = self.decode()
        return self._strings[index]

    def __repr__(self) -> str:
        return f"StringArray({self._num_strings} strings in {self._path.name})"

    def decode(self) -> list[str]:
        """All strings, read from the file now."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read(self._num_bytes)
        except OSError as error:
            raise FileError(f"{self._path} could not be read: {error.strerror}.") from error
        starts_N = string_starts(data, self._num_strings)
        ends = [*starts_N.tolist(), len(data)][1:]
        if len(data) != self._num_bytes or len(starts_N) != self._num_strings:
            raise FileError(f"{self._path} has changed since it was opened; open it again.")
        try:
            begins = (starts_N + PREFIX_BYTES).tolist()
            return [data[begin:end].decode() for begin, end in zip(begins, ends, strict=True)]
        except UnicodeDecodeError as error:
            raise FileError(f"{self._path} holds a string that is not UTF-8; the file is damaged.") from error


def walk_strings(file: BinaryIO, path: Path, num_strings: int, file_bytes: int) -> StringArray:
    """The `num_strings` strings at the file's position, which moves past them. FileError if the file ends before."""
    offset = position = file.tell()
    remaining = num_strings
    while remaining:
        data = file.read(min(CHUNK_BYTES, file_bytes - position))
        starts_N = string_starts(data, remaining)
        if len(starts_N):
            last = int(starts_N[-1])
            position += last + PREFIX_BYTES + _length_at(data, last)
        if not len(starts_N) or position > file_bytes:
            raise FileError(
                f"{path} is truncated or damaged: it ends within an array of {num_strings} strings "
                f"at byte {offset}, {remaining - len(starts_N)} of them missing. Fetch the file again."
            )
        remaining -= len(starts_N)
        file.seek(position, os.SEEK_SET)
    return StringArray(path, offset, position - offset, num_strings)


def string_starts(data: bytes, num_strings: int) -> npt.NDArray[np.int64]:
    """Where the prefixes of the first `num_strings` strings start, as far as whole prefixes lie in `data`.

    Exact, and fast where strings are short: wherever eight bytes read as a length below 256 a string may start,
    and where a run of such places agrees with its own lengths it is taken at once; elsewhere single steps are taken.
    """
    places_P, agrees_until_P = _likely_starts(data)
    runs: list[npt.NDArray[np.int64]] = []
    position, found = 0, 0
    while found < num_strings and position + PREFIX_BYTES <= len(data):
        place = int(np.searchsorted(places_P, position))
        if place < len(places_P) and places_P[place] == position:
            run_N = places_P[place : min(int(agrees_until_P[place]) + 1, place + num_strings - found)]
        else:
            run_N = np.array([position], np.int64)
        runs.append(run_N)
        found += len(run_N)
        last = int(run_N[-1])
        position = last + PREFIX_BYTES + _length_at(data, last)
    return np.concatenate(runs) if runs else np.zeros(0, np.int64)


def _likely_starts(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places where a length below 256 may stand; and for each, the last place that its chain of lengths reaches."""
    num_words = len(data) // PREFIX_BYTES - 1
    if num_words < 1:
        empty = np.zeros(0, np.int64)
        return empty, empty
    small_WB = np.empty((num_words, PREFIX_BYTES), np.bool_)
    for shift in range(PREFIX_BYTES):
        small_WB[:, shift] = np.frombuffer(data, "<u8", num_words, shift) < 256
    places_P = np.flatnonzero(small_WB)
    lengths_P = np.frombuffer(data, np.uint8)[places_P]
    breaks_B = np.flatnonzero(places_P[1:] != places_P[:-1] + PREFIX_BYTES + lengths_P[:-1])
    ends_B = np.append(breaks_B, len(places_P) - 1)
    sizes_B = np.diff(ends_B, prepend=-1)
    return places_P, np.repeat(ends_B, sizes_B)


def _length_at(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + PREFIX_BYTES], "little")
