"""The vector language that CPU kernels are written in: SIMD values inside Numba.

Numba hands a type whose model is an LLVM vector to LLVM unchanged, so a kernel written in Python works in
vector registers. Addresses are plain integers. A *register block* is a tuple of vectors, one per
token: an operation named `..._each` applies to every vector of it, unrolled when the kernel is compiled.

Vectors are 512 bits wide; LLVM splits them where the processor's are narrower. `dot4` is the one operation
whose instruction differs: VNNI where there is one, else multiplies that are widened first.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


class Vector(types.Type):  # type: ignore[misc]
    """A Numba type that is an LLVM vector."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=name)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    """A vector is passed and kept as the LLVM value that it is."""

    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


u8x64 = Vector("u8x64", I8, 64)
i32x16 = Vector("i32x16", I32, 16)
f32x16 = Vector("f32x16", F32, 16)
mask16 = Vector("mask16", I1, 16)
address = types.int64
Builder = Any
Value = Any


def _operation(signature: Any, body: Callable[..., Value]) -> Any:
    """Make an intrinsic of one fixed signature from body(builder, *values)."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        result = body(builder, *args)
        return context.get_dummy_value() if sig.return_type == types.void else result

    return _intrinsic_of_arity(len(signature.args), lambda *_: (signature, codegen))


def _intrinsic_of_arity(arity: int, typer: Callable[..., Any], prefer_literal: bool = False) -> Any:
    """Numba wants a typer with named parameters; write one of the arity asked for."""
    names = ", ".join(f"a{i}" for i in range(arity))
    scope: dict[str, Any] = {"typer": typer}
    exec(f"def operation(typingctx, {names}):\n    return typer({names})\n", scope)
    return intrinsic(prefer_literal=prefer_literal)(scope["operation"])


def _each(arity: int, blocks: tuple[int, ...], body: Callable[..., Value], result: Vector) -> Any:
    """Make an intrinsic over register blocks: body(builder, token, *values) makes each token's vector.

    `blocks` are the positions of the arguments that are register blocks; the first gives the number of tokens.
    """

    def typer(*kinds: Any) -> Any:
        tokens = kinds[blocks[0]].count
        returned = types.UniTuple(result, tokens)
        kinds = tuple(k if i in blocks or isinstance(k, Vector) else address for i, k in enumerate(kinds))

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            made = []
            for token in range(tokens):
                values = [builder.extract_value(a, token) if i in blocks else a for i, a in enumerate(args)]
                made.append(body(builder, token, *values))
            return context.make_tuple(builder, returned, made)

        return returned(*kinds), codegen

    return _intrinsic_of_arity(arity, typer)


def _pointer(b: Builder, at: Value, llvm_type: ir.Type) -> Value:
    return b.inttoptr(at, llvm_type.as_pointer())


def _constant(vector: Vector, value: float) -> Value:
    return ir.Constant(vector.llvm, [value] * vector.llvm.count)


def _splat(b: Builder, value: Value, vector: ir.VectorType) -> Value:
    undef = ir.Constant(vector, ir.Undefined)
    one = b.insert_element(undef, value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _load_splat(b: Builder, at: Value, element: ir.Type, vector: Vector) -> Value:
    return _splat(b, b.load(_pointer(b, at, element), align=4), vector.llvm)


def _token_address(b: Builder, at: Value, stride: Value, token: int) -> Value:
    return b.add(at, b.mul(stride, ir.Constant(I64, token))) if token else at


def _call(name: str, result: ir.Type, *arguments: ir.Type) -> Callable[..., Value]:
    def body(b: Builder, *values: Value) -> Value:
        return b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name), values)

    return body


def _half_to_float(b: Builder, at: Value) -> Value:
    return b.fpext(b.load(_pointer(b, at, ir.VectorType(F16, 16)), align=2), f32x16.llvm)


def _bfloat_to_float(b: Builder, at: Value) -> Value:
    wide = b.zext(b.load(_pointer(b, at, ir.VectorType(I16, 16)), align=2), i32x16.llvm)
    return b.bitcast(b.shl(wide, _constant(i32x16, 16)), f32x16.llvm)


def _bfloat_scalar(b: Builder, at: Value) -> Value:
    wide = b.zext(b.load(_pointer(b, at, I16), align=2), I32)
    return b.bitcast(b.shl(wide, ir.Constant(I32, 16)), F32)


def _shift_right(b: Builder, x: Value, count: Value) -> Value:
    return b.lshr(x, _splat(b, b.trunc(count, I32), i32x16.llvm))


# -- scalars
load_i64 = _operation(types.int64(address), lambda b, p: b.load(_pointer(b, p, I64), align=8))
load_i32 = _operation(types.int64(address), lambda b, p: b.sext(b.load(_pointer(b, p, I32), align=4), I64))
load_f64 = _operation(types.float64(address), lambda b, p: b.load(_pointer(b, p, F64), align=8))
load_f32 = _operation(types.float32(address), lambda b, p: b.load(_pointer(b, p, F32), align=4))
load_u8 = _operation(types.int64(address), lambda b, p: b.zext(b.load(_pointer(b, p, I8), align=1), I64))
load_i8 = _operation(types.int64(address), lambda b, p: b.sext(b.load(_pointer(b, p, I8), align=1), I64))
load_f16 = _operation(types.float32(address), lambda b, p: b.fpext(b.load(_pointer(b, p, F16), align=2), F32))
load_bf16 = _operation(types.float32(address), _bfloat_scalar)
store_f32 = _operation(types.void(address, types.float32), lambda b, p, v: b.store(v, _pointer(b, p, F32), align=4))
store_i64 = _operation(types.void(address, types.int64), lambda b, p, v: b.store(v, _pointer(b, p, I64), align=8))
store_i32 = _operation(
    types.void(address, types.int64), lambda b, p, v: b.store(b.trunc(v, I32), _pointer(b, p, I32), align=4)
)
store_f16 = _operation(
    types.void(address, types.float32), lambda b, p, v: b.store(b.fptrunc(v, F16), _pointer(b, p, F16), align=2)
)
prefetch = _operation(
    types.void(address),
    lambda b, p: _call("llvm.prefetch.p0", ir.VoidType(), I8.as_pointer(), I32, I32, I32)(
        b, _pointer(b, p, I8), *(ir.Constant(I32, value) for value in (0, 3, 1))
    ),
)

# -- loads and stores of vectors
load_u8x64 = _operation(u8x64(address), lambda b, p: b.load(_pointer(b, p, u8x64.llvm), align=1))
load_i32x16 = _operation(i32x16(address), lambda b, p: b.load(_pointer(b, p, i32x16.llvm), align=4))
load_i8x16 = _operation(
    i32x16(address), lambda b, p: b.sext(b.load(_pointer(b, p, ir.VectorType(I8, 16)), align=1), i32x16.llvm)
)
load_f32x16 = _operation(f32x16(address), lambda b, p: b.load(_pointer(b, p, f32x16.llvm), align=4))
load_f16x16 = _operation(f32x16(address), _half_to_float)
load_bf16x16 = _operation(f32x16(address), _bfloat_to_float)
load_bits64 = _operation(  # 64 bits as 64 bytes of 0 or 1
    u8x64(address),
    lambda b, p: b.zext(b.load(_pointer(b, p, ir.VectorType(I1, 64)), align=1), u8x64.llvm),
)
store_f32x16 = _operation(types.void(address, f32x16), lambda b, p, v: b.store(v, _pointer(b, p, f32x16.llvm), align=4))
store_f16x16 = _operation(
    types.void(address, f32x16),
    lambda b, p, v: b.store(b.fptrunc(v, ir.VectorType(F16, 16)), _pointer(b, p, ir.VectorType(F16, 16)), align=2),
)
store_i8x16 = _operation(
    types.void(address, i32x16),
    lambda b, p, v: b.store(b.trunc(v, ir.VectorType(I8, 16)), _pointer(b, p, ir.VectorType(I8, 16)), align=1),
)
splat_f32 = _operation(f32x16(types.float32), lambda b, v: _splat(b, v, f32x16.llvm))
splat_i32 = _operation(i32x16(types.int64), lambda b, v: _splat(b, b.trunc(v, I32), i32x16.llvm))
load_splat_f32 = _operation(f32x16(address), lambda b, p: _load_splat(b, p, F32, f32x16))
lane_numbers = _operation(i32x16(), lambda b: ir.Constant(i32x16.llvm, list(range(16))))

# -- integers
add_i32 = _operation(i32x16(i32x16, i32x16), lambda b, x, y: b.add(x, y))
and_i32 = _operation(i32x16(i32x16, types.int64), lambda b, x, m: b.and_(x, _splat(b, b.trunc(m, I32), i32x16.llvm)))
or_i32 = _operation(i32x16(i32x16, i32x16), lambda b, x, y: b.or_(x, y))
shift_right = _operation(i32x16(i32x16, types.int64), _shift_right)
shift_left = _operation(i32x16(i32x16, types.int64), lambda b, x, n: b.shl(x, _splat(b, b.trunc(n, I32), i32x16.llvm)))
xor_u8 = _operation(u8x64(u8x64, u8x64), lambda b, x, y: b.xor(x, y))
or_u8 = _operation(u8x64(u8x64, u8x64), lambda b, x, y: b.or_(x, y))
as_i32 = _operation(i32x16(u8x64), lambda b, x: b.bitcast(x, i32x16.llvm))
as_u8 = _operation(u8x64(i32x16), lambda b, x: b.bitcast(x, u8x64.llvm))
low_nibbles = _operation(u8x64(u8x64), lambda b, x: b.and_(x, _constant(u8x64, 15)))
high_nibbles = _operation(
    u8x64(u8x64),
    lambda b, x: b.and_(
        b.bitcast(b.lshr(b.bitcast(x, i32x16.llvm), _constant(i32x16, 4)), u8x64.llvm), _constant(u8x64, 15)
    ),
)
sum_i32 = _operation(
    types.int64(i32x16), lambda b, x: b.sext(_call("llvm.vector.reduce.add.v16i32", I32, i32x16.llvm)(b, x), I64)
)


def _plane(mask: int, width: int) -> Callable[..., Value]:
    """Field `index` of each byte's fields of `width` bits, moved to bits 4 and up."""

    def body(b: Builder, plane: Value, index: Value) -> Value:
        count = b.mul(b.trunc(index, I32), ir.Constant(I32, width))
        moved = b.lshr(b.bitcast(plane, i32x16.llvm), _splat(b, count, i32x16.llvm))
        shifted = b.shl(moved, _constant(i32x16, 4))
        return b.and_(b.bitcast(shifted, u8x64.llvm), _constant(u8x64, mask))

    return body


plane_bit = _operation(u8x64(u8x64, types.int64), _plane(0x10, 1))
plane_bits = _operation(u8x64(u8x64, types.int64), _plane(0x30, 2))
less_than = _operation(mask16(i32x16, i32x16), lambda b, x, y: b.icmp_signed("<", x, y))

# -- floats
_fma = _call("llvm.fma.v16f32", f32x16.llvm, f32x16.llvm, f32x16.llvm, f32x16.llvm)
_maximum = _call("llvm.maxnum.v16f32", f32x16.llvm, f32x16.llvm, f32x16.llvm)
_minimum = _call("llvm.minnum.v16f32", f32x16.llvm, f32x16.llvm, f32x16.llvm)
fma = _operation(f32x16(f32x16, f32x16, f32x16), _fma)
add_f32 = _operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fadd(x, y))
sub_f32 = _operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fsub(x, y))
mul_f32 = _operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fmul(x, y))
div_f32 = _operation(f32x16(f32x16, f32x16), lambda b, x, y: b.fdiv(x, y))
max_f32 = _operation(f32x16(f32x16, f32x16), _maximum)
min_f32 = _operation(f32x16(f32x16, f32x16), _minimum)
abs_f32 = _operation(f32x16(f32x16), _call("llvm.fabs.v16f32", f32x16.llvm, f32x16.llvm))
round_f32 = _operation(f32x16(f32x16), _call("llvm.nearbyint.v16f32", f32x16.llvm, f32x16.llvm))
to_f32 = _operation(f32x16(i32x16), lambda b, x: b.sitofp(x, f32x16.llvm))
to_i32 = _operation(i32x16(f32x16), lambda b, x: b.fptosi(x, i32x16.llvm))
f32_from_bits = _operation(f32x16(i32x16), lambda b, x: b.bitcast(x, f32x16.llvm))
select_f32 = _operation(f32x16(mask16, f32x16, f32x16), lambda b, m, x, y: b.select(m, x, y))


def _reduce_add(b: Builder, x: Value) -> Value:
    call = b.call(
        cgutils.get_or_insert_function(
            b.module, ir.FunctionType(F32, (F32, f32x16.llvm)), "llvm.vector.reduce.fadd.v16f32"
        ),
        (ir.Constant(F32, 0.0), x),
        fastmath=("reassoc",),
    )
    return call


sum_f32 = _operation(types.float32(f32x16), _reduce_add)
largest_f32 = _operation(types.float32(f32x16), _call("llvm.vector.reduce.fmax.v16f32", F32, f32x16.llvm))

# -- the four-way dot product of bytes


def _dot4_widened(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """The portable sequence: widen to 32 bits, multiply, and add the four products of each lane."""
    wide = ir.VectorType(I32, 64)
    products = b.mul(b.zext(unsigned, wide), b.sext(signed, wide))
    for part in range(4):
        lanes = ir.Constant(ir.VectorType(I32, 16), [4 * lane + part for lane in range(16)])
        total = b.add(total, b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), lanes))
    return total


_dpbusd_512 = _call("llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, i32x16.llvm, i32x16.llvm, i32x16.llvm)


def _dot4_vnni(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    return _dpbusd_512(b, total, b.bitcast(unsigned, i32x16.llvm), b.bitcast(signed, i32x16.llvm))


def _dot4(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    return (_dot4_vnni if _has("avx512vnni") else _dot4_widened)(b, total, unsigned, signed)


def _has(feature: str) -> bool:
    return bool(llvm.get_host_cpu_features().get(feature))


def _dot4_splat(b: Builder, token: int, total: Value, unsigned: Value, at: Value, stride: Value) -> Value:
    four = b.load(_pointer(b, _token_address(b, at, stride, token), I32), align=4)
    return _dot4(b, total, unsigned, b.bitcast(_splat(b, four, i32x16.llvm), u8x64.llvm))


# -- register blocks: one vector per token


def _block(vector: Vector, made: Callable[..., Value], arity: int) -> Any:
    """Make an intrinsic f(tokens, ...) that returns a register block; `tokens` is a constant of the kernel."""

    def typer(count: Any, *rest: Any) -> Any:
        if not isinstance(count, types.IntegerLiteral):
            return None
        returned = types.UniTuple(vector, count.literal_value)

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            values = [made(builder, token, *args[1:]) for token in range(count.literal_value)]
            return context.make_tuple(builder, returned, values)

        return returned(count, *(r if isinstance(r, Vector) else address for r in rest)), codegen

    return _intrinsic_of_arity(arity, typer, prefer_literal=True)


zeros_f32 = _block(f32x16, lambda b, token: _constant(f32x16, 0.0), 1)
zeros_i32 = _block(i32x16, lambda b, token: _constant(i32x16, 0), 1)
repeat = _block(f32x16, lambda b, token, vector: vector, 2)  # the same vector for every token
load_rows_f32 = _block(
    f32x16, lambda b, t, p, s: b.load(_pointer(b, _token_address(b, p, s, t), f32x16.llvm), align=4), 3
)
splat_rows_i32 = _block(i32x16, lambda b, t, p, s: _load_splat(b, _token_address(b, p, s, t), I32, i32x16), 3)
splat_rows_f32 = _block(f32x16, lambda b, t, p, s: _load_splat(b, _token_address(b, p, s, t), F32, f32x16), 3)
dot4_each = _each(4, (0,), _dot4_splat, i32x16)  # (dots, weights, x address, x stride)
to_f32_each = _each(1, (0,), lambda b, t, x: b.sitofp(x, f32x16.llvm), f32x16)
add_each = _each(2, (0, 1), lambda b, t, x, y: b.fadd(x, y), f32x16)
mul_each = _each(2, (0, 1), lambda b, t, x, y: b.fmul(x, y), f32x16)
scale_each = _each(2, (0,), lambda b, t, x, y: b.fmul(x, y), f32x16)  # (block, one vector)
fma_each = _each(3, (0, 2), lambda b, t, x, y, z: _fma(b, x, y, z), f32x16)  # block * one vector + block
fma_pairs = _each(3, (0, 1, 2), lambda b, t, x, y, z: _fma(b, x, y, z), f32x16)  # block * block + block
max_each = _each(2, (0, 1), lambda b, t, x, y: _maximum(b, x, y), f32x16)
sub_each = _each(2, (0, 1), lambda b, t, x, y: b.fsub(x, y), f32x16)


def _fma_splat(b: Builder, token: int, total: Value, vector: Value, at: Value, stride: Value) -> Value:
    return _fma(b, vector, _load_splat(b, _token_address(b, at, stride, token), F32, f32x16), total)


def _mul_splat(b: Builder, token: int, block: Value, at: Value, stride: Value) -> Value:
    return b.fmul(block, _load_splat(b, _token_address(b, at, stride, token), F32, f32x16))


mul_splat_each = _each(3, (0,), _mul_splat, f32x16)  # block * the f32 at (address, stride)
fma_splat_each = _each(4, (0,), _fma_splat, f32x16)  # totals + one vector * the f32 at (address, stride)


def _store_rows(*kinds: Any) -> Any:
    block, _, _ = kinds

    def codegen(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for token in range(block.count):
            at = _token_address(b, args[1], args[2], token)
            b.store(b.extract_value(args[0], token), _pointer(b, at, f32x16.llvm), align=4)
        return context.get_dummy_value()

    return types.void(block, address, address), codegen


store_each = _intrinsic_of_arity(3, _store_rows)  # (block, address, stride)

# -- threads that meet
atomic_add = _operation(
    types.int64(address, types.int64), lambda b, p, v: b.atomic_rmw("add", _pointer(b, p, I64), v, "acq_rel")
)
atomic_load = _operation(types.int64(address), lambda b, p: b.load_atomic(_pointer(b, p, I64), "acquire", 8))
pause = _operation(
    types.void(),
    _call("llvm.x86.sse2.pause", ir.VoidType()) if llvm.get_default_triple().startswith("x86") else (lambda b: None),
)
sleep_shortly = _operation(  # some 50 microseconds: the least that the system's timers give
    types.void(), lambda b: _call("usleep", I32, I32)(b, ir.Constant(I32, 1))
)
cycle_count = _operation(types.int64(), _call("llvm.readcyclecounter", I64))  # at a constant rate on x86-64
