"""The four-way dot product of bytes, in the instructions that the processor has."""

from collections.abc import Callable

from llvmlite import ir

from residency.kernels.simd.target import has
from residency.kernels.simd.vectors import I8, I16, I32, Builder, Value, call, constant, i32x16, u8x64


def _dot4_widened(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """The portable sequence: widen to 32 bits, multiply, and add the four products of each lane."""
    wide = ir.VectorType(I32, 64)
    products = b.mul(b.zext(unsigned, wide), b.sext(signed, wide))
    for part in range(4):
        lanes = ir.Constant(ir.VectorType(I32, 16), [4 * lane + part for lane in range(16)])
        total = b.add(total, b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), lanes))
    return total


_dpbusd_512 = call("llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, i32x16.llvm, i32x16.llvm, i32x16.llvm)
_I32X8 = ir.VectorType(I32, 8)
_dpbusd_256 = call("llvm.x86.avx512.vpdpbusd.256", _I32X8, _I32X8, _I32X8, _I32X8)
_madd_u8_i8 = call("llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), *[ir.VectorType(I8, 32)] * 2)
_madd_i16 = call("llvm.x86.avx2.pmadd.wd", _I32X8, *[ir.VectorType(I16, 16)] * 2)


def _dot4_vnni(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    return _dpbusd_512(b, total, b.bitcast(unsigned, i32x16.llvm), b.bitcast(signed, i32x16.llvm))


def _dot4_vnni_256(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    parts = [b.bitcast(each, i32x16.llvm) for each in (total, unsigned, signed)]
    return _by_halves(b, lambda half: _dpbusd_256(b, *(_half(b, part, half) for part in parts)))


def _dot4_avx2(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """Pairs of products in 16 bits, which saturate where codes are above 127, then pairs of those in 32 bits."""
    ones = ir.Constant(ir.VectorType(I16, 16), [1] * 16)

    def dot(half: int) -> Value:
        pairs = _madd_u8_i8(b, _half(b, unsigned, half), _half(b, signed, half))
        return b.add(_half(b, total, half), _madd_i16(b, pairs, ones))

    return _by_halves(b, dot)


def _half(b: Builder, vector: Value, half: int) -> Value:
    lanes = vector.type.count // 2
    picked = ir.Constant(ir.VectorType(I32, lanes), list(range(half * lanes, (half + 1) * lanes)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), picked)


def _by_halves(b: Builder, made: Callable[[int], Value]) -> Value:
    return b.shuffle_vector(made(0), made(1), ir.Constant(ir.VectorType(I32, 16), list(range(16))))


def dot4(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """total + the sum of each lane's four products, of unsigned codes up to 127 and signed bytes."""
    if has("avx512vnni"):
        return _dot4_vnni(b, total, unsigned, signed)
    if has("avxvnni"):
        return _dot4_vnni_256(b, total, unsigned, signed)
    return (_dot4_avx2 if has("avx2") else _dot4_widened)(b, total, unsigned, signed)


def dot4_full(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """As dot4, for codes up to 255: without VNNI, their low seven bits and their eighth apart."""
    if has("avx512vnni") or has("avxvnni") or not has("avx2"):
        return dot4(b, total, unsigned, signed)
    low = _dot4_avx2(b, total, b.and_(unsigned, constant(u8x64, 127)), signed)
    return _dot4_avx2(b, low, b.and_(unsigned, constant(u8x64, 128)), signed)
