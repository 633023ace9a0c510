"""The vector language that CPU kernels are written in: SIMD values inside Numba.

Numba hands a type whose model is an LLVM vector to LLVM unchanged, so a kernel written in Python works in
vector registers. Addresses are plain integers. A *register block* is a tuple of vectors, one per
token: an operation named `..._each` applies to every vector of it, unrolled when the kernel is compiled.

Vectors are 512 bits wide; LLVM splits them where the processor's are narrower. `dot4` is the one operation
whose instruction differs: VNNI where there is one, AVX2's multiply-and-add elsewhere, else multiplies that are widened.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from residency.formats.tabled import IQ4_TABLE, MXFP4_TABLE
from residency.kernels.simd.dot4 import dot4, dot4_full
from residency.kernels.simd.lookup import looked_up
from residency.kernels.simd.target import has
from residency.kernels.simd.vectors import (
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    BFloat,
    Builder,
    Value,
    address,
    block_of,
    call,
    constant,
    each,
    f32x16,
    i32x16,
    intrinsic_of_arity,
    load_splat,
    mask16,
    operation,
    pointer,
    splat,
    token_address,
    u8x64,
)


def _half_to_float(b: Builder, at: Value) -> Value:
    return b.fpext(b.load(pointer(b, at, ir.VectorType(F16, 16)), align=2), f32x16.llvm)


def _bfloat_to_float(b: Builder, at: Value) -> Value:
    wide = b.zext(b.load(pointer(b, at, ir.VectorType(I16, 16)), align=2), i32x16.llvm)
    return b.bitcast(b.shl(wide, constant(i32x16, 16)), f32x16.llvm)


def _bfloat_scalar(b: Builder, at: Value) -> Value:
    wide = b.zext(b.load(pointer(b, at, I16), align=2), I32)
    return b.bitcast(b.shl(wide, ir.Constant(I32, 16)), F32)


def _shift_right(b: Builder, x: Value, count: Value) -> Value:
    return b.lshr(x, splat(b, b.trunc(count, I32), i32x16.llvm))


# -- scalars
load_i64 = operation(types.int64(address), lambda b, p: b.load(pointer(b, p, I64), align=8))
load_i32 = operation(types.int64(address), lambda b, p: b.sext(b.load(pointer(b, p, I32), align=4), I64))
load_f64 = operation(types.float64(address), lambda b, p: b.load(pointer(b, p, F64), align=8))
load_f32 = operation(types.float32(address), lambda b, p: b.load(pointer(b, p, F32), align=4))
load_u8 = operation(types.int64(address), lambda b, p: b.zext(b.load(pointer(b, p, I8), align=1), I64))
load_i8 = operation(types.int64(address), lambda b, p: b.sext(b.load(pointer(b, p, I8), align=1), I64))
load_f16 = operation(types.float32(address), lambda b, p: b.fpext(b.load(pointer(b, p, F16), align=2), F32))
load_bf16 = operation(types.float32(address), _bfloat_scalar)
store_f32 = operation(types.void(address, types.float32), lambda b, p, v: b.store(v, pointer(b, p, F32), align=4))
store_i64 = operation(types.void(address, types.int64), lambda b, p, v: b.store(v, pointer(b, p, I64), align=8))
store_i32 = operation(
    types.void(address, types.int64), lambda b, p, v: b.store(b.trunc(v, I32), pointer(b, p, I32), align=4)
)
store_f16 = operation(
    types.void(address, types.float32), lambda b, p, v: b.store(b.fptrunc(v, F16), pointer(b, p, F16), align=2)
)


def _prefetch(level: int) -> Any:
    body = call("llvm.prefetch.p0", ir.VoidType(), I8.as_pointer(), I32, I32, I32)
    how = [ir.Constant(I32, value) for value in (0, level, 1)]  # to read; 3 is the first level, 2 the second; data
    return operation(types.void(address), lambda b, p: body(b, pointer(b, p, I8), *how))


prefetch = _prefetch(3)
prefetch_l2 = _prefetch(2)


def _stack_bytes(num_bytes: Any) -> Any:
    """Memory of the calling function, aligned to 64 bytes; its size is a constant of the kernel."""
    if not isinstance(num_bytes, types.IntegerLiteral):
        return None

    def codegen(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        with b.goto_entry_block():
            place = b.alloca(I8, size=ir.Constant(I64, num_bytes.literal_value))
            place.align = 64
        return b.ptrtoint(place, I64)

    return address(num_bytes), codegen


stack_bytes = intrinsic_of_arity(1, _stack_bytes, prefer_literal=True)

# -- loads and stores of vectors
load_u8x64 = operation(u8x64(address), lambda b, p: b.load(pointer(b, p, u8x64.llvm), align=1))
store_u8x64 = operation(types.void(address, u8x64), lambda b, p, v: b.store(v, pointer(b, p, u8x64.llvm), align=1))
load_i32x16 = operation(i32x16(address), lambda b, p: b.load(pointer(b, p, i32x16.llvm), align=4))
load_i8x16 = operation(
    i32x16(address), lambda b, p: b.sext(b.load(pointer(b, p, ir.VectorType(I8, 16)), align=1), i32x16.llvm)
)
load_f32x16 = operation(f32x16(address), lambda b, p: b.load(pointer(b, p, f32x16.llvm), align=4))
load_f16x16 = operation(f32x16(address), _half_to_float)
load_bf16x16 = operation(f32x16(address), _bfloat_to_float)
store_i32x16 = operation(types.void(address, i32x16), lambda b, p, v: b.store(v, pointer(b, p, i32x16.llvm), align=4))
store_f32x16 = operation(types.void(address, f32x16), lambda b, p, v: b.store(v, pointer(b, p, f32x16.llvm), align=4))


_to_bf16_512 = call(
    "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(BFloat(), 32), ir.VectorType(F32, 16), ir.VectorType(F32, 16)
)


def _store_bf16x32(b: Builder, at: Value, low: Value, high: Value) -> Value:
    """Only where there are tile registers for bfloat16. Halves are rounded to even."""
    return b.store(_to_bf16_512(b, high, low), pointer(b, at, ir.VectorType(BFloat(), 32)), align=2)


store_bf16x32 = operation(types.void(address, f32x16, f32x16), _store_bf16x32)
store_f16x16 = operation(
    types.void(address, f32x16),
    lambda b, p, v: b.store(b.fptrunc(v, ir.VectorType(F16, 16)), pointer(b, p, ir.VectorType(F16, 16)), align=2),
)
store_i8x16 = operation(
    types.void(address, i32x16),
    lambda b, p, v: b.store(b.trunc(v, ir.VectorType(I8, 16)), pointer(b, p, ir.VectorType(I8, 16)), align=1),
)
splat_f32 = operation(f32x16(types.float32), lambda b, v: splat(b, v, f32x16.llvm))
splat_i32 = operation(i32x16(types.int64), lambda b, v: splat(b, b.trunc(v, I32), i32x16.llvm))
lane_numbers = operation(i32x16(), lambda b: ir.Constant(i32x16.llvm, list(range(16))))

# -- integers
add_i32 = operation(i32x16(i32x16, i32x16), lambda b, x, y: b.add(x, y))
and_i32 = operation(i32x16(i32x16, types.int64), lambda b, x, m: b.and_(x, splat(b, b.trunc(m, I32), i32x16.llvm)))
or_i32 = operation(i32x16(i32x16, i32x16), lambda b, x, y: b.or_(x, y))
shift_right = operation(i32x16(i32x16, types.int64), _shift_right)
shift_left = operation(i32x16(i32x16, types.int64), lambda b, x, n: b.shl(x, splat(b, b.trunc(n, I32), i32x16.llvm)))
xor_u8 = operation(u8x64(u8x64, u8x64), lambda b, x, y: b.xor(x, y))
or_u8 = operation(u8x64(u8x64, u8x64), lambda b, x, y: b.or_(x, y))
as_i32 = operation(i32x16(u8x64), lambda b, x: b.bitcast(x, i32x16.llvm))
low_nibbles = operation(u8x64(u8x64), lambda b, x: b.and_(x, constant(u8x64, 15)))
high_nibbles = operation(
    u8x64(u8x64),
    lambda b, x: b.and_(
        b.bitcast(b.lshr(b.bitcast(x, i32x16.llvm), constant(i32x16, 4)), u8x64.llvm), constant(u8x64, 15)
    ),
)
sum_i32 = operation(
    types.int64(i32x16), lambda b, x: b.sext(call("llvm.vector.reduce.add.v16i32", I32, i32x16.llvm)(b, x), I64)
)


def _plane(mask: int, width: int, place: int) -> Callable[..., Value]:
    """Field `index` of each byte's fields of `width` bits, moved to bits `place` and up."""

    def body(b: Builder, plane: Value, index: Value) -> Value:
        count = b.mul(b.trunc(index, I32), ir.Constant(I32, width))
        moved = b.lshr(b.bitcast(plane, i32x16.llvm), splat(b, count, i32x16.llvm))
        shifted = b.shl(moved, constant(i32x16, place))
        return b.and_(b.bitcast(shifted, u8x64.llvm), constant(u8x64, mask))

    return body


plane_bit = operation(u8x64(u8x64, types.int64), _plane(0x10, 1, 4))
plane_bits = operation(u8x64(u8x64, types.int64), _plane(0x30, 2, 4))
low_pairs = operation(u8x64(u8x64, types.int64), _plane(0x03, 2, 0))
third_bit = operation(u8x64(u8x64, types.int64), _plane(0x04, 1, 2))
iq4_values = operation(u8x64(u8x64), looked_up([value + 127 for value in IQ4_TABLE]))
mxfp4_values = operation(u8x64(u8x64), looked_up([value + 12 for value in MXFP4_TABLE]))
less_than = operation(mask16(i32x16, i32x16), lambda b, x, y: b.icmp_signed("<", x, y))

# -- floats
_fma = call("llvm.fma.v16f32", f32x16.llvm, f32x16.llvm, f32x16.llvm, f32x16.llvm)


def _maximum(b: Builder, x: Value, y: Value) -> Value:
    """One instruction; of anything and what is no number, the second."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _minimum(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


fma = operation(f32x16(f32x16, f32x16, f32x16), _fma)
add_f32 = operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fadd(x, y))
sub_f32 = operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fsub(x, y))
mul_f32 = operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fmul(x, y))
max_f32 = operation(f32x16(f32x16, f32x16), _maximum)
min_f32 = operation(f32x16(f32x16, f32x16), _minimum)
abs_f32 = operation(f32x16(f32x16), call("llvm.fabs.v16f32", f32x16.llvm, f32x16.llvm))
_scalef = call("llvm.x86.avx512.mask.scalef.ps.512", f32x16.llvm, f32x16.llvm, f32x16.llvm, f32x16.llvm, I16, I32)
times_power = operation(  # x * 2**n for whole n; only where there is AVX-512
    f32x16(f32x16, f32x16),
    lambda b, x, n: _scalef(b, x, n, constant(f32x16, 0.0), ir.Constant(I16, -1), ir.Constant(I32, 4)),
)
_rcp14 = call("llvm.x86.avx512.rcp14.ps.512", f32x16.llvm, f32x16.llvm, f32x16.llvm, I16)


def _reciprocal(b: Builder, x: Value) -> Value:
    """1 / x, by AVX-512 from 14 bits by one of Newton's steps to within an ulp or two."""
    if not has("avx512f"):
        return b.fdiv(constant(f32x16, 1.0), x)
    near = _rcp14(b, x, constant(f32x16, 0.0), ir.Constant(I16, -1))
    error = _fma(b, b.fneg(x), near, constant(f32x16, 1.0))
    return _fma(b, near, error, near)


reciprocal = operation(f32x16(f32x16), _reciprocal)  # of no denormal and nothing infinite


def _nearest_bf16(b: Builder, x: Value) -> Value:
    bits = b.add(b.bitcast(x, i32x16.llvm), constant(i32x16, 0x8000))
    return b.bitcast(b.and_(bits, constant(i32x16, -0x10000)), f32x16.llvm)


nearest_bf16 = operation(f32x16(f32x16), _nearest_bf16)  # halves away from zero; still float32
round_f32 = operation(f32x16(f32x16), call("llvm.nearbyint.v16f32", f32x16.llvm, f32x16.llvm))
to_f32 = operation(f32x16(i32x16), lambda b, x: b.sitofp(x, f32x16.llvm))
to_i32 = operation(i32x16(f32x16), lambda b, x: b.fptosi(x, i32x16.llvm))


def _bf16_pairs(b: Builder, even: Value, odd: Value) -> Value:
    """Only where there are tile registers for bfloat16."""
    both = b.bitcast(_to_bf16_512(b, odd, even), ir.VectorType(I16, 32))
    lanes = ir.Constant(ir.VectorType(I32, 32), [lane // 2 + 16 * (lane % 2) for lane in range(32)])
    return b.bitcast(b.shuffle_vector(both, ir.Constant(both.type, ir.Undefined), lanes), i32x16.llvm)


bf16_pairs = operation(i32x16(f32x16, f32x16), _bf16_pairs)  # each lane: `even` in its lower half, `odd` in its upper
f32_from_bits = operation(f32x16(i32x16), lambda b, x: b.bitcast(x, f32x16.llvm))
select_f32 = operation(f32x16(mask16, f32x16, f32x16), lambda b, m, x, y: b.select(m, x, y))


def _reduce_add(b: Builder, x: Value) -> Value:
    call = b.call(
        cgutils.get_or_insert_function(
            b.module, ir.FunctionType(F32, (F32, f32x16.llvm)), "llvm.vector.reduce.fadd.v16f32"
        ),
        (ir.Constant(F32, 0.0), x),
        fastmath=("reassoc",),
    )
    return call


sum_f32 = operation(types.float32(f32x16), _reduce_add)


def _largest(b: Builder, x: Value) -> Value:
    """Halves against each other, four times; LLVM's own goes lane after lane, for the sake of what is no number."""
    for half in (8, 4, 2, 1):
        lanes = ir.Constant(ir.VectorType(I32, 16), [lane ^ half for lane in range(16)])
        x = _maximum(b, x, b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), lanes))
    return b.extract_element(x, ir.Constant(I32, 0))


largest_f32 = operation(types.float32(f32x16), _largest)


def _dot4_splat(dot: Callable[..., Value]) -> Callable[..., Value]:
    def body(b: Builder, token: int, total: Value, unsigned: Value, at: Value, stride: Value) -> Value:
        four = b.load(pointer(b, token_address(b, at, stride, token), I32), align=4)
        return dot(b, total, unsigned, b.bitcast(splat(b, four, i32x16.llvm), u8x64.llvm))

    return body


# -- register blocks: one vector per token


zeros_f32 = block_of(f32x16, lambda b, token: constant(f32x16, 0.0), 1)
zeros_i32 = block_of(i32x16, lambda b, token: constant(i32x16, 0), 1)
repeat = block_of(f32x16, lambda b, token, vector: vector, 2)  # the same vector for every token
load_rows_f32 = block_of(
    f32x16, lambda b, t, p, s: b.load(pointer(b, token_address(b, p, s, t), f32x16.llvm), align=4), 3
)
load_rows_i32 = block_of(
    i32x16, lambda b, t, p, s: b.load(pointer(b, token_address(b, p, s, t), i32x16.llvm), align=4), 3
)
# (dots, weights, x address, x stride); weights are codes up to 127, and up to 255
dot4_each = each(4, (0,), _dot4_splat(dot4), i32x16)
dot4_full_each = each(4, (0,), _dot4_splat(dot4_full), i32x16)
to_f32_each = each(1, (0,), lambda b, t, x: b.sitofp(x, f32x16.llvm), f32x16)
add_each = each(2, (0, 1), lambda b, t, x, y: b.fadd(x, y), f32x16)
fma_each = each(3, (0, 2), lambda b, t, x, y, z: _fma(b, x, y, z), f32x16)  # block * one vector + block


def _fma_splat(b: Builder, token: int, total: Value, vector: Value, at: Value, stride: Value) -> Value:
    return _fma(b, vector, load_splat(b, token_address(b, at, stride, token), F32, f32x16), total)


def _mul_splat(b: Builder, token: int, block: Value, at: Value, stride: Value) -> Value:
    return b.fmul(block, load_splat(b, token_address(b, at, stride, token), F32, f32x16))


mul_splat_each = each(3, (0,), _mul_splat, f32x16)  # block * the f32 at (address, stride)
fma_splat_each = each(4, (0,), _fma_splat, f32x16)  # totals + one vector * the f32 at (address, stride)


def _fold(combine: Callable[..., Value]) -> Any:
    """Reduce each of 16 vectors to one value: lane r of the result is vector r's."""
    even, odd = (ir.Constant(ir.VectorType(I32, 16), list(range(first, 32, 2))) for first in (0, 1))

    def typer(block: Any) -> Any:
        def codegen(context: Any, b: Builder, sig: Any, args: Any) -> Value:
            vectors = [b.extract_value(args[0], i) for i in range(16)]
            while len(vectors) > 1:  # neighbours' neighbouring lanes are combined: half as many vectors are left
                vectors = [
                    combine(b, b.shuffle_vector(low, high, even), b.shuffle_vector(low, high, odd))
                    for low, high in zip(vectors[::2], vectors[1::2], strict=True)
                ]
            return vectors[0]

        return f32x16(block), codegen

    return intrinsic_of_arity(1, typer)


max_each = each(2, (0, 1), lambda b, t, x, y: _maximum(b, x, y), f32x16)
largest_each = _fold(_maximum)
sum_each = _fold(lambda b, x, y: b.fadd(x, y))


def _store_rows(*kinds: Any) -> Any:
    block, _, _ = kinds

    def codegen(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for token in range(block.count):
            at = token_address(b, args[1], args[2], token)
            b.store(b.extract_value(args[0], token), pointer(b, at, f32x16.llvm), align=4)
        return context.get_dummy_value()

    return types.void(block, address, address), codegen


store_each = intrinsic_of_arity(3, _store_rows)  # (block, address, stride)

# -- tile registers (Intel AMX): a thread configures them, uses them, and releases them


def _tiles(intrinsic: str, registers: int, addresses: int) -> Any:
    """An operation on so many tile registers, given as constants, and so many addresses."""

    def typer(*kinds: Any) -> Any:
        numbers = kinds[:registers]
        if not all(isinstance(kind, types.IntegerLiteral) for kind in numbers):
            return None

        def codegen(context: Any, b: Builder, sig: Any, args: Any) -> Value:
            values = [ir.Constant(I8, kind.literal_value) for kind in numbers]
            if addresses:
                values.append(pointer(b, args[registers], I8))
                values.extend(args[registers + 1 :])
            call(intrinsic, ir.VoidType(), *(value.type for value in values))(b, *values)
            return context.get_dummy_value()

        return types.void(*numbers, *[address] * addresses), codegen

    return intrinsic_of_arity(registers + addresses, typer, prefer_literal=True)


tile_configure = operation(
    types.void(address), lambda b, p: call("llvm.x86.ldtilecfg", ir.VoidType(), I8.as_pointer())(b, pointer(b, p, I8))
)
tile_release = operation(types.void(), call("llvm.x86.tilerelease", ir.VoidType()))
tile_zero = _tiles("llvm.x86.tilezero", 1, 0)
tile_load = _tiles("llvm.x86.tileloadd64", 1, 2)  # (register, address, stride)
tile_store = _tiles("llvm.x86.tilestored64", 1, 2)
tile_dot_bf16 = _tiles("llvm.x86.tdpbf16ps", 3, 0)  # (float32 sums, rows of x, pairs of columns of the weights)
tile_dot_i8u8 = _tiles("llvm.x86.tdpbsud", 3, 0)  # (int32 sums, rows of signed bytes, fours of unsigned columns)
tile_dot_i8i8 = _tiles("llvm.x86.tdpbssd", 3, 0)
