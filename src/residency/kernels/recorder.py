"""A step, recorded: models call operators once, and what they would have computed becomes a list of kernels.

The list is the CPU's counterpart of a CUDA graph. Its kernels read the number of tokens, positions and page tables from
the step's inputs, so one recording serves every step; Python only writes the inputs and starts the threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.kernels.library import Library

MOST_KERNELS = 1 << 20  # of a program
PROGRAM_WORDS = 5  # of each kernel

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass
class Launch:
    """One kernel with its words. Words may still change until the recording ends."""

    kernel: str
    words: dict[str, int | float]
    meet: bool  # whether all threads wait for each other after it
    shares: int = 1  # into so many parts it is cut where tokens are few; threads that are done take over others' parts


@dataclass(frozen=True)
class Inputs:
    """Addresses of what changes from step to step (see engine/inputs.py, which writes it)."""

    num_tokens: int
    num_int8: int  # tokens whose rows meet matrices in int8: the first ones, that are no prompt's
    num_logits: int
    num_items: int
    most_splits: int
    splits: int
    logit_rows: int
    items: int
    positions: int
    sequences: int


@dataclass
class Rows:
    """The rows of an activation: float32, packed for matrices in blocks, or both; its maker writes what is asked for.

    `values` (tokens, columns); `q8` (tokens, columns / 32 x 64) bytes, see simd/blocks.py.
    """

    values: FloatArray
    q8: npt.NDArray[np.uint8] | None = None
    launch: Launch | None = None  # its maker, whose words "out" and "q8" are 0 until somebody asks
    ordered: tuple[int, "Rows"] | None = None  # its columns in another order, and the address of that

    def as_values(self) -> FloatArray:
        """The float32 rows."""
        if self.launch is not None and "out" in self.launch.words:
            self.launch.words["out"] = address_of(self.values)
        return self.values

    def as_q8(self, together: int = 1) -> npt.NDArray[np.uint8]:
        """The packed rows, at least `together` groups of 32 columns of which share a scale."""
        assert self.q8 is not None and self.launch is not None
        words = self.launch.words
        words["q8"], words["together"] = address_of(self.q8), max(together, words["together"])
        return self.q8


@dataclass
class Recorder:
    """Collects launches. Arrays that are named in them must outlive the program."""

    inputs: Inputs
    buffers: dict[str, Array]
    launches: list[Launch] = field(default_factory=list)

    def launch(self, kernel: str, *, meet: bool = True, shares: int = 1, **words: int | float) -> Launch:
        """Append a kernel; `meet=False` where the next one does not read what this one writes. One of several `shares`
        has a word "tokens_at".
        """
        made = Launch(kernel, dict(words), meet, shares)
        self.launches.append(made)
        return made

    @property
    def kernels(self) -> set[str]:
        """The names of all kernels that were recorded."""
        return {launch.kernel for launch in self.launches}

    @property
    def first_of_logits(self) -> int:
        """The number of the first launch that makes logits of a step's last hidden states: it and those after it may
        be run again for other rows.
        """
        return next(i for i, each in enumerate(self.launches) if each.words.get("rows_at"))

    def finish(self, library: Library) -> "Program":
        """The recording with every address resolved."""
        return finish(self.launches, library)


@dataclass(frozen=True)
class Program:
    """A finished recording: per kernel the words that kernels/step/cpu.py's `run` names."""

    table: npt.NDArray[np.int64]
    blocks: list[Any]  # keeps the words alive

    @property
    def address(self) -> int:
        """Where the table is."""
        return address_of(self.table)


def finish(launches: Sequence[Launch], library: Library) -> Program:
    """The program of the launches, every address resolved."""
    blocks = [library[launch.kernel].pack(dict(launch.words)) for launch in launches]
    table = np.zeros((len(blocks), PROGRAM_WORDS), np.int64)
    for i, (launch, block) in enumerate(zip(launches, blocks, strict=True)):
        table[i, :3] = library[launch.kernel].address, np.frombuffer(block, np.int64).ctypes.data, launch.meet
        if launch.shares > 1:
            table[i, 3:] = launch.shares, launch.words["tokens_at"]
    table[-1:, 2] = 1  # a step ends when all threads are done
    return Program(table, blocks)


def address_of(array: Array) -> int:
    """The address of an array's first value."""
    return int(array.ctypes.data)


def row_bytes(array: Array) -> int:
    """Bytes from one row of a two-dimensional array to the next."""
    return int(array.strides[0])
