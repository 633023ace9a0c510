"""A matrix for an accelerator: each part of its blocks in a plane of its own, so that neighbours read neighbours.

A block of ggml's (Q4_K: 144 bytes, Q6_K: 210, Q8_0: 34) begins where no 16-byte read may. In planes the same bits lie
row after row, part after part:

    codes    4 bits: per chunk of 32 columns 16 bytes, byte j with column j in its low half, 16 + j in its high half;
             8 bits: a byte for each column, signed ones with 128 added
    high     the bits above the fourth: per chunk one 32-bit word (5-bit codes: bit j is column j's), or two (6-bit
             codes: the two bits from 2 j on of the first word are column j's, of the second column 16 + j's)
    scales   for each group of columns, as `PlaneLayout.scales` says
    supers   float16 that multiply the group scales of 256 columns: scale (and minimum)
    zeros    for each group the byte that is taken off its codes, where a format keeps zero points

Nothing is rounded: planes hold as many bytes as the blocks did. Shape suffixes: R rows, N blocks of a row, V values of
a block, G groups of a block, W words.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from residency.formats import blocks32, blocks256
from residency.formats.format import BF16, F16, F32, Format
from residency.formats.grouped import GroupedFormat, unpacked_codes

CHUNK_COLUMNS = 32

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Scales = Literal["half", "half-minimum", "six-bit", "byte", "zero"]
VALUE_BYTES: Mapping[str, int] = {  # of planes' and activations' values
    **{"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "int32": 4, "float32": 4}
}


@dataclass(frozen=True, kw_only=True)
class PlaneLayout:
    """How a format lies in planes; value = scale * (code - zero), plus or minus a minimum where it has one.

    scales: "half": a float16 a group; "half-minimum": a float16 scale and a float16 that is added; "six-bit": for
    each 8 groups three 32-bit words: the low four bits of the scales, those of the minima, and the high two bits of
    the scales, then of the minima; the minimum is subtracted; "byte": an int8 a group; "zero": a scale a group, and
    the zero point in the plane "zeros".
    """

    code_bits: Literal[4, 5, 6, 8]
    group_columns: int
    zero: int
    scales: Scales
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of "half" and "zero"

    @property
    def has_supers(self) -> bool:
        """Whether group scales are themselves multiplied by a float16."""
        return self.scales in ("six-bit", "byte")

    def shapes(self, rows: int, columns: int) -> dict[str, "PlaneShape"]:
        """The planes of a matrix, in the order in which they lie in memory. `columns` is of whole chunks and blocks."""
        chunks, groups = columns // CHUNK_COLUMNS, columns // self.group_columns
        planes = {"codes": PlaneShape((rows, columns if self.code_bits == 8 else columns // 2), "uint8")}
        if self.code_bits in (5, 6):
            planes["high"] = PlaneShape((rows, chunks * (self.code_bits - 4)), "int32")
        planes["scales"] = {
            "half": PlaneShape((rows, groups), self.scale_dtype),
            "zero": PlaneShape((rows, groups), self.scale_dtype),
            "half-minimum": PlaneShape((rows, groups, 2), "float16"),
            "six-bit": PlaneShape((rows, columns // 256, 3), "int32"),
            "byte": PlaneShape((rows, groups), "int8"),
        }[self.scales]
        if self.has_supers:
            planes["supers"] = PlaneShape((rows, columns // 256, 2 if self.scales == "six-bit" else 1), "float16")
        if self.scales == "zero":
            planes["zeros"] = PlaneShape((rows, groups), "uint8")
        return planes


@dataclass(frozen=True)
class PlaneShape:
    """The extents of one plane and its NumPy dtype, or "bfloat16"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the plane."""
        return math.prod(self.shape) * VALUE_BYTES[self.dtype]


PLANE_LAYOUTS: Mapping[str, PlaneLayout] = {
    "Q4_0": PlaneLayout(code_bits=4, group_columns=32, zero=8, scales="half"),
    "Q4_1": PlaneLayout(code_bits=4, group_columns=32, zero=0, scales="half-minimum"),
    "Q5_0": PlaneLayout(code_bits=5, group_columns=32, zero=16, scales="half"),
    "Q5_1": PlaneLayout(code_bits=5, group_columns=32, zero=0, scales="half-minimum"),
    "Q8_0": PlaneLayout(code_bits=8, group_columns=32, zero=128, scales="half"),
    "Q4_K": PlaneLayout(code_bits=4, group_columns=32, zero=0, scales="six-bit"),
    "Q5_K": PlaneLayout(code_bits=5, group_columns=32, zero=0, scales="six-bit"),
    "Q6_K": PlaneLayout(code_bits=6, group_columns=16, zero=32, scales="byte"),
}


_SCALE_DTYPES: Mapping[str, Literal["float16", "bfloat16", "float32"]] = {
    F16.name: "float16",
    BF16.name: "bfloat16",
    F32.name: "float32",
}
_SCALE_BITS = {F16.name: "<f2", BF16.name: "<u2", F32.name: "<f4"}  # NumPy has no bfloat16


def plane_layout(number_format: Format) -> PlaneLayout | None:
    """How a format of blocks, or of integers in groups, lies in planes; None where it does not."""
    if not isinstance(number_format, GroupedFormat):
        return PLANE_LAYOUTS.get(number_format.name)
    if number_format.bits not in (4, 8):
        return None
    return PlaneLayout(
        code_bits=4 if number_format.bits == 4 else 8,
        group_columns=number_format.block_values,
        zero=0 if number_format.has_zero else number_format.middle,
        scales="zero" if number_format.has_zero else "half",
        scale_dtype=_SCALE_DTYPES[number_format.scales.name],
    )


def to_planes(number_format: Format, rows_RB: Bytes) -> dict[str, Array]:
    """Rows in a format's own layout (rows, row_bytes), as planes by name; bfloat16 as the bits that it is."""
    if isinstance(number_format, GroupedFormat):
        return _grouped_planes(number_format, rows_RB)
    layout = PLANE_LAYOUTS[number_format.name]
    num_rows = len(rows_RB)
    columns = rows_RB.shape[1] // number_format.block_bytes * number_format.block_values
    blocks_RN = np.ascontiguousarray(rows_RB).view(_BLOCKS[number_format.name])
    codes_RC = _codes(number_format.name, blocks_RN).reshape(num_rows, columns)
    planes: dict[str, Array] = {"codes": codes_RC if layout.code_bits == 8 else _nibbles(codes_RC)}
    if layout.code_bits in (5, 6):
        planes["high"] = _high_words(np.right_shift(codes_RC, np.uint8(4)), layout.code_bits - 4)
    planes |= _scale_planes(layout, blocks_RN)
    shapes = layout.shapes(num_rows, columns)
    return {name: np.ascontiguousarray(planes[name]).reshape(plane.shape) for name, plane in shapes.items()}


def _grouped_planes(number_format: GroupedFormat, rows_RB: Bytes) -> dict[str, Array]:
    blocks_RGB = rows_RB.reshape(len(rows_RB), -1, number_format.block_bytes)
    packed_RGB, scales_RGB = np.split(blocks_RGB, [-number_format.scales.block_bytes], axis=2)
    codes_RGV = unpacked_codes(packed_RGB[:, :, : number_format.code_bytes], number_format.bits)
    codes_RC = codes_RGV.reshape(len(rows_RB), -1)
    low_RC = codes_RC if number_format.bits == 8 else _nibbles(codes_RC).reshape(len(rows_RB), -1)
    planes: dict[str, Array] = {"codes": low_RC}
    planes["scales"] = np.ascontiguousarray(scales_RGB).view(_SCALE_BITS[number_format.scales.name])[:, :, 0]
    if number_format.has_zero:
        planes["zeros"] = packed_RGB[:, :, -1]
    return {name: np.ascontiguousarray(plane) for name, plane in planes.items()}


_BLOCKS = {
    "Q4_0": blocks32.Q4_0_BLOCK,
    "Q4_1": blocks32.Q4_1_BLOCK,
    "Q5_0": blocks32.Q5_0_BLOCK,
    "Q5_1": blocks32.Q5_1_BLOCK,
    "Q8_0": blocks32.Q8_0_BLOCK,
    "Q4_K": blocks256.Q4_K_BLOCK,
    "Q5_K": blocks256.Q5_K_BLOCK,
    "Q6_K": blocks256.Q6_K_BLOCK,
}


def _codes(name: str, blocks_RN: npt.NDArray[np.void]) -> Bytes:
    """A byte for each code, in the order of columns: (rows, blocks, values); Q8_0's with 128 added."""
    if name == "Q8_0":
        signed: npt.NDArray[np.int8] = blocks_RN["code"]
        return signed.view(np.uint8) ^ np.uint8(128)
    low = blocks_RN["low"]
    if name == "Q6_K":
        halves = low.reshape(*low.shape[:2], 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & np.uint8(15)
        pairs = blocks_RN["high"].reshape(*low.shape[:2], 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
        joined: Array = halves.reshape(*low.shape[:2], 256) | pairs.reshape(*low.shape[:2], 256) << np.uint8(4)
        return joined.astype(np.uint8)
    runs = low.reshape(*low.shape[:2], -1, 1, 16 if low.shape[2] == 16 else 32)
    codes: Bytes = (runs >> np.array([0, 4], np.uint8)[:, None] & np.uint8(15)).reshape(*low.shape[:2], -1)
    if name.startswith("Q5"):
        codes = np.bitwise_or(codes, _fifth_bits(name, blocks_RN["high"]) << np.uint8(4))
    return codes


def _fifth_bits(name: str, high_RNB: Bytes) -> Bytes:
    if name == "Q5_K":
        bits: Bytes = high_RNB[:, :, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
        return bits.reshape(*high_RNB.shape[:2], 256)
    return np.unpackbits(high_RNB, axis=2, bitorder="little")


def _nibbles(codes_RC: Bytes) -> Bytes:
    halves = (codes_RC & np.uint8(15)).reshape(len(codes_RC), -1, 2, CHUNK_COLUMNS // 2)
    packed: Bytes = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return packed


def _high_words(high_RC: Bytes, bits: int) -> npt.NDArray[np.int32]:
    """Words of 32 // bits columns' high bits, the first column's lowest."""
    fields = high_RC.reshape(len(high_RC), -1, 32 // bits).astype(np.uint32)
    words: npt.NDArray[np.uint32] = np.bitwise_or.reduce(
        fields << np.arange(0, 32, bits, dtype=np.uint32), axis=2, dtype=np.uint32
    )
    return words.view(np.int32)


def _scale_planes(layout: PlaneLayout, blocks_RN: npt.NDArray[np.void]) -> dict[str, Array]:
    scale = blocks_RN["scale"]
    if layout.scales == "half":
        return {"scales": scale}
    if layout.scales == "byte":
        return {"scales": blocks_RN["groups"], "supers": scale}
    both = np.stack([scale, blocks_RN["min"]], axis=-1)
    if layout.scales == "half-minimum":
        return {"scales": both}
    return {"scales": _six_bit_words(blocks_RN["groups"]), "supers": both}


def _six_bit_words(groups_RNB: Bytes) -> npt.NDArray[np.int32]:
    """From ggml's 12 bytes, where groups 4 to 7 have their high bits above the first ones'."""
    first, second, rest = np.split(groups_RNB, 3, axis=2)
    scale_RNG = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=2).astype(np.uint32)
    least_RNG = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=2).astype(np.uint32)
    fours, twos = (np.arange(0, 8 * bits, bits, dtype=np.uint32) for bits in (4, 2))

    def packed(fields: Array) -> Array:
        joined: Array = np.bitwise_or.reduce(fields, axis=2, dtype=np.uint32)
        return joined

    high = packed((scale_RNG >> 4) << twos) | packed((least_RNG >> 4) << (twos + np.uint32(16)))
    words_RNW = np.stack([packed((scale_RNG & 15) << fours), packed((least_RNG & 15) << fours), high], axis=2)
    words: npt.NDArray[np.int32] = words_RNW.view(np.int32)
    return words
