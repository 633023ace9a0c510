"""A table of sixteen bytes that nibbles are looked up in, in the instructions that the processor has."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from residency.kernels.simd.target import has
from residency.kernels.simd.vectors import I8, I32, Builder, Value, call, u8x64

_HALF = ir.VectorType(I8, 32)
shuffle_512 = call("llvm.x86.avx512.pshuf.b.512", u8x64.llvm, u8x64.llvm, u8x64.llvm)
_shuffle_256 = call("llvm.x86.avx2.pshuf.b", _HALF, _HALF, _HALF)


def looked_up(table: Sequence[int]) -> Callable[..., Value]:
    """The operation that gives each byte's value of `table`; bytes are codes from 0 to 15."""

    def whole(b: Builder, codes: Value) -> Value:
        return shuffle_512(b, ir.Constant(u8x64.llvm, [*table] * 4), codes)

    def by_halves(b: Builder, codes: Value) -> Value:
        values = ir.Constant(_HALF, [*table] * 2)
        low, high = (
            _shuffle_256(b, values, b.shuffle_vector(codes, codes, _lanes(range(first, first + 32))))
            for first in (0, 32)
        )
        return b.shuffle_vector(low, high, _lanes(range(64)))

    return whole if has("avx512bw") else by_halves


def _lanes(lanes: range) -> Value:
    return ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
