"""Operations on integer codes of several terms, and what spreads a vector's values before they are rounded."""

from typing import Any

from llvmlite import ir
from numba import types

from residency.kernels.simd.vectors import (
    I8,
    I32,
    Builder,
    Value,
    address,
    block_of,
    constant,
    f32x16,
    i32x16,
    intrinsic_of_arity,
    load_splat,
    operation,
    pointer,
    token_address,
)

store_i8 = operation(
    types.void(address, types.int64), lambda b, p, v: b.store(b.trunc(v, I8), pointer(b, p, I8), align=1)
)
bits_f32 = operation(i32x16(f32x16), lambda b, x: b.bitcast(x, i32x16.llvm))
splats_i32 = block_of(i32x16, lambda b, t, p, s: load_splat(b, token_address(b, p, s, t), I32, i32x16), 3)


def _join_terms(block: Any) -> Any:
    """Of sums with the upper and with the lower terms of 16-bit numbers, in turn, the sums with the numbers."""
    returned = types.UniTuple(i32x16, block.count // 2)

    def codegen(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        sums = [b.extract_value(args[0], i) for i in range(block.count)]
        joined = [
            b.add(b.shl(upper, constant(i32x16, 8)), lower) for upper, lower in zip(sums[::2], sums[1::2], strict=True)
        ]
        return context.make_tuple(b, returned, joined)

    return returned(block), codegen


join_terms = intrinsic_of_arity(1, _join_terms)


def _hadamard(b: Builder, x: Value) -> Value:
    for distance in (1, 2, 4, 8):
        partners = ir.Constant(ir.VectorType(I32, 16), [lane ^ distance for lane in range(16)])
        signs = ir.Constant(f32x16.llvm, [-1.0 if lane & distance else 1.0 for lane in range(16)])
        x = b.fadd(b.shuffle_vector(x, x, partners), b.fmul(x, signs))
    return x


hadamard_16 = operation(f32x16(f32x16), _hadamard)  # the product with the matrix of +1 and -1, of order 16
