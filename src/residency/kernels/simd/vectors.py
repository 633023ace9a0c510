"""What the vector language is made of: LLVM vectors as Numba types, and how an operation is written in LLVM's terms."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


class BFloat(ir.types._BaseFloatType):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


BFloat._create_instance()  # a class of llvmlite's float types has one instance


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


def operation(signature: Any, body: Callable[..., Value]) -> Any:
    """Make an intrinsic of one fixed signature from body(builder, *values)."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        result = body(builder, *args)
        return context.get_dummy_value() if sig.return_type == types.void else result

    return intrinsic_of_arity(len(signature.args), lambda *_: (signature, codegen))


def intrinsic_of_arity(arity: int, typer: Callable[..., Any], prefer_literal: bool = False) -> Any:
    """Numba wants a typer with named parameters; write one of the arity asked for."""
    names = ", ".join(f"a{i}" for i in range(arity))
    scope: dict[str, Any] = {"typer": typer}
    exec(f"def operation(typingctx, {names}):\n    return typer({names})\n", scope)
    return intrinsic(prefer_literal=prefer_literal)(scope["operation"])


def each(arity: int, blocks: tuple[int, ...], body: Callable[..., Value], result: Vector) -> Any:
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

    return intrinsic_of_arity(arity, typer)


def block_of(vector: Vector, made: Callable[..., Value], arity: int) -> Any:
    """Make an intrinsic f(tokens, ...) that returns a register block; `tokens` is a constant of the kernel."""

    def typer(count: Any, *rest: Any) -> Any:
        if not isinstance(count, types.IntegerLiteral):
            return None
        returned = types.UniTuple(vector, count.literal_value)

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            values = [made(builder, token, *args[1:]) for token in range(count.literal_value)]
            return context.make_tuple(builder, returned, values)

        return returned(count, *(r if isinstance(r, Vector) else address for r in rest)), codegen

    return intrinsic_of_arity(arity, typer, prefer_literal=True)


def pointer(b: Builder, at: Value, llvm_type: ir.Type) -> Value:
    """An address as a pointer to a type."""
    return b.inttoptr(at, llvm_type.as_pointer())


def constant(vector: Vector, value: float) -> Value:
    """The same constant in every lane."""
    return ir.Constant(vector.llvm, [value] * vector.llvm.count)


def splat(b: Builder, value: Value, vector: ir.VectorType) -> Value:
    """The same value in every lane."""
    undef = ir.Constant(vector, ir.Undefined)
    one = b.insert_element(undef, value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def load_splat(b: Builder, at: Value, element: ir.Type, vector: Vector) -> Value:
    """A value in memory in every lane."""
    return splat(b, b.load(pointer(b, at, element), align=4), vector.llvm)


def token_address(b: Builder, at: Value, stride: Value, token: int) -> Value:
    """Where a register block's token is: tokens are `stride` bytes apart."""
    return b.add(at, b.mul(stride, ir.Constant(I64, token))) if token else at


def call(name: str, result: ir.Type, *arguments: ir.Type) -> Callable[..., Value]:
    """The body that calls an LLVM intrinsic or a C function."""

    def body(b: Builder, *values: Value) -> Value:
        return b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name), values)

    return body
