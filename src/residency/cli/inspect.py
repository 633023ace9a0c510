"""`residency inspect`: a model from its file headers alone."""

import json
from pathlib import Path
from typing import Any

import click

from residency.cli.options import json_option, model_argument
from residency.cli.tables import columns, paragraph
from residency.engine.text import load_chat_template
from residency.engine.text.library import read_json
from residency.models.specs import described_spec
from residency.spec.checkpoint import Checkpoint
from residency.spec.layout import read_bytes_per_token
from residency.spec.model import ModelSpec
from residency.spec.opening import open_checkpoint
from residency.store.fetch import resolve
from residency.units import binary_bytes, count, decimal_bytes


@click.command("inspect")
@model_argument
@json_option
def command(model: str, as_json: bool) -> None:
    """Show what MODEL is, from its file headers alone: architecture, tensors by format, and what a token costs.

    \b
    Examples:
      residency inspect smollm2-135m
      residency inspect model.gguf --json
    """
    checkpoint = open_checkpoint(resolve(model))
    facts = facts_of(checkpoint, described_spec(checkpoint))
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else in_words(facts))


def facts_of(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """What the headers say, as JSON values."""
    formats: dict[str, dict[str, Any]] = {}
    for tensor in checkpoint.tensors.values():
        name = tensor.format.name
        held = formats.setdefault(name, {"format": name, "tensors": 0, "bytes": 0})
        held["tensors"] += 1
        held["bytes"] += tensor.num_bytes
    states = spec.states()
    return {
        "name": spec.name,
        "path": str(checkpoint.path),
        "kind": checkpoint.kind,
        "architecture": spec.architecture,
        "parameters": spec.parameters,
        "format": spec.format_label,
        "layers": len(spec.layers),
        "tensors": sorted(formats.values(), key=lambda held: -int(held["bytes"])),
        "tensor_bytes": sum(held["bytes"] for held in formats.values()),
        "file_bytes": checkpoint.file_bytes,
        "kv_bytes_per_token": sum(state.bytes_per_token for state in states),
        "kv_groups": [
            {"window_tokens": each.max_tokens, "layers": each.layers, "bytes_per_token": each.bytes_per_token}
            for each in states
            if each.bytes_per_token
        ],
        "fixed_state_bytes": sum(state.fixed_bytes for state in states),
        "read_bytes_per_token": read_bytes_per_token(spec),
        "max_context_tokens": spec.max_context_tokens,
        "vocabulary": spec.vocabulary,
        "tied_head": spec.tied,
        "tokenizer": _tokenizer_kind(checkpoint),
        "chat_template": _has_chat_template(checkpoint),
    }


def in_words(facts: dict[str, Any]) -> str:
    """The facts for people."""
    rows = [("FORMAT", "TENSORS", "BYTES")]
    rows += [(held["format"], str(held["tensors"]), binary_bytes(held["bytes"])) for held in facts["tensors"]]
    rows.append(("all", str(sum(held["tensors"] for held in facts["tensors"])), binary_bytes(facts["tensor_bytes"])))
    head = "the embedding is the output head too" if facts["tied_head"] else "its own output head"
    template = "with a chat template" if facts["chat_template"] else "without a chat template"
    return "\n".join(
        (
            paragraph(
                "model",
                [
                    f"{facts['name']} · {facts['architecture']} · {count(facts['parameters'])} parameters "
                    f"in {facts['layers']} layers · {facts['format']}",
                    f"{facts['path']} ({facts['kind']}, {decimal_bytes(facts['file_bytes'])})",
                ],
            ),
            paragraph("tensors", columns(rows, right=(1, 2))),
            paragraph("token", [f"reads {decimal_bytes(facts['read_bytes_per_token'])} of weights", *_kept(facts)]),
            paragraph("context", [f"{facts['max_context_tokens']} tokens at most"]),
            paragraph("text", [f"{facts['vocabulary']} tokens ({facts['tokenizer']}), {template}; {head}"]),
        )
    )


def _kept(facts: dict[str, Any]) -> list[str]:
    lines = []
    for group in facts["kv_groups"]:
        window = group["window_tokens"]
        reach = "of the whole context" if window is None else f"of the last {window} tokens"
        lines.append(
            f"keeps {binary_bytes(group['bytes_per_token'])} of keys and values in {group['layers']} layers {reach}"
        )
    if facts["fixed_state_bytes"]:
        lines.append(f"a sequence of any length keeps {binary_bytes(facts['fixed_state_bytes'])} of recurrent state")
    return lines


def _tokenizer_kind(checkpoint: Checkpoint) -> str:
    if checkpoint.kind == "gguf":
        parts = (checkpoint.config.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        return " ".join(part for part in parts if isinstance(part, str)) or "none"
    model = read_json(Path(checkpoint.path) / "tokenizer.json").get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    return kind if isinstance(kind, str) else "none"


def _has_chat_template(checkpoint: Checkpoint) -> bool:
    if checkpoint.kind == "gguf":
        source = checkpoint.config.get("tokenizer.chat_template")
        return isinstance(source, str) and bool(source.strip())
    return load_chat_template(checkpoint) is not None
