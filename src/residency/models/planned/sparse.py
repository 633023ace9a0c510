"""Mixtures of experts, with grouped-query attention or with multi-head latent attention."""

from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.dense import Fill, blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    Tensors,
    activation_of,
    experts,
    gated_matrices,
    gated_mlp,
    grouped_attention,
    heads_of,
    layer_numbers,
    number_format,
    stacked_experts,
    whole,
)
from residency.models.planned.windows import FULL, layer_kinds, optional_windows, windows
from residency.spec.model import LatentAttentionSpec, MoeSpec, TensorSpec


def mixtral(c: Configuration) -> Draft:
    """Mixtral: Mistral whose feed-forward network is a choice of experts in every layer."""
    heads = heads_of(c)
    moe = MoeSpec(
        num_experts=c.integer("num_local_experts"),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("intermediate_size"),
        activation=activation_of(c),
    )
    sliding = windows(c, slides=lambda number: True)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, window_tokens=sliding[number])
        b.norm("post_attention_layernorm", heads.hidden)
        experts(b, heads.hidden, moe, prefix="block_sparse_moe.", names=("w1", "w3", "w2"))

    return whole(c, blocks(c, fill))


def qwen2_moe(c: Configuration) -> Draft:
    """Qwen1.5-MoE and Qwen2-57B-A14B: a shared network beside the experts, with a gate of its own."""
    return _qwen_moe(c, shared=c.integer("shared_expert_intermediate_size"), bias=c.flag("qkv_bias", True))


def qwen3_moe(c: Configuration) -> Draft:
    """Qwen3's mixtures: norms on the heads of queries and keys, no shared network."""
    return _qwen_moe(c, shared=0, bias=c.flag("attention_bias", False), qk_norm=True)


def gpt_oss(c: Configuration) -> Draft:
    """gpt-oss: biases everywhere, a learned sink for each head, every other layer slides."""
    heads, bias = heads_of(c), c.flag("attention_bias", True)
    hidden, intermediate = heads.hidden, c.integer("intermediate_size")
    count = c.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=count,
        experts_per_token=c.integer("num_experts_per_tok", c.integer("experts_per_token", 4)),
        intermediate=intermediate,
        activation="silu",
    )
    sliding = windows(c, slides=lambda number: number % 2 == 0, default_tokens=128)
    as_blocks = c.has("quantization_config")  # MXFP4 keeps the rows of the product outermost

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        grouped_attention(b, heads, window_tokens=sliding[number], bias=bias, out_bias=bias)
        b.add("self_attn.sinks", heads.num_heads, split="rows")
        b.norm("post_attention_layernorm", hidden)
        b.mlp = moe
        b.matrix("mlp.router", count, hidden, "replicated", bias=True, role="router")
        for name, rows, columns in (("gate_up", 2 * intermediate, hidden), ("down", hidden, intermediate)):
            shape = (rows, columns) if as_blocks else (columns, rows)
            b.add(f"mlp.experts.{name}_proj", count, *shape, role="expert", split="rows")
            b.add(f"mlp.experts.{name}_proj_bias", count, rows, role="expert", split="rows")

    return whole(c, blocks(c, fill))


def deepseek(c: Configuration) -> Draft:
    """DeepSeek-V2, V3, R1 and Kimi K2: multi-head latent attention, a shared network beside many experts."""
    hidden = c.integer("hidden_size")
    attention = _latent(c)
    for implied in ("num_key_value_heads", "qk_head_dim"):  # the cache holds none of these heads
        c.integer(implied, 1)
    moe = _routed_and_shared(c)
    dense_intermediate = c.integer("intermediate_size")
    first, every = c.integer("first_k_dense_replace", 0, least=0), c.integer("moe_layer_freq", 1)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        _latent_attention(b, hidden, attention, bias=c.flag("attention_bias", False))
        b.norm("post_attention_layernorm", hidden)
        if number < first or number % every:
            gated_mlp(b, hidden, dense_intermediate, moe.activation)
        else:
            experts(b, hidden, moe, shared="shared_experts")
            if c.text("topk_method", "") == "noaux_tc" or c.architecture == "deepseek_v3":
                b.add("mlp.gate.e_score_correction_bias", moe.num_experts, role="router", format=F32)

    return _with_next_token_layer(c, fill)


def glm4_moe(c: Configuration) -> Draft:
    """GLM-4.5: grouped-query attention with DeepSeek-V3's experts."""
    heads, bias = heads_of(c, head_dim=128), c.flag("attention_bias", False)
    moe = _routed_and_shared(c)
    first, qk_norm = c.integer("first_k_dense_replace", 1, least=0), c.flag("use_qk_norm", False)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, bias=bias, qk_norm=qk_norm)
        b.norm("post_attention_layernorm", heads.hidden)
        if number < first:
            gated_mlp(b, heads.hidden, c.integer("intermediate_size"), moe.activation)
        else:
            experts(b, heads.hidden, moe, shared="shared_experts")
            b.add("mlp.gate.e_score_correction_bias", moe.num_experts, role="router", format=F32)

    return _with_next_token_layer(c, fill)


def llama4(c: Configuration) -> Draft:
    """Llama 4's text model: three of four layers attend to chunks; experts in every, or every other, layer."""
    heads, bias = heads_of(c, head_dim=128), c.flag("attention_bias", False)
    hidden, intermediate = heads.hidden, c.integer("intermediate_size")
    count, step = c.integer("num_local_experts"), c.integer("interleave_moe_layer_step", 1)
    moe = MoeSpec(
        num_experts=count,
        experts_per_token=c.integer("num_experts_per_tok", 1),
        intermediate=intermediate,
        activation=activation_of(c),
        shared_intermediate=intermediate,
    )
    routed = c.integers("moe_layers") or range(step - 1, c.integer("num_hidden_layers"), step)
    chunked = "chunked_attention"
    by_rule = c.integers("no_rope_layers") or [int((number + 1) % 4 != 0) for number in layer_numbers(c)]
    kinds = layer_kinds(c, by_rule=lambda number: chunked if by_rule[number] else FULL, known=(FULL, chunked))
    chunk = c.integer("attention_chunk_size", 8192)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        grouped_attention(b, heads, window_tokens=chunk if kinds[number] == chunked else None, bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", hidden)
        if number not in routed:
            gated_mlp(b, hidden, c.integer("intermediate_size_mlp"), moe.activation, prefix="feed_forward.")
            return
        b.mlp = moe
        b.matrix("feed_forward.router", count, hidden, "replicated", role="router")
        b.add("feed_forward.experts.gate_up_proj", count, hidden, 2 * intermediate, role="expert", split="rows")
        b.add("feed_forward.experts.down_proj", count, intermediate, hidden, role="expert", split="columns")
        gated_matrices(b, "feed_forward.shared_expert.", hidden, intermediate)

    c.integer("intermediate_size_mlp", intermediate)
    c.flag("use_qk_norm", True)  # a norm without weights
    return whole(c, blocks(c, fill))


def olmoe(c: Configuration) -> Draft:
    """OLMoE: many small experts, norms over all queries and all keys."""
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    moe = MoeSpec(
        num_experts=c.integer("num_experts", c.integer("num_local_experts", 64)),
        experts_per_token=c.integer("num_experts_per_tok", 8),
        intermediate=c.integer("intermediate_size"),
        activation=activation_of(c),
    )

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias, qk_norm=True, whole_norms=True)
        b.norm("post_attention_layernorm", heads.hidden)
        experts(b, heads.hidden, moe)

    return whole(c, blocks(c, fill))


def granitemoe(c: Configuration) -> Draft:
    """Granite's mixtures: the experts of a layer in two stacks of matrices."""
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    hidden, intermediate, count = heads.hidden, c.integer("intermediate_size"), c.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=count,
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=intermediate,
        activation=activation_of(c),
    )

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", hidden)
        b.mlp = moe
        stacked_experts(b, hidden, intermediate, count)

    return whole(c, blocks(c, fill))


def _qwen_moe(c: Configuration, *, shared: int, bias: bool, qk_norm: bool = False) -> Draft:
    heads = heads_of(c, head_dim=128 if qk_norm else None)
    moe = MoeSpec(
        num_experts=c.integer("num_experts", c.integer("num_local_experts", 0, least=0) or None),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("moe_intermediate_size"),
        activation=activation_of(c),
        shared_intermediate=shared,
    )
    dense_intermediate, step = c.integer("intermediate_size"), c.integer("decoder_sparse_step", 1)
    dense_layers = set(c.integers("mlp_only_layers"))
    sliding = optional_windows(c)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(
            b, heads, window_tokens=sliding[number], bias=bias, out_bias=bias and qk_norm, qk_norm=qk_norm
        )
        b.norm("post_attention_layernorm", heads.hidden)
        if number in dense_layers or (number + 1) % step:
            gated_mlp(b, heads.hidden, dense_intermediate, moe.activation)
            return
        experts(b, heads.hidden, moe, shared="shared_expert")
        if shared:
            b.matrix("mlp.shared_expert_gate", 1, heads.hidden, "replicated", role="router")

    return whole(c, blocks(c, fill))


def _latent(c: Configuration) -> LatentAttentionSpec:
    return LatentAttentionSpec(
        num_heads=c.integer("num_attention_heads"),
        kv_rank=c.integer("kv_lora_rank"),
        rope_dim=c.integer("qk_rope_head_dim"),
        nope_dim=c.integer("qk_nope_head_dim"),
        value_dim=c.integer("v_head_dim"),
        query_rank=c.integer("q_lora_rank") if c.has("q_lora_rank") else None,
    )


def _latent_attention(b: Block, hidden: int, spec: LatentAttentionSpec, *, bias: bool) -> None:
    """Down-projections to the latent vectors are held by every rank; each rank has its heads' up-projections."""
    b.attention = spec
    q_rows = spec.num_heads * (spec.nope_dim + spec.rope_dim)
    if spec.query_rank is None:
        b.matrix("self_attn.q_proj", q_rows, hidden)
    else:
        b.matrix("self_attn.q_a_proj", spec.query_rank, hidden, "replicated", bias=bias)
        b.norm("self_attn.q_a_layernorm", spec.query_rank)
        b.matrix("self_attn.q_b_proj", q_rows, spec.query_rank)
    b.matrix("self_attn.kv_a_proj_with_mqa", spec.kv_rank + spec.rope_dim, hidden, "replicated", bias=bias)
    b.norm("self_attn.kv_a_layernorm", spec.kv_rank)
    b.matrix("self_attn.kv_b_proj", spec.num_heads * (spec.nope_dim + spec.value_dim), spec.kv_rank)
    b.matrix("self_attn.o_proj", hidden, spec.num_heads * spec.value_dim, "columns", bias=bias)


def _routed_and_shared(c: Configuration) -> MoeSpec:
    """DeepSeek's experts: those that tokens are sent to, and those that every token meets."""
    return MoeSpec(
        num_experts=c.integer("n_routed_experts"),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("moe_intermediate_size"),
        activation=activation_of(c),
        shared_intermediate=c.integer("n_shared_experts", 0, least=0) * c.integer("moe_intermediate_size"),
    )


def _with_next_token_layer(c: Configuration, fill: Fill) -> Draft:
    """The whole model, and beside it the layer that a checkpoint may have to draft with."""
    layers = blocks(c, fill)
    draft = whole(c, layers)
    if c.integer("num_nextn_predict_layers", 0, least=0):
        draft.unused = _next_token_layer(c, fill, len(layers))
        draft.notes = ("the checkpoint's layer that predicts one token further is not loaded unless it drafts",)
    return draft


def _next_token_layer(c: Configuration, fill: Fill, number: int) -> tuple[TensorSpec, ...]:
    """DeepSeek-V3's multi-token prediction: one more layer, with an embedding and a head of its own."""
    hidden, vocabulary = c.integer("hidden_size"), c.integer("vocab_size")
    b = Block(prefix=f"model.layers.{number}.", format=number_format(c))
    fill(b, number)
    around = Tensors(prefix=b.prefix, format=b.format)
    around.norm("enorm", hidden)
    around.norm("hnorm", hidden)
    around.add("eh_proj.weight", hidden, 2 * hidden, role="other")
    around.add("embed_tokens.weight", vocabulary, hidden, role="embedding")
    around.norm("shared_head.norm", hidden)
    around.add("shared_head.head.weight", vocabulary, hidden, role="head")
    return (*b.found, *around.found)
