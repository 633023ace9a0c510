"""Architectures from their configuration alone: every tensor that the published checkpoint holds, and every state.

An architecture is one function from a configuration to a Draft, in the module of its family.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from residency.errors import FileError, UnsupportedError
from residency.models.configuration import Configuration
from residency.models.planned import (
    classic,
    deepseek,
    dense,
    elsewhere,
    flash,
    gemma3n,
    gemma4,
    hybrid,
    linear,
    mllama,
    recurrent,
    sparse,
    towers,
)
from residency.models.planned.keys import refuse_unknown_structure
from residency.models.planned.parts import Draft
from residency.models.planned.quantized import Requantize, quantization
from residency.models.planned.rotations import rotations
from residency.models.planned.vision import (
    llama4_vision,
    llava,
    moonvit,
    pixtral,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    siglip,
    uncounted,
)
from residency.spec.model import LayerSpec, ModelSpec, MoeSpec, TensorSpec

ARCHITECTURES: Mapping[str, Callable[[Configuration], Draft]] = {
    "llama": dense.llama,
    "mistral": dense.mistral,
    "qwen2": dense.qwen2,
    "qwen3": dense.qwen3,
    "gemma": dense.gemma,
    "gemma2": dense.gemma2,
    "gemma3_text": dense.gemma3,
    "gemma3n_text": gemma3n.gemma3n,
    "gemma4_text": gemma4.gemma4,
    "phi3": dense.phi3,
    "granite": dense.llama,
    "helium": dense.llama,
    "arcee": dense.arcee,
    "olmo": dense.olmo,
    "apertus": dense.apertus,
    "vaultgemma": dense.vaultgemma,
    "bitnet": dense.bitnet,
    "internlm3": dense.internlm3,
    "mllama_text_model": mllama.mllama,
    "cwm": dense.cwm,
    "ernie4_5": dense.ernie4_5,
    "glm": dense.glm,
    "hunyuan_v1_dense": dense.hunyuan_v1_dense,
    "ministral": dense.ministral,
    "ministral3": dense.ministral,
    "nemotron": dense.nemotron,
    "stablelm": dense.stablelm,
    "smollm3": dense.smollm3,
    "glm4": dense.glm4,
    "glm4v_text": dense.glm4v,
    "olmo2": dense.olmo2,
    "olmo3": dense.olmo3,
    "exaone4": dense.exaone4,
    "cohere": dense.cohere,
    "cohere2": dense.cohere2,
    "seed_oss": dense.seed_oss,
    "starcoder2": dense.starcoder2,
    "mixtral": sparse.mixtral,
    "qwen2_moe": sparse.qwen2_moe,
    "qwen3_moe": sparse.qwen3_moe,
    "qwen3_vl_moe_text": sparse.qwen3_moe,
    "gpt_oss": sparse.gpt_oss,
    "deepseek_v2": deepseek.deepseek,
    "deepseek_v3": deepseek.deepseek,
    "deepseek_v32": deepseek.deepseek,
    "kimi_k2": deepseek.deepseek,
    "glm4_moe_lite": deepseek.deepseek,
    "glm_moe_dsa": deepseek.deepseek,
    "minicpm3": deepseek.minicpm3,
    "dots1": deepseek.glm4_moe,
    "glm4_moe": deepseek.glm4_moe,
    "glm4v_moe_text": deepseek.glm4v_moe,
    "exaone_moe": deepseek.exaone_moe,
    "afmoe": deepseek.afmoe,
    "deepseek": deepseek.deepseek_moe,
    "granitemoe": sparse.granitemoe,
    "granitemoeshared": sparse.granitemoe,
    "phimoe": sparse.phimoe,
    "minimax_m2": sparse.minimax_m2,
    "ernie4_5_moe": sparse.ernie4_5_moe,
    "llama4_text": sparse.llama4,
    "olmoe": sparse.olmoe,
    "flex_olmo": sparse.flex_olmo,
    "dbrx": sparse.dbrx,
    "hunyuan_v1_moe": sparse.hunyuan_v1_moe,
    "gpt2": classic.gpt2,
    "gpt_neox": classic.gpt_neox,
    "falcon": classic.falcon,
    "opt": classic.opt,
    "bloom": classic.bloom,
    "mpt": classic.mpt,
    "gptj": classic.gptj,
    "codegen": classic.codegen,
    "gpt_neo": classic.gpt_neo,
    "gpt_bigcode": classic.gpt_bigcode,
    "phi": classic.phi,
    "persimmon": classic.persimmon,
    "baichuan": elsewhere.baichuan,
    "chatglm": elsewhere.chatglm,
    "exaone": elsewhere.exaone,
    "internlm": elsewhere.internlm,
    "internlm2": elsewhere.internlm2,
    "minicpm": elsewhere.minicpm,
    "orion": elsewhere.internlm,
    "qwen": elsewhere.qwen,
    "xverse": elsewhere.internlm,
    "mamba": recurrent.mamba,
    "falcon_mamba": recurrent.mamba,
    "mamba2": recurrent.mamba2,
    "rwkv": recurrent.rwkv,
    "rwkv5": recurrent.rwkv5,
    "rwkv6": recurrent.rwkv6,
    "jamba": hybrid.jamba,
    "bamba": hybrid.bamba,
    "granitemoehybrid": hybrid.granitemoehybrid,
    "falcon_h1": hybrid.falcon_h1,
    "zamba2": hybrid.zamba2,
    "lfm2": linear.lfm2,
    "lfm2_moe": linear.lfm2,
    "qwen3_next": linear.qwen3_next,
    "qwen3_5_text": linear.qwen3_5,
    "qwen3_5_moe_text": linear.qwen3_5,
    "minimax": linear.minimax,
    "olmo_hybrid": linear.olmo_hybrid,
    "kimi_linear": flash.kimi_linear,
    "longcat_flash": flash.longcat_flash,
    "mimo_v2_flash": flash.mimo_v2_flash,
    "recurrent_gemma": linear.recurrent_gemma,
    "nemotron_h": hybrid.nemotron_h,
}


@dataclass(frozen=True, kw_only=True)
class Multimodal:
    """A checkpoint that holds a text model beside other things: where they put its names, and what else they hold."""

    text: str  # its model_type, or the usual one where several can be
    others: tuple[str, ...] = ()  # what it can be else
    tower: Callable[[Configuration, int], tuple[TensorSpec, ...]]
    renamed: tuple[str, str] = ("", "language_model.")  # what names begin with alone, and within

    def within(self, name: str) -> str:
        """The name in the checkpoint of the text model's tensor `name`."""
        alone, within = self.renamed
        return within + name.removeprefix(alone) if name.startswith(alone) else name


_INSIDE = ("model.", "model.language_model.")
_BESIDE = ("model.", "model.text_model.")
MULTIMODAL: Mapping[str, Multimodal] = {
    "gemma3": Multimodal(text="gemma3_text", tower=siglip),
    "mistral3": Multimodal(text="mistral", tower=pixtral),
    "llama4": Multimodal(text="llama4_text", tower=llama4_vision),
    "gemma3n": Multimodal(text="gemma3n_text", tower=uncounted),
    "gemma4": Multimodal(text="gemma4_text", tower=uncounted, renamed=_INSIDE),
    "llava": Multimodal(text="llama", tower=llava),
    "llava_next": Multimodal(text="llama", tower=llava),
    "kimi_vl": Multimodal(text="deepseek_v3", tower=moonvit),
    "mllama": Multimodal(text="mllama_text_model", tower=mllama.mllama_vision),
    "qwen2_vl": Multimodal(text="qwen2", tower=qwen2_vl, renamed=("", "")),
    "qwen2_5_vl": Multimodal(text="qwen2", tower=qwen2_5_vl, renamed=("", "")),
    "qwen3_vl": Multimodal(text="qwen3", tower=qwen3_vl, renamed=_INSIDE),
    "qwen3_vl_moe": Multimodal(text="qwen3_vl_moe_text", tower=qwen3_vl, renamed=_INSIDE),
    "qwen3_5": Multimodal(text="qwen3_5_text", tower=qwen3_vl, renamed=_INSIDE),
    "qwen3_5_moe": Multimodal(text="qwen3_5_moe_text", tower=qwen3_vl, renamed=_INSIDE),
    "glm4v": Multimodal(text="glm4v_text", tower=towers.glm4v, renamed=_INSIDE),
    "glm4v_moe": Multimodal(text="glm4v_moe_text", tower=towers.glm4v, renamed=_INSIDE),
    "idefics3": Multimodal(text="llama", tower=towers.idefics3, renamed=_BESIDE),
    "smolvlm": Multimodal(text="llama", tower=towers.idefics3, renamed=_BESIDE),
    "paligemma": Multimodal(text="gemma", others=("gemma2",), tower=towers.paligemma),
    "internvl": Multimodal(text="qwen2", others=("llama", "qwen3", "qwen3_moe"), tower=towers.internvl),
}

# What is assumed where a configuration is silent: multimodal Gemma's leave most of what `transformers` knows out, and
# gpt-oss's the number format of what is not in MXFP4.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gpt_oss": {"torch_dtype": "bfloat16"},
    "gemma2": {"max_position_embeddings": 8192},
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
}


def planned_spec(name: str, source: str, values: Mapping[str, Any]) -> ModelSpec:
    """The model that config.json's `values` describe. FileError if they contradict themselves, UnsupportedError for
    an architecture, or a key that changes memory, that is not known.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise FileError(f"{source} names no model_type; fetch the model again.")
    multimodal = MULTIMODAL.get(model_type)
    text_type = _text_type(multimodal, values) if multimodal else model_type
    outer = Configuration(source, values, architecture=text_type)
    inner = outer
    if multimodal and outer.has("text_config"):
        inner = _text_configuration(outer, (text_type, f"{model_type}_text"))
    if text_type not in ARCHITECTURES:
        raise _unknown(model_type)
    inner = inner.with_defaults(**DEFAULTS.get(text_type, {}))
    draft = ARCHITECTURES[text_type](inner)
    for block in draft.layers:
        if isinstance(block.mlp, MoeSpec) and block.mlp.experts_per_token > block.mlp.num_experts:
            raise FileError(
                f"{source} sends each token to {block.mlp.experts_per_token} experts of {block.mlp.num_experts}."
            )
    if multimodal and outer.has("vision_config"):
        inside = _named(draft, multimodal.within)
        tower = multimodal.tower(outer.with_defaults(dtype=_dtype(outer, inner)), inner.integer("hidden_size"))
        draft = replace(inside, others=(*inside.others, *tower))
    format_of = quantization(outer)
    refuse_unknown_structure(inner)
    if inner is not outer:
        refuse_unknown_structure(outer)
    return _model(name, model_type, inner, draft, format_of)


def _text_type(multimodal: Multimodal, values: Mapping[str, Any]) -> str:
    """Which of the text models that a multimodal one can have it has."""
    text = values.get("text_config")
    said = text.get("model_type") if isinstance(text, Mapping) else None
    return said if isinstance(said, str) and said in multimodal.others else multimodal.text


def _unknown(model_type: str) -> UnsupportedError:
    near = difflib.get_close_matches(model_type, sorted({*ARCHITECTURES, *MULTIMODAL}), n=3)
    nearest = f"; the nearest that are: {', '.join(near)}" if near else ""
    return UnsupportedError(
        f"the architecture {model_type[:80]!r} is not known{nearest}; a GGUF file of any architecture can be planned."
    )


def _dtype(*configurations: Configuration) -> str:
    """The first number format that one of them names."""
    named = (c.text(key, "") for c in configurations for key in ("dtype", "torch_dtype"))
    return next(filter(None, named), "float32")


def _text_configuration(outer: Configuration, text_types: tuple[str, str]) -> Configuration:
    """A multimodal model's text_config, with the number format and the tied head of the whole."""
    inner = outer.section("text_config")
    if inner.has("model_type") and not any(inner.says("model_type", each) for each in text_types):
        raise inner.unsupported("model_type")
    if outer.has("tie_word_embeddings"):
        inner = inner.with_changes(tie_word_embeddings=outer.flag("tie_word_embeddings", False))
    return inner if inner.has("dtype") or inner.has("torch_dtype") else inner.with_changes(dtype=_dtype(outer))


def _named(draft: Draft, rename: Callable[[str], str]) -> Draft:
    """The draft with all tensors renamed."""

    def within(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, name=rename(tensor.name))

    for block in draft.layers:
        block.found = [within(tensor) for tensor in block.found]
    return replace(
        draft,
        embedding=within(draft.embedding),
        final_norm=within(draft.final_norm),
        head=None if draft.head is None else within(draft.head),
        others=tuple(within(tensor) for tensor in draft.others),
    )


def _model(name: str, architecture: str, c: Configuration, draft: Draft, format_of: Requantize) -> ModelSpec:
    def formatted(tensor: TensorSpec) -> TensorSpec:
        number_format = format_of(tensor)
        return tensor if number_format is tensor.format else replace(tensor, format=number_format)

    def whole(layer: LayerSpec) -> LayerSpec:
        return replace(layer, tensors=tuple(formatted(tensor) for tensor in layer.tensors))

    unnamed = "config.json names no dtype: counted as float32, as transformers would load it"
    has_dtype = c.has("dtype") or c.has("torch_dtype")
    layers = tuple(whole(block.layer()) for block in draft.layers)
    return ModelSpec(
        name=name,
        architecture=architecture,
        vocabulary=draft.embedding.shape[0],
        hidden=draft.final_norm.shape[0],
        max_context_tokens=_context(c),
        norm_epsilon=1e-6,
        embedding_scale=1.0,
        embedding=draft.embedding,
        layers=layers,
        final_norm=draft.final_norm,
        head=draft.head,
        others=draft.others,
        unused=tuple(formatted(tensor) for tensor in draft.unused),
        rotations=rotations(c, layers, _context(c)),
        notes=draft.notes if has_dtype else (*draft.notes, unnamed),
    )


def _context(c: Configuration) -> int:
    """The longest context that the configuration promises; a model without positions has none, and gets 2^20."""
    for key in (
        "max_position_embeddings",
        "n_positions",
        "seq_length",
        "max_sequence_length",
        "max_seq_len",
        "model_max_length",
    ):
        if c.has(key):
            return c.integer(key)
    return 1 << 20
