"""Mixtures of experts with grouped-query attention."""

from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    activation_of,
    experts,
    gated_matrices,
    gated_mlp,
    grouped_attention,
    heads_of,
    layer_numbers,
    stacked_experts,
    whole,
)
from residency.models.planned.windows import FULL, layer_kinds, optional_windows, windows
from residency.spec.model import MoeSpec


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


def phimoe(c: Configuration) -> Draft:
    """Phi-3.5-MoE: Mixtral with layer norms, and biases in attention and head."""
    heads, bias, head_bias = heads_of(c), c.flag("attention_bias", False), c.flag("lm_head_bias", False)
    moe = MoeSpec(
        num_experts=c.integer("num_local_experts", 16),
        experts_per_token=c.integer("num_experts_per_tok", 2),
        intermediate=c.integer("intermediate_size"),
        activation=activation_of(c),
    )
    sliding = windows(c, slides=lambda number: True)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden, bias=True)
        grouped_attention(b, heads, window_tokens=sliding[number], bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", heads.hidden, bias=True)
        experts(b, heads.hidden, moe, prefix="block_sparse_moe.", names=("w1", "w3", "w2"))

    return whole(c, blocks(c, fill), norm_bias=True, head_bias=head_bias)


def minimax_m2(c: Configuration) -> Draft:
    """MiniMax M2: Mixtral's experts with a correction of their choice, norms over all queries and all keys."""
    heads = heads_of(c)
    moe = MoeSpec(
        num_experts=c.integer("num_local_experts"),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("intermediate_size"),
        activation=activation_of(c),
    )
    if c.integer("shared_intermediate_size", 0, least=0) or 0 in c.integers("attn_type_list"):
        raise c.unsupported("shared_intermediate_size" if c.has("shared_intermediate_size") else "attn_type_list")
    for key in ("use_qk_norm", "qk_norm_type", "use_mtp", "num_mtp_modules", "mtp_transformer_layers"):
        c.has(key)  # drafting modules are not in the published files

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, qk_norm=True, whole_norms=True)
        b.norm("post_attention_layernorm", heads.hidden)
        experts(b, heads.hidden, moe, prefix="block_sparse_moe.", names=("w1", "w3", "w2"))
        b.add("block_sparse_moe.e_score_correction_bias", moe.num_experts, role="router", format=F32)

    return whole(c, blocks(c, fill))


def ernie4_5_moe(c: Configuration) -> Draft:
    """ERNIE 4.5's mixtures: shared networks beside the experts, the first layers dense."""
    heads, bias = heads_of(c), c.flag("use_bias", False)
    intermediate, shared = c.integer("moe_intermediate_size"), c.integer("moe_num_shared_experts", 2, least=0)
    moe = MoeSpec(
        num_experts=c.integer("moe_num_experts"),
        experts_per_token=c.integer("moe_k"),
        intermediate=intermediate,
        activation=activation_of(c),
        shared_intermediate=shared * intermediate,
    )
    count, every = c.integer("num_hidden_layers"), c.integer("moe_layer_interval", 1)
    first, last = c.integer("moe_layer_start_index", 1, least=0), c.integer("moe_layer_end_index", count - 1)
    drafts = c.integer("num_nextn_predict_layers", 0, least=0)
    c.has("moe_norm_min")  # of the router's weights

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", heads.hidden)
        if (number + 1) % every or not first <= number <= last:
            gated_mlp(b, heads.hidden, c.integer("intermediate_size"), moe.activation, bias=bias)
            return
        experts(b, heads.hidden, moe, shared="shared_experts")
        b.add("mlp.moe_statics.e_score_correction_bias", 1, moe.num_experts, role="router", format=F32)

    draft = whole(c, blocks(c, fill), tied=True)
    if drafts:
        draft.notes = ("the published checkpoint also holds layers that predict tokens further; they are not counted",)
    return draft


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
    return _olmoe(c, norms=("input_layernorm", "post_attention_layernorm"), num_experts=64)


def flex_olmo(c: Configuration) -> Draft:
    """FlexOlmo: OLMoE with norms after attention and after the experts."""
    return _olmoe(c, norms=("post_attention_layernorm", "post_feedforward_layernorm"), num_experts=7)


def dbrx(c: Configuration) -> Draft:
    """DBRX: layer norms without biases, queries, keys and values in one matrix, experts in stacks."""
    hidden = c.integer("d_model")
    count, num_heads = c.integer("n_layers"), c.integer("n_heads")
    c = c.with_defaults(hidden_size=hidden, num_hidden_layers=count, num_attention_heads=num_heads)
    attention, network = c.section("attn_config"), c.section("ffn_config")
    heads = heads_of(c, num_kv_heads=attention.integer("kv_n_heads", 1))
    c.has("num_key_value_heads")  # said again by newer versions
    moe = MoeSpec(
        num_experts=network.integer("moe_num_experts", 4),
        experts_per_token=network.integer("moe_top_k", 1),
        intermediate=network.integer("ffn_hidden_size", 3584),
        activation=activation_of(network.section("ffn_act_fn"), "name"),
    )

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("norm_attn_norm.norm_1", hidden)
        b.matrix("norm_attn_norm.attn.Wqkv", heads.q_rows + 2 * heads.kv_rows, hidden)
        b.matrix("norm_attn_norm.attn.out_proj", hidden, heads.q_rows, "columns")
        b.norm("norm_attn_norm.norm_2", hidden)
        b.mlp = moe
        b.matrix("ffn.router.layer", moe.num_experts, hidden, "replicated", role="router")
        for name in ("w1", "v1", "w2"):
            rows = moe.num_experts * moe.intermediate
            b.add(f"ffn.experts.mlp.{name}", rows, hidden, role="expert", split="rows")

    layers = blocks(c, fill, prefix="transformer.blocks.")
    return whole(c, layers, embedding="transformer.wte", norm="transformer.norm_f")


def hunyuan_v1_moe(c: Configuration) -> Draft:
    """Hunyuan-A13B: norms on the heads of queries and keys, and a network beside the experts."""
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    intermediate = _same_in_all_layers(c, "intermediate_size", c.integer("intermediate_size"))
    each = _same_in_all_layers(c, "moe_intermediate_size", intermediate)
    moe = MoeSpec(
        num_experts=c.integer("num_experts"),
        experts_per_token=_same_in_all_layers(c, "moe_topk", 1),
        intermediate=each,
        activation=activation_of(c),
        shared_intermediate=each * _same_in_all_layers(c, "num_shared_expert", 1),
    )
    if not c.flag("use_mixed_mlp_moe", True) or c.flag("use_cla", False) or c.flag("use_mla", False):
        raise c.unsupported("use_mixed_mlp_moe")
    qk_norm = c.flag("use_qk_norm", True)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        names = ("query_layernorm", "key_layernorm")
        grouped_attention(b, heads, bias=bias, out_bias=bias, qk_norm=qk_norm, norms=names)
        b.norm("post_attention_layernorm", heads.hidden)
        experts(b, heads.hidden, moe, router="gate.wg", shared="shared_mlp")

    return whole(c, blocks(c, fill))


def _same_in_all_layers(c: Configuration, key: str, default: int) -> int:
    """A number that may be written as a list of one for each layer. UnsupportedError if these differ."""
    if not c.is_list(key):
        return c.integer(key, default)
    values = set(c.integers(key))
    if len(values) != 1:
        raise c.unsupported(key)
    return values.pop()


def granitemoe(c: Configuration) -> Draft:
    """Granite's mixtures: the experts of a layer in two stacks of matrices; a shared network beside them in some."""
    shared = c.integer("shared_intermediate_size", 0, least=0) if c.architecture == "granitemoeshared" else 0
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    hidden, intermediate, count = heads.hidden, c.integer("intermediate_size"), c.integer("num_local_experts")
    moe = MoeSpec(
        num_experts=count,
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=intermediate,
        activation=activation_of(c),
        shared_intermediate=shared,
    )

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", hidden)
        b.mlp = moe
        stacked_experts(b, hidden, intermediate, count)
        if shared:
            b.matrix("shared_mlp.input_linear", 2 * shared, hidden)
            b.matrix("shared_mlp.output_linear", hidden, shared, "columns")

    return whole(c, blocks(c, fill))


def _qwen_moe(c: Configuration, *, shared: int, bias: bool, qk_norm: bool = False) -> Draft:
    heads = heads_of(c, head_dim=128 if qk_norm else None)
    moe = MoeSpec(
        num_experts=c.integer("num_experts", c.integer("num_local_experts", 0, least=0) or None),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("moe_intermediate_size"),
        activation=activation_of(c),
        shared_intermediate=shared,
        renormalized=c.flag("norm_topk_prob", False),
    )
    dense_intermediate, step = c.integer("intermediate_size"), c.integer("decoder_sparse_step", 1)
    dense_layers = set(c.integers("mlp_only_layers"))
    sliding, is_stacked = optional_windows(c), c.architecture == "qwen3_vl_moe_text"

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(
            b, heads, window_tokens=sliding[number], bias=bias, out_bias=bias and qk_norm, qk_norm=qk_norm
        )
        b.norm("post_attention_layernorm", heads.hidden)
        if number in dense_layers or (number + 1) % step:
            gated_mlp(b, heads.hidden, dense_intermediate, moe.activation)
            return
        if is_stacked:
            b.mlp = moe
            b.matrix("mlp.gate", moe.num_experts, heads.hidden, "replicated", role="router")
            gate_up = (moe.num_experts, 2 * moe.intermediate, heads.hidden)
            b.add("mlp.experts.gate_up_proj", *gate_up, role="expert", split="rows")
            down = (moe.num_experts, heads.hidden, moe.intermediate)
            b.add("mlp.experts.down_proj", *down, role="expert", split="columns")
            return
        experts(b, heads.hidden, moe, shared="shared_expert")
        if shared:
            b.matrix("mlp.shared_expert_gate", 1, heads.hidden, "replicated", role="router")

    return whole(c, blocks(c, fill))


def _olmoe(c: Configuration, *, norms: tuple[str, str], num_experts: int) -> Draft:
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    moe = MoeSpec(
        num_experts=c.integer("num_experts", c.integer("num_local_experts", num_experts)),
        experts_per_token=c.integer("num_experts_per_tok", 8),
        intermediate=c.integer("intermediate_size"),
        activation=activation_of(c),
    )

    def fill(b: Block, number: int) -> None:
        for name in norms:
            b.norm(name, heads.hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias, qk_norm=True, whole_norms=True)
        experts(b, heads.hidden, moe)

    return whole(c, blocks(c, fill))
