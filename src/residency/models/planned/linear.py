"""Models most of whose layers are short convolutions or linear attention, with a few that attend to everything."""

from residency.errors import UnsupportedError
from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    Heads,
    activation_of,
    experts,
    gated_matrices,
    gated_mlp,
    grouped_attention,
    heads_of,
    whole,
)
from residency.models.planned.windows import FULL, layer_kinds
from residency.spec.model import MlpSpec, MoeSpec, RecurrentSpec

LINEAR = "linear_attention"


def lfm2(c: Configuration) -> Draft:
    """LFM2: short convolutions, with attention in some layers; experts in the later layers of some models."""
    heads = heads_of(c)
    hidden, kernel, bias = heads.hidden, c.integer("conv_L_cache", 3), c.flag("conv_bias", False)
    moe, dense_layers = _lfm2_experts(c), c.integer("num_dense_layers", 0, least=0)
    intermediate = _lfm2_intermediate(c) if moe is None else c.integer("intermediate_size")
    for key, expected in (("block_dim", hidden), ("conv_dim", hidden), ("conv_dim_out", hidden), ("num_heads", 0)):
        if c.integer(key, expected or heads.num_heads) != (expected or heads.num_heads):
            raise c.unsupported(key)
    attending = c.integers("full_attn_idxs")
    kinds = layer_kinds(c, by_rule=lambda number: FULL if number in attending else "conv", known=(FULL, "conv"))

    def fill(b: Block, number: int) -> None:
        if kinds[number] == FULL:
            grouped_attention(b, heads, qk_norm=True, out="out_proj", norms=("q_layernorm", "k_layernorm"))
        else:
            recent = RecurrentSpec(
                kind="convolution",
                recent_values=hidden * kernel,
                state_values=0,
                recent_format=b.format,
                state_format=b.format,
            )
            b.mixer = recent
            b.add("conv.conv.weight", hidden, 1, kernel, role="other", split="rows")
            if bias:
                b.add("conv.conv.bias", hidden, role="bias", split="rows")
            b.matrix("conv.in_proj", 3 * hidden, hidden, bias=bias)
            b.matrix("conv.out_proj", hidden, hidden, "columns", bias=bias)
        b.norm("operator_norm", hidden)
        b.norm("ffn_norm", hidden)
        if moe is not None and number >= dense_layers:
            experts(b, hidden, moe, prefix="feed_forward.", names=("w1", "w3", "w2"))
            if c.flag("use_expert_bias", True):
                b.add("feed_forward.expert_bias", moe.num_experts, role="router", format=F32)
            return
        b.mlp = MlpSpec(intermediate=intermediate, activation="silu")
        gated_matrices(b, "feed_forward.", hidden, intermediate, names=("w1", "w3", "w2"))

    return whole(c, blocks(c, fill), norm="model.embedding_norm", tied=c.flag("tie_embedding", True))


def qwen3_next(c: Configuration) -> Draft:
    """Qwen3-Next: gated delta networks, gated attention in every fourth layer, many experts and a shared one."""
    heads = heads_of(c, head_dim=256)
    hidden = heads.hidden
    moe = MoeSpec(
        num_experts=c.integer("num_experts", c.integer("num_local_experts", 0, least=0) or None),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("moe_intermediate_size"),
        activation=activation_of(c),
        shared_intermediate=c.integer("shared_expert_intermediate_size"),
    )
    interval = c.integer("full_attention_interval", 4)
    c.integer("intermediate_size", 1)  # of dense layers, which there are none of
    if c.integer("decoder_sparse_step", 1) != 1 or c.integers("mlp_only_layers"):
        raise UnsupportedError(f"{c.source} asks for dense layers among Qwen3-Next's, which is not known here.")
    kinds = layer_kinds(
        c,
        by_rule=lambda number: "linear_attention" if (number + 1) % interval else FULL,
        known=(FULL, "linear_attention"),
    )

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if kinds[number] == FULL:
            _gated_attention(b, heads)
        else:
            _delta_net(c, b, hidden, joint=True)
        b.norm("post_attention_layernorm", hidden)
        experts(b, hidden, moe, shared="shared_expert")
        b.matrix("mlp.shared_expert_gate", 1, hidden, "replicated", role="router")

    draft = whole(c, blocks(c, fill))
    draft.notes = ("the published checkpoint also holds a layer that predicts one token further; it is not counted",)
    return draft


def qwen3_5(c: Configuration) -> Draft:
    """Qwen3.5: Qwen3-Next with projections of their own, and one feed-forward network or experts."""
    heads = heads_of(c, head_dim=256)
    hidden, interval = heads.hidden, c.integer("full_attention_interval", 4)
    moe = None
    if c.has("num_experts"):
        moe = MoeSpec(
            num_experts=c.integer("num_experts"),
            experts_per_token=c.integer("num_experts_per_tok"),
            intermediate=c.integer("moe_intermediate_size"),
            activation=activation_of(c),
            shared_intermediate=c.integer("shared_expert_intermediate_size"),
        )
    kinds = layer_kinds(c, by_rule=lambda number: LINEAR if (number + 1) % interval else FULL, known=(FULL, LINEAR))
    for key in ("intermediate_size", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "attn_output_gate"):
        c.has(key)  # of dense layers, and of a layer that predicts one token further

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if kinds[number] == FULL:
            _gated_attention(b, heads)
        else:
            _delta_net(c, b, hidden, joint=False)
        b.norm("post_attention_layernorm", hidden)
        if moe is None:
            gated_mlp(b, hidden, c.integer("intermediate_size"), activation_of(c))
            return
        experts(b, hidden, moe, shared="shared_expert")
        b.matrix("mlp.shared_expert_gate", 1, hidden, "replicated", role="router")

    draft = whole(c, blocks(c, fill))
    draft.notes = ("the published checkpoint also holds a layer that predicts one token further; it is not counted",)
    return draft


def olmo_hybrid(c: Configuration) -> Draft:
    """OLMo Hybrid: OLMo 3's attention in every fourth layer, gated delta networks between."""
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    hidden, intermediate, activation = heads.hidden, c.integer("intermediate_size"), activation_of(c)
    kinds = layer_kinds(c, by_rule=lambda number: FULL if number % 4 == 3 else LINEAR, known=(FULL, LINEAR))
    count = c.integer("linear_num_key_heads", heads.num_heads)
    key_dim = c.integer("linear_key_head_dim", max(1, 3 * hidden // (4 * count)))
    value_dim, values = c.integer("linear_value_head_dim", 2 * key_dim), c.integer("linear_num_value_heads", count)
    widths = {"q": count * key_dim, "k": count * key_dim, "v": values * value_dim}

    def fill(b: Block, number: int) -> None:
        if kinds[number] == FULL:
            grouped_attention(b, heads, bias=bias, out_bias=bias, qk_norm=True, whole_norms=True)
            b.norm("post_attention_layernorm", hidden)
            b.norm("post_feedforward_layernorm", hidden)
        else:
            kernel = c.integer("linear_conv_kernel_dim", 4)
            b.norm("attention_layer_norm", hidden)
            b.norm("feedforward_layer_norm", hidden)
            b.mixer = RecurrentSpec(
                kind="delta",
                recent_values=sum(widths.values()) * kernel,
                state_values=values * key_dim * value_dim,
                recent_format=b.format,
                state_format=F32,
            )
            for name, rows in widths.items():
                b.matrix(f"linear_attn.{name}_proj", rows, hidden)
                b.add(f"linear_attn.{name}_conv1d.weight", rows, 1, kernel, split="rows")
            for name, rows in (("a", values), ("b", values), ("g", widths["v"])):
                b.matrix(f"linear_attn.{name}_proj", rows, hidden)
            b.add("linear_attn.A_log", values, split="rows")
            b.add("linear_attn.dt_bias", values, split="rows")
            b.norm("linear_attn.o_norm", value_dim)
            b.matrix("linear_attn.o_proj", hidden, widths["v"], "columns")
        gated_mlp(b, hidden, intermediate, activation)

    for name in ("allow_neg_eigval", "a_log_min", "a_log_max", "dt_min", "dt_max", "dt_init_floor"):
        c.has(f"linear_{name}")
    return whole(c, blocks(c, fill))


def minimax(c: Configuration) -> Draft:
    """MiniMax-01 (arXiv 2501.08313): lightning attention, whose state is a matrix for each head, and experts."""
    heads = heads_of(c)
    hidden, block = heads.hidden, c.integer("block_size", 256)
    moe = MoeSpec(
        num_experts=c.integer("num_local_experts"),
        experts_per_token=c.integer("num_experts_per_tok", 2),
        intermediate=c.integer("intermediate_size"),
        activation=activation_of(c),
    )
    kinds = layer_kinds(c, by_rule=lambda number: LINEAR if (number + 1) % 2 else FULL, known=(FULL, LINEAR))
    for key in ("full_attn_alpha_factor", "full_attn_beta_factor", "linear_attn_alpha_factor"):
        c.has(key)
    for key in ("linear_attn_beta_factor", "mlp_alpha_factor", "mlp_beta_factor", "sliding_window"):
        c.has(key)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if kinds[number] == FULL:
            grouped_attention(b, heads)
        else:
            _lightning_attention(b, heads, block)
        b.norm("post_attention_layernorm", hidden)
        experts(b, hidden, moe, prefix="block_sparse_moe.", names=("w1", "w3", "w2"))

    return whole(c, blocks(c, fill))


def recurrent_gemma(c: Configuration) -> Draft:
    """RecurrentGemma, Griffin (arXiv 2402.19427): gated linear recurrences, in every third layer a window."""
    heads = heads_of(c, num_kv_heads=c.integer("num_key_value_heads", c.integer("num_attention_heads")))
    hidden, width, window = heads.hidden, c.integer("lru_width", heads.hidden), c.integer("attention_window_size", 2048)
    intermediate, bias = c.integer("intermediate_size") // 2, c.flag("attention_bias", False)
    key = "block_types" if c.has("block_types") else "_block_types"  # as it was published
    kernel, turn = (
        c.integer("conv1d_width", 4),
        c.strings(key) if c.has(key) else ["recurrent", "recurrent", "attention"],
    )
    if not turn or not {"recurrent", "attention"} >= set(turn):
        raise c.unsupported(key)

    def fill(b: Block, number: int) -> None:
        b.norm("temporal_pre_norm", hidden)
        if turn[number % len(turn)] == "attention":
            grouped_attention(b, heads, window_tokens=window, bias=bias, out_bias=True, prefix="temporal_block.")
        else:
            _gated_recurrence(b, hidden, width, kernel=kernel, num_heads=heads.num_heads)
        b.norm("channel_pre_norm", hidden)
        gated_mlp(b, hidden, intermediate, "gelu_tanh", prefix="mlp_block.", bias=True)

    c.has("hidden_activation")
    return whole(c, blocks(c, fill), norm="model.final_norm", tied=True)


def _gated_recurrence(b: Block, hidden: int, width: int, *, kernel: int, num_heads: int) -> None:
    """RG-LRU behind a short convolution: `width` numbers of state in float32, gates as a square for each head."""
    b.mixer = RecurrentSpec(
        kind="linear",
        recent_values=width * (kernel - 1),
        state_values=width,
        recent_format=b.format,
        state_format=F32,
    )
    for name in ("linear_y", "linear_x"):
        b.matrix(f"temporal_block.{name}", width, hidden, bias=True)
    b.matrix("temporal_block.linear_out", hidden, width, "columns", bias=True)
    b.add("temporal_block.conv_1d.weight", width, 1, kernel, split="rows")
    b.add("temporal_block.conv_1d.bias", width, role="bias", split="rows")
    b.add("temporal_block.rg_lru.recurrent_param", width, split="rows")
    head = width // num_heads
    for name in ("input_gate", "recurrent_gate"):
        b.add(f"temporal_block.rg_lru.{name}_weight", num_heads, head, head, split="rows")
        b.add(f"temporal_block.rg_lru.{name}_bias", num_heads, head, role="bias", split="rows")


def _lightning_attention(b: Block, heads: Heads, block: int) -> None:
    """Lightning attention (arXiv 2401.04658), with the decays of a block, which the published files hold too."""
    b.mixer = RecurrentSpec(
        kind="linear",
        recent_values=0,
        state_values=heads.num_heads * heads.head_dim**2,
        recent_format=b.format,
        state_format=F32,
    )
    b.matrix("self_attn.qkv_proj", 3 * heads.q_rows, heads.hidden)
    b.matrix("self_attn.output_gate", heads.q_rows, heads.hidden)
    b.matrix("self_attn.out_proj", heads.hidden, heads.q_rows, "columns")
    b.add("self_attn.norm.weight", heads.q_rows, role="norm", split="rows")
    b.add("self_attn.slope_rate", heads.num_heads, 1, 1, split="rows")
    for name in ("query_decay", "key_decay"):
        b.add(f"self_attn.{name}", heads.num_heads, block, 1, split="rows")
    b.add("self_attn.diagonal_decay", 1, heads.num_heads, block, block, split="rows")


def _gated_attention(b: Block, heads: Heads) -> None:
    """Grouped-query attention whose queries come with a gate on what is attended to."""
    b.attention = heads.attention(qk_norm=True)
    b.matrix("self_attn.q_proj", 2 * heads.q_rows, heads.hidden)
    b.matrix("self_attn.k_proj", heads.kv_rows, heads.hidden, "kv_heads")
    b.matrix("self_attn.v_proj", heads.kv_rows, heads.hidden, "kv_heads")
    b.norm("self_attn.q_norm", heads.head_dim)
    b.norm("self_attn.k_norm", heads.head_dim)
    b.matrix("self_attn.o_proj", heads.hidden, heads.q_rows, "columns")


def _delta_net(c: Configuration, b: Block, hidden: int, *, joint: bool) -> None:
    """A gated delta network (arXiv 2412.06464): a matrix of state for each value head; projections `joint` or apart."""
    key_dim, value_dim = c.integer("linear_key_head_dim", 128), c.integer("linear_value_head_dim", 128)
    keys, values = c.integer("linear_num_key_heads", 16), c.integer("linear_num_value_heads", 32)
    kernel = c.integer("linear_conv_kernel_dim", 4)
    convolved = 2 * keys * key_dim + values * value_dim
    b.mixer = RecurrentSpec(
        kind="delta",
        recent_values=convolved * kernel,
        state_values=values * key_dim * value_dim,
        recent_format=b.format,
        state_format=F32,
    )
    b.add("linear_attn.conv1d.weight", convolved, 1, kernel, role="other", split="rows")
    if joint:
        b.matrix("linear_attn.in_proj_qkvz", convolved + values * value_dim, hidden)
        b.matrix("linear_attn.in_proj_ba", 2 * values, hidden)
    else:
        for name, rows in (("qkv", convolved), ("z", values * value_dim), ("a", values), ("b", values)):
            b.matrix(f"linear_attn.in_proj_{name}", rows, hidden)
    b.add("linear_attn.dt_bias", values, role="other", split="rows")
    b.add("linear_attn.A_log", values, role="other", split="rows")
    b.norm("linear_attn.norm", value_dim)
    b.matrix("linear_attn.out_proj", hidden, values * value_dim, "columns")


def _lfm2_experts(c: Configuration) -> MoeSpec | None:
    if not c.has("num_experts"):
        return None
    return MoeSpec(
        num_experts=c.integer("num_experts"),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=c.integer("moe_intermediate_size"),
        activation="silu",
    )


def _lfm2_intermediate(c: Configuration) -> int:
    """LFM2 gives a width that its code shrinks by a third, scales and rounds up."""
    width = c.integer("block_ff_dim", c.integer("intermediate_size", 12288))
    if not c.flag("block_auto_adjust_ff_dim", True):
        return width
    multiple = c.integer("block_multiple_of", 256)
    scaled = int(c.number("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    return -(-scaled // multiple) * multiple
