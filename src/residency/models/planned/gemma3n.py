"""Gemma 3n's text model: the last layers read keys and values of earlier ones, and each layer has its own embeddings.

Alternating updates (arXiv 2301.13310) keep several streams of hidden states; LAuReL (arXiv 2411.07501) adds low ranks.
"""

from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    Heads,
    Tensors,
    activation_of,
    gated_mlp,
    heads_of,
    layer_numbers,
    number_format,
    whole,
)
from residency.models.planned.windows import windows


def gemma3n(c: Configuration) -> Draft:
    """The text model; its checkpoints also hold towers for images and sound, which are not counted."""
    heads, hidden = heads_of(c, head_dim=256), c.integer("hidden_size")
    numbers = layer_numbers(c)
    first_shared = len(numbers) - c.integer("num_kv_shared_layers", 0, least=0)
    widths = c.integers("intermediate_size") if c.is_list("intermediate_size") else None
    narrow, streams = c.integer("hidden_size_per_layer_input", 256), c.integer("altup_num_inputs", 4)
    rank, activation = c.integer("laurel_rank", 64), activation_of(c, "hidden_activation", "gelu_pytorch_tanh")
    sliding = windows(c, slides=lambda number: (number + 1) % 5 != 0, default_tokens=512)
    if widths is not None and len(widths) != len(numbers):
        raise c.unsupported("intermediate_size")
    for quiet in ("activation_sparsity_pattern", "attention_bias", "altup_active_idx"):
        c.has(quiet)

    def fill(b: Block, number: int) -> None:
        _streams(b, hidden, streams, narrow)
        b.matrix("laurel.linear_left", rank, hidden, "replicated")
        b.matrix("laurel.linear_right", hidden, rank, "replicated")
        b.norm("laurel.post_laurel_norm", hidden)
        b.norm("input_layernorm", hidden)
        _attention(b, heads, sliding[number], shares=number >= first_shared)
        b.norm("post_attention_layernorm", hidden)
        b.norm("pre_feedforward_layernorm", hidden)
        gated_mlp(b, hidden, widths[number] if widths else c.integer("intermediate_size"), activation)
        b.norm("post_feedforward_layernorm", hidden)

    layers = blocks(c, fill)
    around = Tensors(prefix="model.", format=number_format(c))
    around.add(
        "embed_tokens_per_layer.weight",
        c.integer("vocab_size_per_layer_input", 262144),
        len(numbers) * narrow,
        role="embedding",
        split="vocabulary",
    )
    around.matrix("per_layer_model_projection", len(numbers) * narrow, hidden, "replicated")
    around.norm("per_layer_projection_norm", narrow)
    for name in ("altup_projections", "altup_unembed_projections"):
        around.matrix(f"{name}.{{}}", hidden, hidden, "replicated", copies=streams - 1)
    unread = Tensors(prefix="model.layers.", format=around.format)
    for number in range(first_shared, len(numbers)):
        _keys_and_values(unread, heads, f"{number}.")
    notes = ("the towers that Gemma 3n's checkpoints hold for images and sound are not counted",)
    draft = whole(c, layers, tied=True, extra=around.found, notes=notes)
    draft.unused = tuple(unread.found)
    return draft


def _attention(b: Block, heads: Heads, window_tokens: int | None, *, shares: bool) -> None:
    b.attention = heads.attention(window_tokens, qk_norm=True, shares_kv=shares)
    b.matrix("self_attn.q_proj", heads.q_rows, heads.hidden)
    b.norm("self_attn.q_norm", heads.head_dim)
    if not shares:
        _keys_and_values(b, heads)
    b.matrix("self_attn.o_proj", heads.hidden, heads.q_rows, "columns")


def _keys_and_values(tensors: Tensors, heads: Heads, prefix: str = "") -> None:
    """The published files hold them also for the layers that have no use for them."""
    tensors.matrix(f"{prefix}self_attn.k_proj", heads.kv_rows, heads.hidden, "kv_heads")
    tensors.matrix(f"{prefix}self_attn.v_proj", heads.kv_rows, heads.hidden, "kv_heads")
    tensors.norm(f"{prefix}self_attn.k_norm", heads.head_dim)


def _streams(b: Block, hidden: int, streams: int, narrow: int) -> None:
    b.add("altup.correct_output_scale", hidden)
    b.matrix("altup.correction_coefs", streams, streams, "replicated", role="other")
    b.matrix("altup.prediction_coefs", streams**2, streams, "replicated", role="other")
    b.matrix("altup.modality_router", streams, hidden, "replicated", role="other")
    b.norm("altup.router_norm", hidden)
    b.matrix("per_layer_input_gate", narrow, hidden, "replicated")
    b.matrix("per_layer_projection", hidden, narrow, "replicated")
    b.norm("post_per_layer_input_norm", hidden)
