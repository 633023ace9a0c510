"""A model as it would be in another number format: which tensors each method converts, and what it leaves.

Serving formats (int8, fp8, int4-g128, awq, gptq, nf4, mxfp4, nvfp4 and their kin) convert the matrices of the layers
and leave embedding, head, routers and norms in 16 bits. ggml's types convert the embedding and the head too, keep
vectors in float32 and leave a vision tower to a file of its own; the mixtures (Q4_K_M) follow the choices of
llama.cpp's quantization (its src/llama-quant.cpp).
"""

import re
from collections.abc import Callable
from dataclasses import replace

from residency.errors import UsageError
from residency.formats import BF16, COUNTED_FORMATS, F8_E4M3, F16, F32, I8, MXFP4, Format
from residency.formats import grouped as integers_in_groups
from residency.formats.grouped import GROUPS
from residency.formats.schemes import awq, by_channel, by_tile, gptq, grouped_int4, nf4, nvfp4, packed
from residency.spec.model import ModelSpec, MoeSpec, TensorSpec

_SERVING: dict[str, Callable[[], Format]] = {
    "int8": lambda: by_channel(I8, scales=BF16),
    "fp8": lambda: by_channel(F8_E4M3, scales=BF16),
    "fp8-block": lambda: by_tile(),
    "int4-g128": lambda: grouped_int4(128),
    "int4-g32": lambda: grouped_int4(32),
    "w4a16": lambda: grouped_int4(128),  # compressed-tensors' own names
    "w8a16": lambda: packed(bits=8, group=None, scales=BF16),
    "w8a8": lambda: by_channel(I8, scales=BF16),
    "awq": lambda: awq(bits=4, group=128),
    "awq-g64": lambda: awq(bits=4, group=64),
    "gptq": lambda: gptq(bits=4, group=128),
    "gptq-g32": lambda: gptq(bits=4, group=32),
    "gptq-8bit": lambda: gptq(bits=8, group=128),
    "nf4": lambda: nf4(),
    "nf4-double": lambda: nf4(double=True),
    "mxfp4": lambda: MXFP4,
    "nvfp4": lambda: nvfp4(),
}
_PLAIN = {"f32": F32, "f16": F16, "bf16": BF16}
GGML = (
    "gguf-f16",
    "q8_0",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q4_k_m",
    "q4_k_s",
    "q3_k_m",
    "q2_k",
)
MXFP4_MOE = "mxfp4_moe"  # as gpt-oss is published in GGUF files: experts in MXFP4, what else is a matrix in Q8_0
LABELS = (*_PLAIN, *_SERVING, *GGML, MXFP4_MOE)

_VALUES = re.compile(r"(v_proj|attn_v)\.weight$")
_KEYS = re.compile(r"(k_proj|attn_k)\.weight$")
_JOINT = re.compile(r"(qkv_proj|query_key_value|c_attn|attn_qkv)\.weight$")
_OUTPUT = re.compile(r"(o_proj|out_proj|attention\.dense|self_attn\.dense|attn\.c_proj|attn_output)\.weight$")
_DOWN = re.compile(r"(down_proj|\.w2|dense_4h_to_h|fc2|mlp\.c_proj|feed_forward\.value|ffn_down(_exps)?)(\.weight)?$")

# What a row that is not whole blocks of 256 gets instead.
_NARROW = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def requantized(model: ModelSpec, label: str) -> ModelSpec:
    """`model` with its tensors in the format `label`, in any case. UsageError names the formats there are."""
    asked = label.lower()
    if asked in _PLAIN:
        plain = _PLAIN[asked]
        return _mapped(model, lambda tensor, layer: plain)
    if asked in _SERVING:
        scheme = _SERVING[asked]()
        return _mapped(model, lambda tensor, layer: _served(tensor, layer, scheme))
    if asked in (*GGML, MXFP4_MOE):
        text = replace(model, others=tuple(tensor for tensor in model.others if tensor.role != "vision"))
        return _mapped(text, _Choice(text, asked).format_of)
    raise UsageError(f"{label[:40]!r} is no format that weights can be planned in; choose one of {', '.join(LABELS)}.")


def in_groups(model: ModelSpec, bits: int) -> ModelSpec:
    """`model` with the matrices of its layers in integers of so many bits, in the largest groups that divide a row."""

    def format_of(tensor: TensorSpec, layer: int | None) -> Format:
        if layer is None or tensor.role not in ("matrix", "expert") or len(tensor.shape) < 2:
            return F32 if len(tensor.shape) < 2 else BF16
        group = next((each for each in GROUPS if tensor.shape[-1] % each == 0), None)
        return BF16 if group is None else integers_in_groups(bits=bits, group=group)

    return _mapped(model, format_of)


def with_plain(model: ModelSpec, plain: Format) -> ModelSpec:
    """`model` with its plain matrices in `plain` and its vectors in float32; blocks and integers stay."""
    return _mapped(
        model,
        lambda tensor, layer: F32 if len(tensor.shape) < 2 else plain if tensor.format.is_float else tensor.format,
    )


def _mapped(model: ModelSpec, format_of: Callable[[TensorSpec, int | None], Format]) -> ModelSpec:
    """The model with each tensor in the format that `format_of` gives it and its layer's number."""

    def changed(tensor: TensorSpec, layer: int | None = None) -> TensorSpec:
        return replace(tensor, format=format_of(tensor, layer), source=None, copy_sources=())

    return replace(
        model,
        embedding=changed(model.embedding),
        layers=tuple(
            replace(layer, tensors=tuple(changed(tensor, number) for tensor in layer.tensors))
            for number, layer in enumerate(model.layers)
        ),
        final_norm=changed(model.final_norm),
        head=None if model.head is None else changed(model.head),
        others=tuple(changed(tensor) for tensor in model.others),
        unused=(),
    )


def _served(tensor: TensorSpec, layer: int | None, scheme: Format) -> Format:
    """Matrices of layers in the scheme; what is left has 16 bits."""
    convertible = layer is not None and tensor.role in ("matrix", "expert") and len(tensor.shape) >= 2
    if convertible and not tensor.name.endswith("_bias") and tensor.shape[-1] % 32 == 0:
        return scheme
    return tensor.format if tensor.format.name in ("F16", "BF16") else BF16


class _Choice:
    """llama.cpp's choice of a type for each tensor of one mixture."""

    def __init__(self, model: ModelSpec, label: str) -> None:
        self._model = model
        self._label = label
        base = label.upper().removeprefix("GGUF-").removesuffix("_M").removesuffix("_S")
        self._base = COUNTED_FORMATS["Q8_0" if label == MXFP4_MOE else base]
        self._layers = len(model.layers)
        experts = [layer.mlp.num_experts for layer in model.layers if isinstance(layer.mlp, MoeSpec)]
        self._has_8_experts = 8 in experts
        self._shares_8_heads = self._layers == 80 and model.architecture in ("llama", "qwen2")  # what it knows as 70B
        attending = [number for number, layer in enumerate(model.layers) if layer.attention is not None]
        self._turn = {number: turn for turn, number in enumerate(attending)}

    def format_of(self, tensor: TensorSpec, layer: int | None) -> Format:
        """The type of one tensor; vectors, routers and what is no matrix stay float32."""
        if len(tensor.shape) < 2 or tensor.role not in ("matrix", "expert", "embedding", "head"):
            return F32
        wide = tensor.name.endswith("_bias") or tensor.shape[-1] % 32 != 0
        if wide:
            return F32 if tensor.name.endswith("_bias") else F16
        if self._label == MXFP4_MOE and tensor.role == "expert":
            return MXFP4
        name = self._named(tensor, layer)
        if COUNTED_FORMATS[name].block_values == 256 and tensor.shape[-1] % 256:
            name = _NARROW[name]
        return COUNTED_FORMATS[name]

    def _named(self, tensor: TensorSpec, layer: int | None) -> str:
        if layer is None:
            if self._base.name in ("Q8_0", "F16") or not (tensor.role == "head" or self._model.tied):
                return self._base.name
            odd = tensor.shape[-1] % self._base.block_values != 0
            return "Q8_0" if odd or self._model.architecture == "falcon" else "Q6_K"
        if _VALUES.search(tensor.name):
            return self._values(layer)
        if _DOWN.search(tensor.name):
            return self._down(layer)
        if self._has_8_experts and _KEYS.search(tensor.name):
            return "Q8_0"
        if _OUTPUT.search(tensor.name):
            if self._has_8_experts and self._base.name in ("Q2_K", "Q3_K", "Q4_K"):
                return "Q5_K"
            return {"q2_k": "Q3_K", "q3_k_m": "Q4_K"}.get(self._label, self._base.name)
        if _JOINT.search(tensor.name):
            return {"q3_k_m": "Q4_K", "q4_k_m": "Q5_K", "q5_k_m": "Q6_K"}.get(self._label, self._base.name)
        return self._base.name

    def _values(self, layer: int) -> str:
        if self._has_8_experts:
            return "Q8_0"
        chosen = self._own_values(layer)
        return "Q5_K" if self._shares_8_heads and chosen in ("Q3_K", "Q4_K") else chosen

    def _own_values(self, layer: int) -> str:
        turn, label = self._turn.get(layer, 0), self._label
        if label in ("q4_k_m", "q5_k_m") and _more_bits(turn, len(self._turn)):
            return "Q6_K"
        if label == "q4_k_s":
            return "Q5_K" if turn < 4 else "Q4_K"
        if label == "q3_k_m":
            return "Q5_K" if turn < 2 else "Q4_K"
        if label == "q2_k":
            attention = self._model.layers[layer].attention
            shared = attention.num_heads // getattr(attention, "num_kv_heads", 1) if attention else 1
            return "Q4_K" if shared >= 4 else "Q3_K"
        return self._base.name

    def _down(self, layer: int) -> str:
        label = self._label
        if label in ("q4_k_m", "q5_k_m") and _more_bits(layer, self._layers):
            return "Q6_K"
        if label == "q4_k_s" and layer < self._layers // 8:
            return "Q5_K"
        if label == "q3_k_m":
            return "Q5_K" if layer < self._layers // 16 else "Q4_K"
        return "Q3_K" if label == "q2_k" else self._base.name


def _more_bits(number: int, count: int) -> bool:
    """The first and the last eighth, and every third between."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2
