"""The metadata of a GGUF file that is made from a folder: the model's extents and its tokenizer, under GGUF's keys.

The keys are those of ggml's docs/gguf.md, filled as llama.cpp's convert_hf_to_gguf.py fills them.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from residency.engine.text import load_chat_template, load_tokenizer
from residency.engine.text.gguf import CONTROL, NORMAL, UNUSED, USER_DEFINED
from residency.engine.text.library import read_json
from residency.engine.text.pretokenizers import ANY_CASE_CONTRACTIONS, CONTRACTIONS, GPT2, PRE_TOKENIZERS
from residency.errors import FileError, UnsupportedError
from residency.models.tensors import GGUF_LAYER_NAMES, GGUF_NAMES
from residency.spec.checkpoint import Checkpoint
from residency.spec.gguf import ARRAY_TYPE, SCALARS, STRING_TYPE
from residency.spec.model import ModelSpec

Value = str | bool | int | float | Sequence[str] | Sequence[int]

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # by config.json's
_INSTEAD = "give the model's GGUF file in 16 bits, or choose int4 or int8."
_TYPE_IDS: dict[type, int] = {int: 4, float: 6, bool: 7, str: STRING_TYPE}  # int is an unsigned word
_ARRAY_IDS: dict[type, int] = {int: 5, str: STRING_TYPE}  # of signed words


def entry(key: str, value: Value) -> bytes:
    """A key and its value as the file holds them."""
    if isinstance(value, (str, bool, int, float)):
        return string(key) + struct.pack("<I", _TYPE_IDS[type(value)]) + _packed(value, _TYPE_IDS)
    type_id = _ARRAY_IDS[type(value[0])]
    items = b"".join(_packed(item, _ARRAY_IDS) for item in value)
    return string(key) + struct.pack("<IIQ", ARRAY_TYPE, type_id, len(value)) + items


def string(text: str) -> bytes:
    """A length and its characters."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def tensor_name(name: str) -> str:
    """GGUF's name of the tensor that `transformers` calls `name`."""
    stem, _, kind = name.rpartition(".")
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_LAYER_NAMES[part]}.{kind}"


def folder_metadata(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Value]:
    """All of it. UnsupportedError of a model that GGUF's files cannot tell of, FileError of a damaged tokenizer."""
    if spec.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{checkpoint.path} is of {spec.architecture}, of which no GGUF file is made; {_INSTEAD}"
        )
    return _extents(checkpoint, spec) | _tokenizer(checkpoint, spec.vocabulary)


def _extents(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Value]:
    name, attention = ARCHITECTURES[spec.architecture], spec.layers[0].grouped_attention
    head_dim, frequencies = attention.head_dim, attention.rope.inverse_frequencies
    theta = float(frequencies[1]) ** (-head_dim / 2)
    plain = [theta ** (-i / head_dim) for i in range(0, head_dim, 2)]
    windows = any(layer.grouped_attention.window_tokens for layer in spec.layers)
    if windows or attention.rope.factor != 1 or not np.allclose(frequencies, plain, rtol=1e-6, atol=0):
        raise UnsupportedError(
            f"{checkpoint.path} scales its rotations or slides a window, which is not written to GGUF; {_INSTEAD}"
        )
    values: dict[str, Value] = {
        "context_length": spec.max_context_tokens,
        "embedding_length": spec.hidden,
        "block_count": len(spec.layers),
        "feed_forward_length": spec.layers[0].gated_mlp.intermediate,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_epsilon,
        "rope.dimension_count": head_dim,
        "rope.freq_base": theta,
        "vocab_size": spec.vocabulary,
    }
    general: dict[str, Value] = {"general.architecture": name, "general.name": spec.name}
    return general | {f"{name}.{key}": value for key, value in values.items()}


def _tokenizer(checkpoint: Checkpoint, vocabulary: int) -> dict[str, Value]:
    """Of a byte-level BPE; rows of the embedding without a token get one that is never used."""
    path = checkpoint.path / "tokenizer.json"
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UnsupportedError(f"{path} is no byte-level BPE; {_INSTEAD}")
    texts = [f"[PAD{index}]" for index in range(vocabulary)]
    kinds = [UNUSED] * vocabulary
    entries = [(text, index, NORMAL) for text, index in model["vocab"].items()]
    for each in content.get("added_tokens", ()):
        entries.append((each.get("content"), each.get("id"), CONTROL if each.get("special") else USER_DEFINED))
    for text, index, kind in entries:
        if not (isinstance(text, str) and isinstance(index, int) and 0 <= index < vocabulary):
            raise FileError(f"{path} has the token {str(text)[:40]!r} at {index}, of {vocabulary}; fetch it again.")
        texts[index], kinds[index] = text, kind
    merges = model.get("merges", ())
    values: dict[str, Value] = {
        "model": "gpt2",
        "pre": _pre_tokenizer(checkpoint, content.get("pre_tokenizer"), bool(model.get("ignore_merges"))),
        "tokens": texts,
        "token_type": kinds,
        "merges": [each if isinstance(each, str) else " ".join(each) for each in merges],
    }
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value}
    return named | _special_tokens(checkpoint)


def _special_tokens(checkpoint: Checkpoint) -> dict[str, Value]:
    tokenizer, template = load_tokenizer(checkpoint), load_chat_template(checkpoint)
    end = checkpoint.config.get("eos_token_id")
    ids = {"bos": tokenizer.bos_id, "eos": end[0] if isinstance(end, list) and end else end}
    begins = tokenizer.bos_id is not None and tokenizer.encode("", add_special=True)[:1] == [tokenizer.bos_id]
    return {
        **{f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items() if isinstance(value, int)},
        "tokenizer.ggml.add_bos_token": begins,
        **({} if template is None else {"tokenizer.chat_template": template.source}),
    }


def _pre_tokenizer(checkpoint: Checkpoint, described: Any, whole_words_first: bool) -> str:
    """GGUF's name of what tokenizer.json describes."""
    found = _expressions(described if isinstance(described, dict) else {})
    for name, known in PRE_TOKENIZERS.items():
        if (known.expressions, known.whole_words_first) == (found, whole_words_first):
            return name
    raise UnsupportedError(f"{checkpoint.path} cuts text in a way that GGUF's files have no name for; {_INSTEAD}")


def _expressions(described: Mapping[str, Any]) -> tuple[str, ...]:
    """As PRE_TOKENIZERS has them; empty where a step is of another kind."""
    steps, found, ends_in_bytes = described.get("pretokenizers", [described]), [], False
    for step in steps:
        kind, ends_in_bytes = step.get("type"), step.get("type") == "ByteLevel"
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            expression = str(step.get("pattern", {}).get("Regex"))
            found.append(expression.replace(f"(?i:{CONTRACTIONS})", ANY_CASE_CONTRACTIONS))
        elif kind == "Digits":
            found.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif ends_in_bytes and not step.get("add_prefix_space"):
            found += [GPT2] if step.get("use_regex", True) else []
        else:
            return ()
    return tuple(found) if ends_in_bytes else ()


def _packed(value: str | float, type_ids: Mapping[type, int]) -> bytes:
    return string(value) if isinstance(value, str) else SCALARS[type_ids[type(value)]].pack(value)
