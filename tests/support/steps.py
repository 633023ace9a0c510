"""Runs one operator, or a few, as a step: inputs in NumPy arrays, outputs poisoned, and guards around every array."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.engine.workers import Workers
from residency.formats import FORMATS, format_named
from residency.kernels.library import Library
from residency.kernels.matmul.reference import GROUP_VALUES, quantize_rows, rounded_to_bf16
from residency.kernels.recorder import Inputs, Recorder, Rows, address_of
from residency.kernels.simd.tiles import has_tiles
from residency.spec.state import RUN_KV_NAMES

# Of integers in groups each property that there is, at least once.
GROUPED = ("INT2_G128_BF16", "INT3_G32_ZP", "INT4_G128", "INT4_G64_ZP_BF16", "INT8_G128_F32")
MATRICES = FORMATS | {name: format_named(name) for name in GROUPED}
KERNELS = (
    *(f"{operator}.{name}" for operator in ("matmul", "embed") for name in MATRICES),
    *(f"gated_matmul.silu_{name}" for name, each in MATRICES.items() if not each.is_float and has_tiles()),
    "norm.rms",
    "sample.likeliest",
    "positions.splits",
    "positions.slots",
    "positions.angles",
    "order.columns",
    "gate.silu",
    "gate.gelu_tanh",
    *(f"rotary.rotate_and_store_{name}" for name in RUN_KV_NAMES),
    *(f"attention.attend_{name}" for name in RUN_KV_NAMES),
    "attention.combine",
    *(f"experts.{name}" for name in ("route", "sort", "fetch", "gather_packed", "gather_floats", "combine")),
    *(f"experts.{name}" for each in ("F32", "Q4_1") for name in (f"gate_up_silu_{each}", f"down_{each}")),
    "step.run",
    "step.serve",
)
GROUP_BYTES = 48  # of a quantized group of 32 values: int8 codes, and float32 scale, two halves' sums and the sum
ROW_GROUP_BYTES = 64  # what a row has for each group, quantized or not
_GUARD_BYTES = 256
_GUARD = 0xA5

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Run = Callable[["Step", int], None]  # a step, and on how many threads


@dataclass
class _Given(Rows):
    """Rows that are packed when somebody asks for it."""

    num_prompt: int = 0

    def as_q8(self, together: int = 1) -> npt.NDArray[np.uint8]:
        assert self.q8 is not None
        self.q8[...] = packed_groups(self.values, together)
        if self.num_prompt:
            self.q8[-self.num_prompt :] = packed_prompt(self.values[-self.num_prompt :])
        return self.q8


class Step:
    """One step's inputs and buffers. Arrays made here lie between guards that nothing may write to."""

    def __init__(
        self,
        *,
        num_tokens: int,
        num_prompt: int = 0,
        logit_rows: Sequence[int] = (),
        items: Sequence[tuple[int, int]] = (),
        positions: Sequence[int] = (),
        sequences: Sequence[int] = (),
        splits: int = 1,
    ) -> None:
        self._guarded: list[npt.NDArray[np.uint8]] = []
        counts = self.given(
            np.array([num_tokens, len(logit_rows), len(items), splits, num_tokens - num_prompt], np.int64)
        )
        rows, runs, at, of, parts = (
            self.given(np.array(values, np.int64))
            for values in (logit_rows, items, positions, sequences, [splits] * num_tokens)
        )
        self.splits = parts
        first = address_of(counts)
        self.inputs = Inputs(
            num_tokens=first,
            num_int8=first + 32,
            num_logits=first + 8,
            num_items=first + 16,
            most_splits=first + 24,
            splits=address_of(parts),
            logit_rows=address_of(rows),
            items=address_of(runs),
            positions=address_of(at),
            sequences=address_of(of),
        )
        self.buffers: dict[str, Array] = {}
        self.recorder = Recorder(self.inputs, self.buffers)

    def given(self, values: Array) -> Array:
        """A guarded copy of `values`."""
        made = self._array(values.shape, values.dtype)
        made[...] = values
        return made

    def poisoned(self, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """A guarded array of NaN; of bytes, all bits set."""
        made = self._array(shape, np.dtype(dtype))
        made.view(np.uint8).fill(0xFF)
        return made

    def poisoned_groups(self, tokens: int, columns: int) -> npt.NDArray[np.uint8]:
        """A poisoned array for packed rows of so many columns."""
        return self.poisoned(tokens, columns // GROUP_VALUES * ROW_GROUP_BYTES, dtype=np.uint8)

    def rows(self, values_TC: Floats, *, num_prompt: int = 0) -> Rows:
        """An activation as its maker would leave it: the rows and, as far as they are whole groups, their packed twin.

        The last `num_prompt` are a prompt's.
        """
        return _Given(self.given(values_TC), self.poisoned_groups(*values_TC.shape), num_prompt=num_prompt)

    @property
    def guards_are_intact(self) -> bool:
        """Whether no kernel has written outside its arrays."""
        ends = (part for whole in self._guarded for part in (whole[:_GUARD_BYTES], whole[-_GUARD_BYTES:]))
        return all(bool((part == _GUARD).all()) for part in ends)

    def _array(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        whole = np.full(num_bytes + 2 * _GUARD_BYTES + 64, _GUARD, np.uint8)
        whole = whole[-address_of(whole) % 64 :][: num_bytes + 2 * _GUARD_BYTES]
        self._guarded.append(whole)
        return whole[_GUARD_BYTES : _GUARD_BYTES + num_bytes].view(dtype).reshape(shape)


class Runner:
    """Runs steps on one thread or two, with all kernels linked once."""

    def __init__(self, library: Library | None = None) -> None:
        self.library = library or Library(KERNELS)
        self._workers = {threads: Workers(self.library, threads) for threads in (1, 2)}

    def __call__(self, step: Step, threads: int) -> None:
        """Run what `step` recorded; fails where a kernel wrote outside the arrays."""
        self._workers[threads].run(step.recorder.finish(self.library))
        assert step.guards_are_intact

    def close(self) -> None:
        """End the threads."""
        for workers in self._workers.values():
            workers.close()


def packed_groups(values_TC: Floats, together: int = 1) -> npt.NDArray[np.uint8]:
    """Quantized rows as the kernels hold them, (tokens, columns / 32 * 64) bytes; the last quarter is poisoned."""
    quantized = quantize_rows(values_TC, together)
    tokens, groups = quantized.scales_TG.shape
    words = np.concatenate([quantized.scales_TG[:, :, None], quantized.sums_TG3], axis=2).astype(np.float32, "C")
    rows = np.full((tokens, groups * ROW_GROUP_BYTES), 0xFF, np.uint8)
    rows[:, : groups * GROUP_VALUES] = quantized.codes_TGV.reshape(tokens, -1).view(np.uint8)
    rows[:, groups * GROUP_VALUES : groups * GROUP_BYTES] = words.reshape(tokens, -1).view(np.uint8)
    return rows


def packed_prompt(values_TC: Floats) -> npt.NDArray[np.uint8]:
    """A prompt's rows as the kernels hold them: tiles of 16 rows, in which group after group has 64 bytes a row."""
    bits_TC = (rounded_to_bf16(values_TC).view(np.uint32) >> 16).astype(np.uint16)
    groups_TGV = bits_TC.reshape(len(bits_TC), -1, GROUP_VALUES)
    tiles = [groups_TGV[first : first + 16].transpose(1, 0, 2).ravel() for first in range(0, len(bits_TC), 16)]
    return np.concatenate(tiles).view(np.uint8).reshape(len(bits_TC), -1)


def unpacked_prompt(packed_TB: npt.NDArray[np.uint8]) -> Floats:
    """What `packed_prompt` has packed, rounded."""
    words_TC = np.ascontiguousarray(packed_TB).view(np.uint16)
    tiles = [
        words_TC[first : first + 16].reshape(-1, len(words_TC[first : first + 16]), GROUP_VALUES).transpose(1, 0, 2)
        for first in range(0, len(words_TC), 16)
    ]
    rows_TC = np.concatenate([tile.reshape(len(tile), -1) for tile in tiles])
    return (rows_TC.astype(np.uint32) << 16).view(np.float32)


def codes_of(packed_TB: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """The codes in quantized rows, (tokens, columns)."""
    return np.ascontiguousarray(packed_TB[:, : _num_groups(packed_TB) * GROUP_VALUES]).view(np.int8)


def words_of(packed_TB: npt.NDArray[np.uint8]) -> Floats:
    """The four words of each group, (tokens, groups, 4): scale, two halves' sums and the sum."""
    groups = _num_groups(packed_TB)
    words = np.ascontiguousarray(packed_TB[:, groups * GROUP_VALUES : groups * GROUP_BYTES])
    return words.view(np.float32).reshape(len(packed_TB), groups, 4)


def _num_groups(packed_TB: npt.NDArray[np.uint8]) -> int:
    return int(packed_TB.shape[1] // ROW_GROUP_BYTES)
