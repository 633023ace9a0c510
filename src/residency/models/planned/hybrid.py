"""Models some of whose layers attend and some of whose layers are Mamba or Mamba 2."""

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
    gated_mlp,
    grouped_attention,
    heads_of,
    plain_mlp,
    stacked_experts,
    whole,
)
from residency.models.planned.recurrent import mamba2_mixer, mamba_mixer
from residency.models.planned.windows import FULL, layer_kinds
from residency.spec.model import MlpSpec, MoeSpec


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


def zamba2(c: Configuration) -> Draft:
    """Zamba2 (arXiv 2411.15242): Mamba 2, and a few blocks of attention that layers take in turn, each time with
    other adapters.
    """
    names = {"mamba": "mamba", "linear_attention": "mamba", "hybrid": "hybrid"}
    kinds = [names.get(each, "") for each in c.strings("layers_block_type")]
    if not all(kinds) or len(kinds) != c.integer("num_hidden_layers"):
        raise c.unsupported("layers_block_type")
    hybrids = [number for number, kind in enumerate(kinds) if kind == "hybrid"]
    shared = _SharedBlocks(c, len(hybrids))
    for said_again in ("hybrid_layer_ids", "attention_hidden_size", "kv_channels", "num_query_groups"):
        c.has(said_again)
    for computed in ("use_mem_rope", "use_long_context", "use_mem_eff_path", "num_logits_to_keep", "chunk_size"):
        c.has(computed)
    mamba_heads = c.integer("n_mamba_heads", 8)
    head_dim = c.integer("mamba_headdim", c.integer("mamba_expand", 2) * shared.hidden // mamba_heads)

    def fill(b: Block, number: int) -> None:
        prefix = ""
        if kinds[number] == "hybrid":
            prefix = "mamba_decoder."
            b.matrix("linear", shared.hidden, shared.hidden, "replicated")
            shared.add_to(b, hybrids.index(number))
        b.norm(prefix + "input_layernorm", shared.hidden)
        mamba2_mixer(
            b,
            shared.hidden,
            heads=mamba_heads,
            head_dim=head_dim,
            groups=c.integer("mamba_ngroups", 1),
            state=c.integer("mamba_d_state", 64),
            kernel=c.integer("mamba_d_conv", 4),
            bias=c.flag("add_bias_linear", False),
            conv_bias=c.flag("use_conv_bias", True),
            prefix=prefix + "mamba.",
        )

    draft = whole(c, blocks(c, fill), norm="model.final_layernorm", tied=True)
    draft.notes = ("blocks that several layers share are counted once, as they are held; a token reads them each time",)
    return draft


class _SharedBlocks:
    """Zamba2's blocks of attention and feed-forward network, over the hidden state beside the embedding."""

    def __init__(self, c: Configuration, uses: int) -> None:
        self.hidden, self.uses = c.integer("hidden_size"), uses
        self.count, self.rank = c.integer("num_mem_blocks", 1), c.integer("adapter_rank", 128)
        self.adapts_attention = c.flag("use_shared_attention_adapter", False)
        self.intermediate = c.integer("intermediate_size", 4 * self.hidden)
        self.activation = activation_of(c, default="gelu")
        num_heads = c.integer("num_attention_heads")
        self.heads = Heads(
            hidden=2 * self.hidden,
            num_heads=num_heads,
            num_kv_heads=c.integer("num_key_value_heads", num_heads),
            head_dim=c.integer("attention_head_dim", 2 * self.hidden // num_heads),
        )

    def add_to(self, b: Block, use: int) -> None:
        """What a layer that is the `use`-th to take a block holds: the block itself, where it is the first to."""
        b.attention = self.heads.attention()
        b.mlp = MlpSpec(intermediate=self.intermediate, activation=self.activation)
        if use >= self.count:
            return
        prefix, heads = "shared_transformer.", self.heads
        b.norm(prefix + "input_layernorm", heads.hidden)
        b.norm(prefix + "pre_ff_layernorm", self.hidden)
        b.matrix(prefix + "self_attn.q_proj", heads.q_rows, heads.hidden)
        b.matrix(prefix + "self_attn.k_proj", heads.kv_rows, heads.hidden, "kv_heads")
        b.matrix(prefix + "self_attn.v_proj", heads.kv_rows, heads.hidden, "kv_heads")
        b.matrix(prefix + "self_attn.o_proj", self.hidden, heads.q_rows, "columns")
        b.matrix(prefix + "feed_forward.gate_up_proj", 2 * self.intermediate, self.hidden)
        b.matrix(prefix + "feed_forward.down_proj", self.hidden, self.intermediate, "columns")
        adapters = [("feed_forward.gate_up_proj", self.hidden, 2 * self.intermediate)]
        if self.adapts_attention:
            adapters += [(f"self_attn.linear_{name}", heads.hidden, heads.q_rows) for name in "qkv"]
        for each in range(use, self.uses, self.count):
            for name, inputs, outputs in adapters:
                b.matrix(f"{prefix}{name}_adapter_list.{each}.0", self.rank, inputs, "replicated")
                b.matrix(f"{prefix}{name}_adapter_list.{each}.1", outputs, self.rank)
