"""Operations on integer codes of several terms, and what spreads a vector's values before they are rounded."""

from typing import Any

from llvmlite import ir
from numba import types

from residency.kernels.simd.lookup import shuffle_512
from residency.kernels.simd.vectors import (
    I8,
    I16,
    I32,
    Builder,
    Value,
    address,
    block_of,
    constant,
    each,
    f32x16,
    i32x16,
    intrinsic_of_arity,
    load_splat,
    operation,
    pointer,
    splat,
    token_address,
    u8x64,
)

store_i8 = operation(
    types.void(address, types.int64), lambda b, p, v: b.store(b.trunc(v, I8), pointer(b, p, I8), align=1)
)
bits_f32 = operation(i32x16(f32x16), lambda b, x: b.bitcast(x, i32x16.llvm))
splats_i32 = block_of(i32x16, lambda b, t, p, s: load_splat(b, token_address(b, p, s, t), I32, i32x16), 3)


mul_add_each = each(3, (0, 1), lambda b, t, total, x, y: b.add(total, b.mul(x, y)), i32x16)  # + block * one vector


def _add_shifted(bits: int) -> Any:
    return each(2, (0, 1), lambda b, t, lower, upper: b.add(lower, b.shl(upper, constant(i32x16, bits))), i32x16)


add_shifted_each = {bits: _add_shifted(bits) for bits in (3, 8)}  # lower + upper * 2**bits

# -- bytes times small numbers: a vector is 32 words of two bytes
_WORDS = ir.VectorType(I16, 32)


def _all_words(value: int) -> Value:
    return ir.Constant(_WORDS, [value] * 32)


def _spread_byte(b: Builder, lanes: Value, index: Value) -> Value:
    """Byte `index` of each lane as both words of the lane; only where there is AVX-512."""
    places = ir.Constant(_WORDS, [0x8000 + lane // 2 % 4 * 4 for lane in range(32)])  # 0x80 picks a zero
    picked = b.add(places, splat(b, b.trunc(index, I16), _WORDS))
    return b.bitcast(shuffle_512(b, b.bitcast(lanes, u8x64.llvm), b.bitcast(picked, u8x64.llvm)), i32x16.llvm)


def _mul_words(b: Builder, codes: Value, factors: Value) -> Value:
    """Each byte times its word's factor; no product is above 255."""
    return b.bitcast(b.mul(b.bitcast(codes, _WORDS), b.bitcast(factors, _WORDS)), u8x64.llvm)


def _products(b: Builder, codes: Value, factors: Value) -> tuple[Value, Value]:
    """The products, of 16 bits, of each word's first byte with its factor, and of its second."""
    words, by = b.bitcast(codes, _WORDS), b.bitcast(factors, _WORDS)
    return b.mul(b.and_(words, _all_words(255)), by), b.mul(b.lshr(words, _all_words(8)), by)


def _lower_bytes(b: Builder, codes: Value, factors: Value) -> Value:
    first, second = _products(b, codes, factors)
    return b.bitcast(b.or_(b.and_(first, _all_words(255)), b.shl(second, _all_words(8))), u8x64.llvm)


def _upper_bytes(b: Builder, codes: Value, factors: Value) -> Value:
    first, second = _products(b, codes, factors)
    return b.bitcast(b.or_(b.lshr(first, _all_words(8)), b.and_(second, _all_words(0xFF00))), u8x64.llvm)


spread_byte = operation(i32x16(i32x16, types.int64), _spread_byte)
mul_words = operation(u8x64(u8x64, i32x16), _mul_words)
lower_bytes = operation(u8x64(u8x64, i32x16), _lower_bytes)  # unsigned, of products of 16 bits
upper_bytes = operation(u8x64(u8x64, i32x16), _upper_bytes)  # signed


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
