"""Sparse models whose attention is latent, windowed or linear by turns: LongCat-Flash, MiMo-V2-Flash, Kimi Linear."""

from dataclasses import replace

from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.deepseek import dense_layers, latent_attention, latent_of, routed_and_shared
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    activation_of,
    experts,
    gated_matrices,
    gated_mlp,
    heads_of,
    layer_numbers,
    number_format,
    whole,
)
from residency.models.planned.windows import FULL, SLIDING, layer_kinds
from residency.spec.model import MoeSpec, RecurrentSpec

LINEAR = "linear_attention"
DRAFTING = ("the published checkpoint also holds layers that predict tokens further; they are not counted",)


def longcat_flash(c: Configuration) -> Draft:
    """LongCat-Flash (arXiv 2509.01322): each layer is two of latent attention and of a network, with experts beside the
    first. Some experts do nothing, so a token meets fewer than it is sent to: as many as there would be by chance.
    """
    hidden, attention, activation = c.integer("hidden_size"), latent_of(c), activation_of(c)
    intermediate, each = c.integer("ffn_hidden_size"), c.integer("expert_ffn_hidden_size")
    count, idle, sent = c.integer("n_routed_experts"), c.integer("zero_expert_num", 0, least=0), c.integer("moe_topk")
    moe = MoeSpec(
        num_experts=count,
        experts_per_token=max(1, round(sent * count / (count + idle))),
        intermediate=each,
        activation=activation,
        shared_intermediate=intermediate,
    )
    for said_again in ("num_key_value_heads", "num_hidden_layers", "qk_head_dim", "head_dim", "zero_expert_type"):
        c.has(said_again)
    for factor in ("mla_scale_q_lora", "mla_scale_kv_lora", "attention_method"):
        c.has(factor)
    if c.flag("router_bias", False):
        raise c.unsupported("router_bias")
    made = []
    for number in layer_numbers(c, "num_layers"):
        for half in (0, 1):
            b = Block(prefix=f"model.layers.{number}.", format=number_format(c))
            b.norm(f"input_layernorm.{half}", hidden)
            bias = c.flag("attention_bias", False)
            latent_attention(b, hidden, attention, bias=bias, prefix=f"self_attn.{half}.")
            b.norm(f"post_attention_layernorm.{half}", hidden)
            gated_mlp(b, hidden, intermediate, activation, prefix=f"mlps.{half}.")
            if half == 0:
                experts(b, hidden, moe, router="router.classifier")
                router = b.found.pop(next(i for i, t in enumerate(b.found) if t.role == "router"))
                b.found.append(replace(router, shape=(count + idle, hidden)))
                b.add("mlp.router.e_score_correction_bias", count + idle, role="router", format=F32)
            made.append(b)
    return whole(c, made, notes=DRAFTING)


def mimo_v2_flash(c: Configuration) -> Draft:
    """MiMo-V2-Flash (arXiv 2601.02780): windows with twice the key-value heads and learned sinks in five of six layers,
    values narrower than keys, DeepSeek-V3's experts.
    """
    heads, value_dim, bias = heads_of(c, head_dim=192), c.integer("v_head_dim", 128), c.flag("attention_bias", False)
    narrow = c.integer("swa_num_key_value_heads", 2 * heads.num_kv_heads)
    for key, expected in (
        ("swa_num_attention_heads", heads.num_heads),
        ("swa_head_dim", heads.head_dim),
        ("swa_v_head_dim", value_dim),
        ("n_shared_experts", 0),
    ):
        if c.integer(key, expected, least=0) != expected:
            raise c.unsupported(key)
    if not c.flag("add_swa_attention_sink_bias", True) or c.flag("add_full_attention_sink_bias", False):
        raise c.unsupported("add_full_attention_sink_bias")
    window = c.integer("sliding_window_size", c.integer("sliding_window", 128))
    pattern = c.integers("hybrid_layer_pattern") or [int(n > 0 and (n + 1) % 6 > 0) for n in layer_numbers(c)]
    kinds = layer_kinds(c, by_rule=lambda number: SLIDING if pattern[number] else FULL, known=(FULL, SLIDING))
    sparse = c.integers("moe_layer_freq") if c.is_list("moe_layer_freq") else None
    is_dense = [not each for each in sparse] if sparse else dense_layers(c, first=1)
    moe, intermediate = routed_and_shared(c), c.integer("intermediate_size")
    for said_again in ("sliding_window", "attention_chunk_size", "attention_value_scale", "hybrid_block_size"):
        c.has(said_again)

    def fill(b: Block, number: int) -> None:
        slides = kinds[number] == SLIDING
        shape = replace(heads, num_kv_heads=narrow) if slides else heads
        spec = shape.attention(window if slides else None, bias=bias)
        b.attention = replace(spec, value_dim=value_dim)
        b.norm("input_layernorm", heads.hidden)
        b.matrix("self_attn.q_proj", heads.q_rows, heads.hidden, bias=bias)
        b.matrix("self_attn.k_proj", shape.kv_rows, heads.hidden, "kv_heads", bias=bias)
        b.matrix("self_attn.v_proj", shape.num_kv_heads * value_dim, heads.hidden, "kv_heads", bias=bias)
        b.matrix("self_attn.o_proj", heads.hidden, heads.num_heads * value_dim, "columns")
        if slides:
            b.add("self_attn.attention_sink_bias", heads.num_heads, split="rows")
        b.norm("post_attention_layernorm", heads.hidden)
        if is_dense[number]:
            gated_mlp(b, heads.hidden, intermediate, moe.activation)
        else:
            experts(b, heads.hidden, moe)
            b.add("mlp.gate.e_score_correction_bias", moe.num_experts, role="router", format=F32)

    return whole(c, blocks(c, fill), notes=DRAFTING)


def kimi_linear(c: Configuration) -> Draft:
    """Kimi Linear (arXiv 2510.26692): delta attention whose decay is a channel's own, in every fourth layer latent
    attention without rotations, DeepSeek-V3's experts.
    """
    linear = c.section("linear_attn_config")
    count, shared = c.integer("num_experts"), c.integer("num_shared_experts", 1, least=0)
    chosen = c.integer("num_experts_per_token", c.integer("num_experts_per_tok", 8))
    c = c.with_changes(n_routed_experts=count, n_shared_experts=shared, num_experts_per_tok=chosen)
    hidden, attention, moe = c.integer("hidden_size"), latent_of(c), routed_and_shared(c)
    attending = linear.integers("full_attn_layers")  # counted from 1
    linear.has("kda_layers")
    by_rule = [number + 1 in attending if attending else (number + 1) % 4 == 0 for number in layer_numbers(c)]
    kinds = layer_kinds(c, by_rule=lambda number: FULL if by_rule[number] else LINEAR, known=(FULL, LINEAR))
    is_dense, intermediate = dense_layers(c, first=1), c.integer("intermediate_size")
    for said_again in ("num_key_value_heads", "moe_renormalize", "mla_use_nope", "qk_head_dim"):
        c.has(said_again)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if kinds[number] == FULL:
            latent_attention(b, hidden, attention, bias=c.flag("attention_bias", False))
        else:
            _delta_attention(c, linear, b, hidden)
        b.norm("post_attention_layernorm", hidden)
        if is_dense[number]:
            gated_mlp(b, hidden, intermediate, moe.activation)
            return
        experts(b, hidden, moe, prefix="block_sparse_moe.", names=("w1", "w3", "w2"))
        gated_matrices(b, "block_sparse_moe.shared_experts.", hidden, moe.shared_intermediate)
        b.add("block_sparse_moe.gate.e_score_correction_bias", moe.num_experts, role="router", format=F32)

    return whole(c, blocks(c, fill))


def _delta_attention(c: Configuration, linear: Configuration, b: Block, hidden: int) -> None:
    """A matrix of state for each head, convolutions of queries, keys and values, two gates through a narrow middle."""
    heads = linear.integer("num_heads", c.integer("linear_num_heads", 32))
    width = linear.integer("head_dim", c.integer("linear_head_dim", 128))
    kernel = linear.integer("short_conv_kernel_size", c.integer("linear_conv_kernel_dim", 4))
    rows = heads * width
    b.mixer = RecurrentSpec(
        kind="delta",
        recent_values=3 * rows * kernel,
        state_values=heads * width**2,
        recent_format=b.format,
        state_format=F32,
    )
    for name in "qkv":
        b.matrix(f"self_attn.{name}_proj", rows, hidden)
        b.add(f"self_attn.{name}_conv1d.weight", rows, 1, kernel, split="rows")
    for name in "fg":
        b.matrix(f"self_attn.{name}_a_proj", width, hidden, "replicated")
        b.matrix(f"self_attn.{name}_b_proj", rows, width)
    b.matrix("self_attn.b_proj", heads, hidden)
    b.add("self_attn.A_log", 1, 1, heads, 1, split="rows", format=F32)
    b.add("self_attn.dt_bias", rows, split="rows", format=F32)
    b.norm("self_attn.o_norm", width)
    b.matrix("self_attn.o_proj", hidden, rows, "columns")
