"""Integers in groups along the columns, as GPTQ, AWQ and compressed-tensors make them: packed and unpacked in NumPy.

A block is one group of a row: codes of 2, 3, 4 or 8 bits one after the other, lowest bits first; a byte of zero point,
where there are such; the scale, in the bits in which the checkpoint has it. value = scale * (code - zero point), which
is half the codes' range where none is kept. What is quantized by whole rows is kept in groups that repeat its scale.
Shape suffixes: R rows, C columns, G groups of a row, V values of a group, B bytes.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.formats.format import BF16, F16, F32, Format

GROUPS = (128, 64, 32)
BITS = (2, 3, 4, 8)

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_SCALES = {"": F16, "_BF16": BF16, "_F32": F32}
_NAME = re.compile(r"INT([2348])_G(32|64|128)(_ZP)?(_BF16|_F32)?")


@dataclass(frozen=True, kw_only=True)
class GroupedFormat(Format):
    """Integers of `bits` bits in groups of `block_values`."""

    bits: int
    scales: Format
    has_zero: bool  # whether each group keeps its zero point

    @property
    def code_bytes(self) -> int:
        """Bytes of a block's codes."""
        return self.block_values * self.bits // 8

    @property
    def middle(self) -> int:
        """The zero point where none is kept."""
        return 1 << (self.bits - 1)


def grouped(*, bits: int, group: int, scales: Format = F16, has_zero: bool = False) -> GroupedFormat:
    """The format of these properties, each one of those that there are."""
    suffix = next(text for text, each in _SCALES.items() if each == scales)
    return GroupedFormat(
        name=f"INT{bits}_G{group}" + ("_ZP" if has_zero else "") + suffix,
        block_values=group,
        block_bytes=group * bits // 8 + has_zero + scales.block_bytes,
        bits=bits,
        scales=scales,
        has_zero=has_zero,
    )


def grouped_named(name: str) -> GroupedFormat | None:
    """The format of integers in groups that is called so."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return grouped(bits=int(match[1]), group=int(match[2]), has_zero=bool(match[3]), scales=_SCALES[match[4] or ""])


def assembled(fmt: GroupedFormat, codes_RC: Bytes, scales_RGB: Bytes, zeros_RG: Bytes | None = None) -> Bytes:
    """Rows (rows, row_bytes) of these codes, scales (in bytes) and zero points, where the format keeps them."""
    rows = len(codes_RC)
    parts = [packed_codes(codes_RC.reshape(rows, -1, fmt.block_values), fmt.bits)]
    if fmt.has_zero:
        assert zeros_RG is not None
        parts.append(zeros_RG[:, :, None])
    return np.concatenate([*parts, scales_RGB], axis=2).reshape(rows, -1)


def unpack_grouped(fmt: GroupedFormat, rows_RB: Bytes) -> Floats:
    """The values of rows, (rows, columns)."""
    blocks_RGB = rows_RB.reshape(len(rows_RB), -1, fmt.block_bytes)
    codes_RGV = unpacked_codes(blocks_RGB[:, :, : fmt.code_bytes], fmt.bits).astype(np.float32)
    scales_RGB = np.ascontiguousarray(blocks_RGB[:, :, -fmt.scales.block_bytes :])
    zeros_RGB = blocks_RGB[:, :, fmt.code_bytes, None].astype(np.float32) if fmt.has_zero else np.float32(fmt.middle)
    values_RGV: Floats = _floats(fmt.scales, scales_RGB)[:, :, None] * (codes_RGV - zeros_RGB)
    return values_RGV.reshape(len(rows_RB), -1)


def pack_grouped(fmt: GroupedFormat, values_RC: Floats) -> Bytes:
    """Without zero points, each group's value of largest magnitude becomes code 0; with them, its range with 0 is cut
    into as many steps as there are codes.
    """
    values_RGV = values_RC.reshape(len(values_RC), -1, fmt.block_values)
    most = 2**fmt.bits - 1
    if fmt.has_zero:
        least_RG = np.minimum(values_RGV.min(axis=2), 0)
        scale_RG = (np.maximum(values_RGV.max(axis=2), 0) - least_RG) / np.float32(most)
    else:
        index = np.abs(values_RGV).argmax(axis=2)[:, :, None]
        scale_RG = np.take_along_axis(values_RGV, index, axis=2)[:, :, 0] / np.float32(-fmt.middle)
    scales_RGB = _in_bytes(fmt.scales, scale_RG)
    kept_RG = _floats(fmt.scales, scales_RGB)
    inverse_RG = np.divide(np.float32(1), kept_RG, out=np.zeros_like(kept_RG), where=kept_RG != 0)
    zeros_RG = np.rint(-least_RG * inverse_RG).clip(0, most) if fmt.has_zero else np.full_like(kept_RG, fmt.middle)
    codes_RGV = np.rint(values_RGV * inverse_RG[:, :, None] + zeros_RG[:, :, None]).clip(0, most).astype(np.uint8)
    return assembled(fmt, codes_RGV.reshape(values_RC.shape), scales_RGB, zeros_RG.astype(np.uint8))


def unpacked_codes(packed: Bytes, bits: int) -> Bytes:
    """The codes of so many bits in bytes, the lowest first: (…, bytes) to (…, 8 / bits * bytes)."""
    if bits == 8:
        return packed
    if bits == 4:
        return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*packed.shape[:-1], -1)
    single = np.unpackbits(packed, axis=-1, bitorder="little").reshape(*packed.shape[:-1], -1, bits)
    return np.packbits(single, axis=-1, bitorder="little")[..., 0]


def packed_codes(codes: Bytes, bits: int) -> Bytes:
    """The reverse of `unpacked_codes`; the codes fill whole bytes."""
    if bits == 8:
        return codes
    if bits == 4:
        return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
    single = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(single.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def _floats(fmt: Format, values_XB: Bytes) -> Floats:
    """Floating-point numbers from their bytes, which are the last axis."""
    if fmt == BF16:
        return (values_XB.view("<u2")[..., 0].astype(np.uint32) << 16).view(np.float32)
    values: Floats = values_XB.view("<f2" if fmt == F16 else "<f4")[..., 0].astype(np.float32)
    return values


def _in_bytes(fmt: Format, values: Floats) -> Bytes:
    if fmt == BF16:
        bits = values.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")[..., None].view(np.uint8)
    with np.errstate(over="ignore"):
        return values.astype("<f2" if fmt == F16 else "<f4")[..., None].view(np.uint8)
