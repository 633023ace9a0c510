"""Where a step's time goes: the recorded step with a time stamp after each of its kernels."""

import ctypes
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.engine.workers import Workers
from residency.kernels.library import Kernel, Library
from residency.kernels.recorder import PROGRAM_WORDS, Program, address_of

STAMP = "step.stamp"
_COUNTS = ("int8_at", "tokens_at", "splits_at")  # words that lead to numbers that change from step to step


@dataclass(frozen=True, kw_only=True)
class LaunchTime:
    """One kernel of a step: what it was given, and the median of how long it took, waiting for all threads included.

    `words` are its recorded words; for "tokens_at" there is also "tokens", as it was, and so for the other counts.
    """

    kernel: str
    words: dict[str, int | float]
    seconds: float


class StampedStep:
    """A program that runs as it always does, caches and all, and notes after each kernel when that was."""

    def __init__(self, program: Program, library: Library, kernels: Iterable[str]) -> None:
        """`kernels` are the names of those that the program launches, in any order."""
        names = {library[name].address: name for name in kernels}
        self._launches = [
            (names[int(entry)], _unpacked(library[names[int(entry)]], block))
            for (entry, *_), block in zip(program.table, program.blocks, strict=True)
        ]
        self._stamps = np.zeros(len(program.table) + 1, np.int64)
        self._words = address_of(self._stamps) + 8 * np.arange(len(self._stamps), dtype=np.int64)
        self._kernel = Library([STAMP])
        entry = self._kernel[STAMP].address
        table = np.zeros((2 * len(program.table) + 2, PROGRAM_WORDS), np.int64)
        table[0, :3] = entry, address_of(self._words), 1  # all threads are awake before the first kernel counts
        table[1::2, 0] = entry
        table[1::2, 1] = address_of(self._words) + 8 * np.arange(len(self._words))
        table[2::2] = program.table
        self._program = Program(table, program.blocks)
        self._ticks: list[npt.NDArray[np.int64]] = []
        self._seconds = 0.0

    def run(self, workers: Workers) -> None:
        """One step, noted."""
        started = time.perf_counter()
        workers.run(self._program)
        self._seconds += time.perf_counter() - started
        self._ticks.append(np.diff(self._stamps))

    def times(self) -> tuple[LaunchTime, ...]:
        """The kernels in their order; medians over all runs. The counts are those of the last."""
        ticks = np.array(self._ticks)
        seconds = np.median(ticks, axis=0) * (self._seconds / ticks.sum())
        return tuple(
            LaunchTime(kernel=kernel, words=_with_counts(words), seconds=float(each))
            for (kernel, words), each in zip(self._launches, seconds, strict=True)
        )


def _unpacked(kernel: Kernel, block: Any) -> dict[str, int | float]:
    """A kernel's words by their names, as they were before `Kernel.pack`."""
    return {
        name.removesuffix(":f"): ctypes.c_double.from_buffer(block, 8 * i).value if name.endswith(":f") else block[i]
        for i, name in enumerate(kernel.words)
    }


def _with_counts(words: dict[str, int | float]) -> dict[str, int | float]:
    counts = {
        name.removesuffix("_at"): ctypes.c_int64.from_address(int(words[name])).value
        for name in _COUNTS
        if name in words
    }
    return {**words, **counts}
