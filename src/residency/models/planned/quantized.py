"""config.json's quantization_config: which matrices are kept in which scheme."""

import re
from collections.abc import Callable, Iterable

from residency.errors import FileError, UnsupportedError
from residency.formats import BF16, F8_E4M3, F16, F32, I8, Format
from residency.formats.schemes import (
    MODELOPT_NVFP4,
    Scheme,
    awq,
    by_channel,
    by_tile,
    gptq,
    llm_int8,
    mxfp4,
    nf4,
    nvfp4,
    packed,
)
from residency.models.configuration import Configuration
from residency.models.planned.parts import number_format
from residency.spec.model import TensorSpec

Requantize = Callable[[TensorSpec], Format]
METHODS = "gptq, awq, fp8, compressed-tensors, bitsandbytes, modelopt, fbgemm_fp8 and mxfp4"


def quantization(c: Configuration) -> Requantize:
    """What says the format of each tensor of a layer. UnsupportedError names a method that is not known."""
    scheme = quantization_scheme(c)
    if scheme is None:
        return lambda tensor: tensor.format
    q = c.section("quantization_config")
    if q.flag("lm_head", False):
        raise q.unsupported("lm_head")
    if q.section("dynamic").keys():  # other bits for some modules
        raise q.unsupported("dynamic")
    return _where(scheme, _method(q), _spared(q))


def quantization_scheme(c: Configuration) -> Scheme | None:
    """How the quantized matrices are kept; None where there are none. UnsupportedError names an unknown method."""
    if not c.has("quantization_config"):
        return None
    q = c.section("quantization_config")
    method = _method(q)
    makers: dict[str, Callable[[Configuration, Configuration], Scheme]] = {
        "gptq": _gptq,
        "awq": _awq,
        "fp8": _fp8,
        "fbgemm_fp8": lambda c, q: by_channel(F8_E4M3, scales=F32),
        "compressed-tensors": _compressed,
        "bitsandbytes": _bitsandbytes,
        "modelopt": _modelopt,
        "mxfp4": lambda c, q: mxfp4(),
    }
    if method not in makers:
        raise UnsupportedError(f"{c.source} was quantized by {method[:40]!r}, which is not known; known are {METHODS}.")
    return makers[method](c, q)


def _method(q: Configuration) -> str:
    return q.text("quant_method", "bitsandbytes" if q.has("load_in_4bit") or q.has("load_in_8bit") else "")


def _where(scheme: Scheme, method: str, spared: Iterable[str]) -> Requantize:
    """Matrices and experts of the layers, but for those that the configuration spares."""
    patterns = [_pattern(each) for each in spared]
    roles = ("expert",) if method == "mxfp4" else ("matrix", "expert")

    def is_spared(name: str) -> bool:
        path = name.removesuffix(".weight")
        parts = path.split(".")
        for each in patterns:
            if isinstance(each, re.Pattern):
                if each.match(path):
                    return True
            elif path == each or path.startswith(each + ".") or each in parts or path.endswith("." + each):
                return True
        return False

    def format_of(tensor: TensorSpec) -> Format:
        if tensor.role not in roles or tensor.name.endswith("_bias") or is_spared(tensor.name):
            return tensor.format
        return scheme

    return format_of


def _pattern(text: str) -> re.Pattern[str] | str:
    """A name, or after "re:" a regular expression."""
    if not text.startswith("re:"):
        return text
    try:
        return re.compile(text.removeprefix("re:"))
    except re.error as error:
        raise FileError(
            f"quantization_config spares {text[:60]!r}, which is no regular expression: {error}."
        ) from error


def _spared(q: Configuration) -> list[str]:
    found: list[str] = []
    for key in ("modules_to_not_convert", "ignore", "ignored_layers", "llm_int8_skip_modules"):
        if q.has(key):
            found += q.strings(key)
    return found


def _group(q: Configuration) -> int | None:
    return None if q.says("group_size", -1) else q.integer("group_size", 128)


def _bits(q: Configuration, key: str, default: int | None = None) -> int:
    """Bits of an integer that is packed: 2, 3, 4 or 8."""
    bits = q.integer(key, default)
    if bits not in (2, 3, 4, 8):
        raise q.unsupported(key)
    return bits


def _gptq(c: Configuration, q: Configuration) -> Scheme:
    if q.text("checkpoint_format", "gptq") not in ("gptq", "gptq_v2"):
        raise q.unsupported("checkpoint_format")
    return gptq(
        bits=_bits(q, "bits"),
        group=_group(q),
        scales=F16,
        symmetric=q.flag("sym", False),
        ordered=q.flag("desc_act", False),
        zero_less=0 if q.says("checkpoint_format", "gptq_v2") else 1,
    )


def _awq(c: Configuration, q: Configuration) -> Scheme:
    if q.text("version", "gemm").lower() != "gemm":
        raise q.unsupported("version")
    bits = _bits(q, "bits" if q.has("bits") or not q.has("w_bit") else "w_bit", 4)
    return awq(bits=bits, group=_group(q), zero_point=q.flag("zero_point", True))


def _fp8(c: Configuration, q: Configuration) -> Scheme:
    """DeepSeek-V3's scales are float32, those of Qwen3 bfloat16, as their published files show."""
    if q.has("weight_block_size"):
        tile = q.integers("weight_block_size")
        if len(tile) != 2 or not all(tile):
            raise q.unsupported("weight_block_size")
        rows, columns = tile
        scales = F32 if c.architecture.startswith(("deepseek", "kimi", "glm")) else BF16
        return by_tile(rows_of_tile=rows, columns_of_tile=columns, scales=scales)
    static = q.text("activation_scheme", "dynamic") == "static"
    return by_channel(F8_E4M3, scales=F32, whole=True, static_inputs=static)


def _compressed(c: Configuration, q: Configuration) -> Scheme:
    groups = q.section("config_groups")
    (name, *others) = groups.keys() or ["group_0"]
    if others:
        raise q.unsupported("config_groups")
    group = groups.section(name)
    weights, inputs = group.section("weights"), group.section("input_activations")
    kind = q.text("format", "pack-quantized")
    scales = number_format(c)
    strategy = weights.text("strategy", "tensor")
    symmetric = weights.flag("symmetric", True)
    static = group.has("input_activations") and not inputs.flag("dynamic", False)
    if kind == "pack-quantized":
        size = weights.integer("group_size") if strategy == "group" else None
        order = weights.says("actorder", "group") or weights.says("actorder", "dynamic")
        return packed(bits=_bits(weights, "num_bits"), group=size, scales=scales, symmetric=symmetric, order=order)
    if kind in ("int-quantized", "float-quantized", "naive-quantized"):
        values = F8_E4M3 if weights.text("type", "int") == "float" else I8
        whole = strategy == "tensor"
        return by_channel(values, scales=scales, whole=whole, static_inputs=static, symmetric=symmetric)
    if kind == "nvfp4-pack-quantized":
        return nvfp4()
    raise q.unsupported("format")


def _bitsandbytes(c: Configuration, q: Configuration) -> Scheme:
    if q.flag("load_in_8bit", False) or q.flag("_load_in_8bit", False):
        return llm_int8()
    if q.text("bnb_4bit_quant_type", "fp4") not in ("nf4", "fp4"):
        raise q.unsupported("bnb_4bit_quant_type")
    return nf4(double=q.flag("bnb_4bit_use_double_quant", False))


def _modelopt(c: Configuration, q: Configuration) -> Scheme:
    """ModelOpt: FP8 with one scale for each matrix and one for its inputs, or NVFP4."""
    algorithm = q.text("quant_algo", "FP8")
    if algorithm not in ("FP8", "NVFP4"):
        raise q.unsupported("quant_algo")
    return (
        nvfp4(MODELOPT_NVFP4)
        if algorithm == "NVFP4"
        else by_channel(F8_E4M3, scales=F32, whole=True, static_inputs=True)
    )
