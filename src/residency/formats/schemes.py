"""Quantized matrices that a checkpoint keeps as several tensors: codes, scales, zero points, orders of columns.

A matrix of (rows, columns) multiplies inputs of `columns` values; groups run along the columns. The shapes are those
that the tools write: GPTQ (arXiv 2210.17323) as AutoGPTQ, AWQ (arXiv 2306.00978) as AutoAWQ's GEMM kernels,
compressed-tensors, DeepSeek-V3's FP8 with a scale for each 128 x 128, and bitsandbytes' NF4 and LLM.int8().
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from residency.formats.format import BF16, F8_E4M3, F16, F32, I8, I32, I64, U8, Format

Shape = tuple[int, ...]
COMPRESSED_NVFP4 = (".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale")
MODELOPT_NVFP4 = (".weight", ".weight_scale", ".weight_scale_2", ".input_scale")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the tensors that together are a matrix."""

    suffix: str  # of the name, in place of ".weight"
    format: Format
    shape_of: Callable[[int, int], Shape]  # of rows and columns


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a scheme's parts hold a matrix of integers: value = scale * (code - zero point)."""

    layout: Literal["gptq", "awq", "packed", "int8", "llm-int8"]
    bits: int
    group: int | None  # columns that share a scale; None: a whole row
    symmetric: bool  # whether all zero points are half the codes' range
    ordered: bool = False  # whether groups are of columns in any order, as g_idx says
    zero_less: int = 0  # what zero points are kept less


@dataclass(frozen=True, kw_only=True)
class Scheme(Format):
    """A number format whose matrices are several tensors. `block_values` and `block_bytes` are its main part's.

    Where `packing` is given, the matrices can be read, and multiplied as integers in groups.
    """

    parts: tuple[Part, ...]
    packing: Packing | None = None

    def parts_of(self, shape: Shape) -> Mapping[str, tuple[Format, Shape]]:
        """Format and shape of each part of a matrix, by suffix; a stack of matrices has stacks of parts."""
        *stack, rows, columns = shape
        return {part.suffix: (part.format, (*stack, *part.shape_of(rows, columns))) for part in self.parts}

    def bytes_of(self, shape: Shape) -> int:
        """Bytes of all parts of a matrix, or of a stack of matrices."""
        return sum(number_format.bytes_of(part) for number_format, part in self.parts_of(shape).values())


def gptq(
    *,
    bits: int,
    group: int | None,
    order: bool = True,
    scales: Format = F16,
    symmetric: bool = False,
    ordered: bool = False,
    zero_less: int = 1,
) -> Scheme:
    """GPTQ's packed integers: zero points in every file, and g_idx, which tells each column's group.

    Zero points are kept less one; in the second version of the format as they are (`zero_less` 0).
    """
    parts = [
        Part(suffix=".qweight", format=I32, shape_of=lambda rows, columns: (_words(columns, bits), rows)),
        Part(suffix=".qzeros", format=I32, shape_of=lambda rows, cols: (_groups(cols, group), _words(rows, bits))),
        Part(suffix=".scales", format=scales, shape_of=lambda rows, columns: (_groups(columns, group), rows)),
    ]
    if order:
        parts.append(Part(suffix=".g_idx", format=I32, shape_of=lambda rows, columns: (columns,)))
    packing = Packing(layout="gptq", bits=bits, group=group, symmetric=symmetric, ordered=ordered, zero_less=zero_less)
    return _scheme("gptq", bits, group, parts, packing)


def awq(*, bits: int, group: int | None, zero_point: bool = True) -> Scheme:
    """AWQ's packed integers, in the layout of its GEMM kernels."""
    parts = [Part(suffix=".qweight", format=I32, shape_of=lambda rows, columns: (columns, _words(rows, bits)))]
    if zero_point:
        shape_of = lambda rows, columns: (_groups(columns, group), _words(rows, bits))  # noqa: E731
        parts.append(Part(suffix=".qzeros", format=I32, shape_of=shape_of))
    parts.append(Part(suffix=".scales", format=F16, shape_of=lambda rows, columns: (_groups(columns, group), rows)))
    packing = Packing(layout="awq", bits=bits, group=group, symmetric=not zero_point)
    return _scheme("awq", bits, group, parts, packing)


def packed(*, bits: int, group: int | None, scales: Format, symmetric: bool = True, order: bool = False) -> Scheme:
    """compressed-tensors' pack-quantized integers."""
    parts = [
        Part(suffix=".weight_packed", format=I32, shape_of=lambda rows, columns: (rows, _words(columns, bits))),
        Part(suffix=".weight_scale", format=scales, shape_of=lambda rows, columns: (rows, _groups(columns, group))),
        Part(suffix=".weight_shape", format=I64, shape_of=lambda rows, columns: (2,)),
    ]
    if not symmetric:
        shape_of = lambda rows, columns: (_words(rows, bits), _groups(columns, group))  # noqa: E731
        parts.append(Part(suffix=".weight_zero_point", format=I32, shape_of=shape_of))
    if order:
        parts.append(Part(suffix=".weight_g_idx", format=I32, shape_of=lambda rows, columns: (columns,)))
    packing = Packing(layout="packed", bits=bits, group=group, symmetric=symmetric, ordered=order)
    return _scheme("packed", bits, group, parts, packing)


def by_channel(
    values: Format, *, scales: Format, whole: bool = False, static_inputs: bool = False, symmetric: bool = True
) -> Scheme:
    """Eight-bit values with one scale for each row, or for the `whole` matrix; with a fixed scale of the inputs."""
    shape: Callable[[int, int], Shape] = (lambda rows, columns: (1,)) if whole else (lambda rows, columns: (rows, 1))
    parts = [_weight(values), Part(suffix=".weight_scale", format=scales, shape_of=shape)]
    if static_inputs:
        parts.append(Part(suffix=".input_scale", format=scales, shape_of=lambda rows, columns: (1,)))
    packing = Packing(layout="int8", bits=8, group=None, symmetric=symmetric) if values is I8 else None
    name = "int8" if values is I8 else "fp8"
    return Scheme(name=name, block_values=1, block_bytes=1, parts=tuple(parts), packing=packing)


def by_tile(*, rows_of_tile: int = 128, columns_of_tile: int = 128, scales: Format = F32) -> Scheme:
    """FP8 with one scale for each tile, as DeepSeek-V3 (arXiv 2412.19437, section 3.3) is published."""
    shape_of = lambda rows, columns: (-(-rows // rows_of_tile), -(-columns // columns_of_tile))  # noqa: E731
    parts = (_weight(F8_E4M3), Part(suffix=".weight_scale_inv", format=scales, shape_of=shape_of))
    return Scheme(name="fp8-block", block_values=1, block_bytes=1, parts=parts)


def nf4(*, block: int = 64, double: bool = False) -> Scheme:
    """bitsandbytes' NormalFloat4 (QLoRA, arXiv 2305.14314): a float32 absmax for each block; where those are
    quantized too, a byte each and a float32 for each 256. The few bytes of text beside each matrix are not counted.
    """
    half = Part(suffix=".weight", format=U8, shape_of=lambda rows, columns: (-(-rows * columns // 2), 1))
    table = Part(suffix=".weight.quant_map", format=F32, shape_of=lambda rows, columns: (16,))
    blocks = lambda rows, columns: (-(-rows * columns // block),)  # noqa: E731
    parts = [half, Part(suffix=".weight.absmax", format=U8 if double else F32, shape_of=blocks), table]
    if double:
        outer = lambda rows, columns: (-(-rows * columns // (256 * block)),)  # noqa: E731
        parts.append(Part(suffix=".weight.nested_absmax", format=F32, shape_of=outer))
        parts.append(Part(suffix=".weight.nested_quant_map", format=F32, shape_of=lambda rows, columns: (256,)))
    name = "nf4-double" if double else "nf4"
    return Scheme(name=name, block_values=2, block_bytes=1, parts=tuple(parts))


def llm_int8() -> Scheme:
    """bitsandbytes' LLM.int8() (arXiv 2208.07339): one float32 for each row, and a byte that names the layout."""
    parts = (
        _weight(I8),
        Part(suffix=".SCB", format=F32, shape_of=lambda rows, columns: (rows,)),
        Part(suffix=".weight_format", format=U8, shape_of=lambda rows, columns: ()),
    )
    packing = Packing(layout="llm-int8", bits=8, group=None, symmetric=True)
    return Scheme(name="llm-int8", block_values=1, block_bytes=1, parts=parts, packing=packing)


def mxfp4() -> Scheme:
    """MXFP4 as gpt-oss is published: blocks of 32 values in 16 bytes, and a byte of exponent for each."""
    parts = (
        Part(suffix="_blocks", format=U8, shape_of=lambda rows, columns: (rows, columns // 32, 16)),
        Part(suffix="_scales", format=U8, shape_of=lambda rows, columns: (rows, columns // 32)),
    )
    return Scheme(name="mxfp4", block_values=32, block_bytes=17, parts=parts)


def nvfp4(suffixes: tuple[str, str, str, str] = COMPRESSED_NVFP4) -> Scheme:
    """NVFP4: E2M1 values, an FP8 scale for each 16, and two float32, under compressed-tensors' names or ModelOpt's."""
    values, scales, whole, inputs = suffixes
    parts = (
        Part(suffix=values, format=U8, shape_of=lambda rows, columns: (rows, columns // 2)),
        Part(suffix=scales, format=F8_E4M3, shape_of=lambda rows, columns: (rows, columns // 16)),
        Part(suffix=whole, format=F32, shape_of=lambda rows, columns: (1,)),
        Part(suffix=inputs, format=F32, shape_of=lambda rows, columns: (1,)),
    )
    return Scheme(name="nvfp4", block_values=16, block_bytes=9, parts=parts)


def grouped_int4(group: int = 128) -> Scheme:
    """Symmetric four-bit integers with one 16-bit scale for each group: 4.125 bits a value at 128."""
    return packed(bits=4, group=group, scales=BF16)


def _scheme(kind: str, bits: int, group: int | None, parts: list[Part], packing: Packing) -> Scheme:
    name = f"{kind}-int{bits}" + (f"-g{group}" if group else "")
    values = 32 // math.gcd(bits, 32)
    return Scheme(name=name, block_values=values, block_bytes=values * bits // 8, parts=tuple(parts), packing=packing)


def _weight(values: Format) -> Part:
    return Part(suffix=".weight", format=values, shape_of=lambda rows, columns: (rows, columns))


def _words(count: int, bits: int) -> int:
    """32-bit words that hold `count` values of `bits`."""
    return -(-count * bits // 32)


def _groups(columns: int, group: int | None) -> int:
    return 1 if group is None else -(-columns // group)
