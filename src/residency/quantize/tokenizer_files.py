"""The files of a folder that tell how text becomes tokens: copied from a folder, made from a GGUF file's metadata."""

import json
import shutil
from pathlib import Path
from typing import Any

from residency.engine.text.gguf import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from residency.engine.text.pretokenizers import find_pre_tokenizer
from residency.errors import UnsupportedError
from residency.spec.checkpoint import Checkpoint

COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)


def refuse_unknown_tokenizer(checkpoint: Checkpoint) -> None:
    """UnsupportedError where no tokenizer.json can be made."""
    if checkpoint.kind == "gguf" and (kind := checkpoint.config.get("tokenizer.ggml.model")) != "gpt2":
        raise UnsupportedError(
            f"{checkpoint.path} has a tokenizer of the kind {str(kind)[:40]!r}, of which no tokenizer.json can be "
            "made; quantize the model's safetensors folder, or to one of GGUF's formats."
        )


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizer's files of `checkpoint`, into `folder`."""
    if checkpoint.kind == "safetensors":
        for name in COPIED:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, folder / name)
        return
    refuse_unknown_tokenizer(checkpoint)
    for name, content in (("tokenizer.json", _tokenizer(checkpoint)), ("tokenizer_config.json", _config(checkpoint))):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def special_ids(checkpoint: Checkpoint) -> dict[str, int]:
    """The begin and end tokens that a GGUF file's metadata names, as config.json has them."""
    named = {f"{key}_token_id": checkpoint.config.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
    return {name: value for name, value in named.items() if isinstance(value, int)}


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE, as the `tokenizers` library reads it."""
    texts, kinds = _vocabulary(checkpoint)
    pre = find_pre_tokenizer(str(checkpoint.config.get("tokenizer.ggml.pre", "default")))
    splits = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
        for each in pre.expressions
    ]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, text, kinds[index]) for index, text in enumerate(texts) if _is_added(kinds[index])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes_alone]},
        "post_processor": _begins(checkpoint, texts, pre.begins_with_bos),
        "decoder": {**bytes_alone, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.whole_words_first,
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": [_pair(str(merge)) for merge in checkpoint.config.get("tokenizer.ggml.merges", ())],
        },
    }


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    texts, _ = _vocabulary(checkpoint)
    named = {key.removesuffix("_id"): texts[value] for key, value in special_ids(checkpoint).items()}
    template = checkpoint.config.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **named,
        **({"chat_template": template} if isinstance(template, str) else {}),
    }


def _vocabulary(checkpoint: Checkpoint) -> tuple[list[str], list[int]]:
    texts = [str(text) for text in checkpoint.config.get("tokenizer.ggml.tokens", ())]
    kinds = [int(kind) for kind in checkpoint.config.get("tokenizer.ggml.token_type", ())]
    return texts, kinds or [NORMAL] * len(texts)


def _is_added(kind: int) -> bool:
    return kind in (UNKNOWN, CONTROL, USER_DEFINED)


def _added(index: int, text: str, kind: int) -> dict[str, Any]:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": kind != USER_DEFINED,
    }


def _pair(merge: str) -> list[str]:
    """The two parts of a merge: the first character may itself be a space's mark, never a space."""
    cut = merge.find(" ", 1)
    return [merge[:cut], merge[cut + 1 :]]


def _begins(checkpoint: Checkpoint, texts: list[str], by_default: bool) -> dict[str, Any] | None:
    """A template that puts the begin token first, where the model wants it."""
    bos_id = special_ids(checkpoint).get("bos_token_id")
    if bos_id is None or not checkpoint.config.get("tokenizer.ggml.add_bos_token", by_default):
        return None
    token, text = texts[bos_id], {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [bos_id], "tokens": [token]}},
    }
