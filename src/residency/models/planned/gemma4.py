"""Gemma 4's text model: layers that see everything have wider heads, the last layers read keys and values of earlier
ones, each layer has its own embeddings in the small models, and experts stand beside the network in one.
"""

from dataclasses import replace

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
from residency.models.planned.windows import FULL, SLIDING, layer_kinds, windows
from residency.spec.model import MoeSpec


def gemma4(c: Configuration) -> Draft:
    """The text model; its checkpoints also hold towers for images and sound, which are not counted."""
    numbers, hidden = layer_numbers(c), c.integer("hidden_size")
    heads, narrow = heads_of(c, head_dim=256), c.integer("hidden_size_per_layer_input", 256, least=0)
    kinds = layer_kinds(c, by_rule=lambda number: SLIDING if (number + 1) % 6 else FULL, known=(SLIDING, FULL))
    slides = [kind == SLIDING for kind in kinds]
    sliding = windows(c, slides=slides.__getitem__, default_tokens=512)
    first_shared = len(numbers) - c.integer("num_kv_shared_layers", 0, least=0)
    keys_are_values = c.flag("attention_k_eq_v", False)
    activation = activation_of(c, "hidden_activation", "gelu_pytorch_tanh")
    widened = 2 if c.flag("use_double_wide_mlp", False) else 1
    moe = _experts(c)
    for quiet in ("attention_bias", "vocab_size_per_layer_input", "global_head_dim", "num_global_key_value_heads"):
        c.has(quiet)

    def fill(b: Block, number: int) -> None:
        shares = number >= first_shared
        b.norm("input_layernorm", hidden)
        own = _heads(c, heads, number, slides[number])
        _attention(b, own, sliding[number], shares=shares, has_values=slides[number] or not keys_are_values)
        b.norm("post_attention_layernorm", hidden)
        b.norm("pre_feedforward_layernorm", hidden)
        gated_mlp(b, hidden, (widened if shares else 1) * c.integer("intermediate_size"), activation)
        if moe is not None:
            _beside_experts(b, hidden, replace(moe, shared_intermediate=c.integer("intermediate_size")))
        b.norm("post_feedforward_layernorm", hidden)
        if narrow:
            b.matrix("per_layer_input_gate", narrow, hidden, "replicated")
            b.matrix("per_layer_projection", hidden, narrow, "replicated")
            b.norm("post_per_layer_input_norm", hidden)
        b.add("layer_scalar", 1)

    layers = blocks(c, fill)
    around = Tensors(prefix="model.", format=number_format(c))
    if narrow:
        width = len(numbers) * narrow
        rows = c.integer("vocab_size_per_layer_input", 262144)
        around.add("embed_tokens_per_layer.weight", rows, width, role="embedding", split="vocabulary")
        around.matrix("per_layer_model_projection", width, hidden, "replicated")
        around.norm("per_layer_projection_norm", narrow)
    notes = ("the towers that Gemma 4's checkpoints hold for images and sound are not counted",)
    return whole(c, layers, tied=True, extra=around.found, notes=notes)


def _experts(c: Configuration) -> MoeSpec | None:
    keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not c.flag("enable_moe_block", False):
        for key in keys:
            c.has(key)
        return None
    count, per_token, intermediate = (c.integer(key) for key in keys)
    activation = activation_of(c, "hidden_activation", "gelu_pytorch_tanh")
    return MoeSpec(num_experts=count, experts_per_token=per_token, intermediate=intermediate, activation=activation)


def _heads(c: Configuration, heads: Heads, number: int, slides: bool) -> Heads:
    """A layer's own heads: as per_layer_config says, or for a layer that sees everything as the global keys do."""
    own = c.section("per_layer_config").section(str(number))
    head_dim, kv_heads = heads.head_dim, heads.num_kv_heads
    if not slides:
        head_dim = c.integer("global_head_dim", head_dim if c.has("per_layer_config") else 512)
        kv_heads = c.integer("num_global_key_value_heads", kv_heads)
    return replace(
        heads, head_dim=own.integer("head_dim", head_dim), num_kv_heads=own.integer("num_key_value_heads", kv_heads)
    )


def _attention(b: Block, heads: Heads, window_tokens: int | None, *, shares: bool, has_values: bool) -> None:
    """Values may be made of the same product as keys; both are cached, as only keys are rotated."""
    b.attention = heads.attention(window_tokens, qk_norm=True, shares_kv=shares)
    b.matrix("self_attn.q_proj", heads.q_rows, heads.hidden)
    b.norm("self_attn.q_norm", heads.head_dim)
    if not shares:
        b.matrix("self_attn.k_proj", heads.kv_rows, heads.hidden, "kv_heads")
        b.norm("self_attn.k_norm", heads.head_dim)
        if has_values:
            b.matrix("self_attn.v_proj", heads.kv_rows, heads.hidden, "kv_heads")
    b.matrix("self_attn.o_proj", heads.hidden, heads.q_rows, "columns")


def _beside_experts(b: Block, hidden: int, moe: MoeSpec) -> None:
    b.mlp = moe
    count, intermediate = moe.num_experts, moe.intermediate
    b.matrix("router.proj", count, hidden, "replicated", role="router")
    b.add("router.per_expert_scale", count, role="router")
    b.add("router.scale", hidden, role="router")
    b.add("experts.gate_up_proj", count, 2 * intermediate, hidden, role="expert", split="rows")
    b.add("experts.down_proj", count, hidden, intermediate, role="expert", split="columns")
    for name in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"):
        b.norm(name, hidden)
