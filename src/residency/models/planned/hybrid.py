"""Models some of whose layers attend and some of whose layers remember in a state of fixed size."""

from residency.errors import UnsupportedError
from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    activation_of,
    experts,
    gated_mlp,
    grouped_attention,
    heads_of,
    plain_mlp,
    stacked_experts,
    whole,
)
from residency.models.planned.recurrent import mamba2_mixer, mamba_mixer
from residency.models.planned.windows import FULL, layer_kinds
from residency.spec.model import MlpSpec, MoeSpec, RecurrentSpec


def jamba(c: Configuration) -> Draft:
    """Jamba (arXiv 2403.19887): an attention layer among eight, experts in every other layer."""
    if not c.flag("mamba_inner_layernorms", True):
        raise c.unsupported("mamba_inner_layernorms")
    heads = heads_of(c)
    hidden, intermediate = heads.hidden, c.integer("intermediate_size")
    moe = MoeSpec(
        num_experts=c.integer("num_experts", 16),
        experts_per_token=c.integer("num_experts_per_tok", 2),
        intermediate=intermediate,
        activation=activation_of(c),
    )
    attends = c.integer("attn_layer_period", 8), c.integer("attn_layer_offset", 4, least=0)
    routes = c.integer("expert_layer_period", 2), c.integer("expert_layer_offset", 1, least=0)
    auto = -(-hidden // 16)
    rank = auto if c.says("mamba_dt_rank", "auto") else c.integer("mamba_dt_rank", auto)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if number % attends[0] == attends[1]:
            grouped_attention(b, heads)
        else:
            mamba_mixer(
                b,
                hidden,
                c.integer("mamba_expand", 2) * hidden,
                state=c.integer("mamba_d_state", 16),
                kernel=c.integer("mamba_d_conv", 4),
                rank=rank,
                bias=c.flag("mamba_proj_bias", False),
                conv_bias=c.flag("mamba_conv_bias", True),
                prefix="mamba.",
                normed=True,
            )
        b.norm("pre_ff_layernorm", hidden)
        if moe.num_experts > 1 and number % routes[0] == routes[1]:
            experts(b, hidden, moe, prefix="feed_forward.", router="router")
        else:
            gated_mlp(b, hidden, intermediate, moe.activation, prefix="feed_forward.")

    return whole(c, blocks(c, fill), norm="model.final_layernorm")


def bamba(c: Configuration) -> Draft:
    """Bamba: Mamba 2, with attention in the layers of attn_layer_indices."""
    heads, attending = heads_of(c), set(c.integers("attn_layer_indices"))
    hidden, intermediate = heads.hidden, c.integer("intermediate_size")
    mamba_heads = c.integer("mamba_n_heads", 128)
    head_dim = _mamba_head_dim(c, c.integer("mamba_expand", 2) * hidden, mamba_heads)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if number in attending:
            grouped_attention(b, heads, bias=c.flag("attention_bias", False), out_bias=c.flag("attention_bias", False))
        else:
            _mamba2(c, b, hidden, heads=mamba_heads, head_dim=head_dim, bias=c.flag("mamba_proj_bias", False))
        b.norm("pre_ff_layernorm", hidden)
        gated_mlp(b, hidden, intermediate, activation_of(c), prefix="feed_forward.", bias=c.flag("mlp_bias", False))

    return whole(c, blocks(c, fill), norm="model.final_layernorm")


def granitemoehybrid(c: Configuration) -> Draft:
    """Granite 4: Mamba 2 with a few layers of attention; a shared network, and experts beside it or none."""
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    hidden, intermediate, shared = heads.hidden, c.integer("intermediate_size"), c.integer("shared_intermediate_size")
    count, per_token = c.integer("num_local_experts", 0, least=0), c.integer("num_experts_per_tok", 0, least=0)
    mamba_heads = c.integer("mamba_n_heads", 128)
    head_dim = _mamba_head_dim(c, c.integer("mamba_expand", 2) * hidden, mamba_heads)
    attends = ("attention", FULL)
    kinds = layer_kinds(c, by_rule=lambda number: "mamba", known=(*attends, "mamba", "linear_attention"))
    c.has("position_embedding_type")  # whether positions are rotated

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        if kinds[number] in attends:
            grouped_attention(b, heads, bias=bias, out_bias=bias)
        else:
            _mamba2(c, b, hidden, heads=mamba_heads, head_dim=head_dim, bias=c.flag("mamba_proj_bias", False))
        b.norm("post_attention_layernorm", hidden)
        if count:
            stacked_experts(b, hidden, intermediate, count)
            b.mlp = MoeSpec(
                num_experts=count,
                experts_per_token=per_token,
                intermediate=intermediate,
                activation=activation_of(c),
                shared_intermediate=shared,
            )
        else:
            b.mlp = MlpSpec(intermediate=shared, activation=activation_of(c))
        b.matrix("shared_mlp.input_linear", 2 * shared, hidden)
        b.matrix("shared_mlp.output_linear", hidden, shared, "columns")

    return whole(c, blocks(c, fill))


def falcon_h1(c: Configuration) -> Draft:
    """Falcon-H1: attention and Mamba 2 side by side in every layer."""
    heads = heads_of(c)
    hidden, intermediate = heads.hidden, c.integer("intermediate_size")
    mamba_heads = c.integer("mamba_n_heads", 128)
    inner = c.integer("mamba_d_ssm", c.integer("mamba_expand", 2) * hidden)
    head_dim = _mamba_head_dim(c, inner, mamba_heads)
    bias = c.flag("attention_bias", False)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias)
        normed = c.flag("mamba_rms_norm", False)
        proj_bias = c.flag("mamba_proj_bias", False)
        _mamba2(c, b, hidden, heads=mamba_heads, head_dim=head_dim, bias=proj_bias, normed=normed)
        b.norm("pre_ff_layernorm", hidden)
        gated_mlp(b, hidden, intermediate, activation_of(c), prefix="feed_forward.", bias=c.flag("mlp_bias", False))

    return whole(c, blocks(c, fill), norm="model.final_layernorm")


def lfm2(c: Configuration) -> Draft:
    """LFM2: short convolutions, with attention in some layers."""
    heads = heads_of(c)
    hidden, kernel, bias = heads.hidden, c.integer("conv_L_cache", 3), c.flag("conv_bias", False)
    intermediate = _lfm2_intermediate(c)
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
        b.mlp = MlpSpec(intermediate=intermediate, activation="silu")
        b.matrix("feed_forward.w1", intermediate, hidden)
        b.matrix("feed_forward.w3", intermediate, hidden)
        b.matrix("feed_forward.w2", hidden, intermediate, "columns")

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
            b.attention = heads.attention(qk_norm=True)
            b.matrix("self_attn.q_proj", 2 * heads.q_rows, hidden)
            b.matrix("self_attn.k_proj", heads.kv_rows, hidden, "kv_heads")
            b.matrix("self_attn.v_proj", heads.kv_rows, hidden, "kv_heads")
            b.norm("self_attn.q_norm", heads.head_dim)
            b.norm("self_attn.k_norm", heads.head_dim)
            b.matrix("self_attn.o_proj", hidden, heads.q_rows, "columns")
        else:
            _delta_net(c, b, hidden)
        b.norm("post_attention_layernorm", hidden)
        experts(b, hidden, moe, shared="shared_expert")
        b.matrix("mlp.shared_expert_gate", 1, hidden, "replicated", role="router")

    draft = whole(c, blocks(c, fill))
    draft.notes = ("the published checkpoint also holds a layer that predicts one token further; it is not counted",)
    return draft


def nemotron_h(c: Configuration) -> Draft:
    """Nemotron-H (arXiv 2504.03624): a layer is one of Mamba 2, attention, a feed-forward network or experts."""
    kinds = _nemotron_kinds(c)
    heads = heads_of(c, head_dim=128)
    hidden, bias = heads.hidden, c.flag("mlp_bias", False)
    activation = activation_of(c, "mlp_hidden_act", "relu2")

    def fill(b: Block, number: int) -> None:
        b.norm("norm", hidden)
        if kinds[number] == "mamba":
            mamba2_mixer(
                b,
                hidden,
                heads=c.integer("mamba_num_heads", 128),
                head_dim=c.integer("mamba_head_dim", 64),
                groups=c.integer("n_groups", 8),
                state=c.integer("ssm_state_size", 128),
                kernel=c.integer("conv_kernel", 4),
                bias=c.flag("use_bias", False),
                conv_bias=c.flag("use_conv_bias", True),
                prefix="mixer.",
                state_format=F32 if c.says("mamba_ssm_cache_dtype", "float32") else None,
            )
        elif kinds[number] == FULL:
            attention_bias = c.flag("attention_bias", False)
            grouped_attention(b, heads, prefix="mixer.", bias=attention_bias, out_bias=attention_bias)
        elif kinds[number] == "mlp":
            names = ("mixer.up_proj", "mixer.down_proj")
            plain_mlp(b, hidden, c.integer("intermediate_size"), activation, names=names, bias=bias)
        else:
            _nemotron_experts(c, b, hidden)

    layers = blocks(c.with_changes(num_hidden_layers=len(kinds)), fill, prefix="backbone.layers.")
    return whole(c, layers, embedding="backbone.embeddings", norm="backbone.norm_f")


def _nemotron_kinds(c: Configuration) -> list[str]:
    letters = {"M": "mamba", "*": FULL, "-": "mlp", "E": "moe"}
    names = {"linear_attention": "mamba", "attention": FULL, **{kind: kind for kind in letters.values()}}
    if c.has("layers_block_type"):
        given: list[str] = c.strings("layers_block_type")
        kinds = [names.get(each, "") for each in given]
    else:
        kinds = [letters.get(each, "") for each in c.text("hybrid_override_pattern", "")]
    if not kinds or not all(kinds):
        raise UnsupportedError(f"{c.source} lists layers that are none of {', '.join(names)}.")
    if c.integer("num_hidden_layers", len(kinds)) != len(kinds):
        raise c.unsupported("num_hidden_layers")
    for key in ("intermediate_size", "mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "expand"):
        c.integer(key, 1)
    for key in (*MOE_KEYS, "mtp_layers_block_type", "moe_shared_expert_overlap", "num_nextn_predict_layers"):
        c.has(key)
    return kinds


MOE_KEYS = (
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "moe_shared_expert_intermediate_size",
)


def _nemotron_experts(c: Configuration, b: Block, hidden: int) -> None:
    if c.has("moe_latent_size"):
        raise c.unsupported("moe_latent_size")
    routed, per_token, intermediate = (c.integer(key) for key in (MOE_KEYS[0], MOE_KEYS[2], MOE_KEYS[3]))
    shared = c.integer("moe_shared_expert_intermediate_size", 0, least=0)
    b.mlp = MoeSpec(
        num_experts=routed,
        experts_per_token=per_token,
        intermediate=intermediate,
        activation="relu2",
        shared_intermediate=shared,
        gated=False,
    )
    b.matrix("mixer.gate", routed, hidden, "replicated", role="router")
    b.add("mixer.gate.e_score_correction_bias", routed, role="router", format=F32)
    b.matrix("mixer.experts.{}.up_proj", intermediate, hidden, role="expert", copies=routed)
    b.matrix("mixer.experts.{}.down_proj", hidden, intermediate, "columns", role="expert", copies=routed)
    if shared:
        b.matrix("mixer.shared_experts.up_proj", shared, hidden)
        b.matrix("mixer.shared_experts.down_proj", hidden, shared, "columns")


def _delta_net(c: Configuration, b: Block, hidden: int) -> None:
    """A gated delta network (arXiv 2412.06464): one matrix of state for each value head."""
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
    b.matrix("linear_attn.in_proj_qkvz", convolved + values * value_dim, hidden)
    b.matrix("linear_attn.in_proj_ba", 2 * values, hidden)
    b.add("linear_attn.dt_bias", values, role="other", split="rows")
    b.add("linear_attn.A_log", values, role="other", split="rows")
    b.norm("linear_attn.norm", value_dim)
    b.matrix("linear_attn.out_proj", hidden, values * value_dim, "columns")


def _mamba2(
    c: Configuration, b: Block, hidden: int, *, heads: int, head_dim: int, bias: bool, normed: bool = True
) -> None:
    mamba2_mixer(
        b,
        hidden,
        heads=heads,
        head_dim=head_dim,
        groups=c.integer("mamba_n_groups", 1),
        state=c.integer("mamba_d_state", 256),
        kernel=c.integer("mamba_d_conv", 4),
        bias=bias,
        conv_bias=c.flag("mamba_conv_bias", True),
        prefix="mamba.",
        normed=normed,
    )


def _mamba_head_dim(c: Configuration, inner: int, heads: int) -> int:
    return inner // heads if c.says("mamba_d_head", "auto") else c.integer("mamba_d_head", inner // heads)


def _lfm2_intermediate(c: Configuration) -> int:
    """LFM2 gives a width that its code shrinks by a third, scales and rounds up."""
    width = c.integer("block_ff_dim", c.integer("intermediate_size", 12288))
    if not c.flag("block_auto_adjust_ff_dim", True):
        return width
    multiple = c.integer("block_multiple_of", 256)
    scaled = int(c.number("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    return -(-scaled // multiple) * multiple
