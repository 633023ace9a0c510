"""DeepSeek's experts, beside a network that every token meets, with multi-head latent attention or without."""

from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.dense import Fill, blocks, exaone_windows
from residency.models.planned.parts import (
    Block,
    Draft,
    Tensors,
    activation_of,
    experts,
    gated_mlp,
    grouped_attention,
    heads_of,
    layer_numbers,
    number_format,
    whole,
)
from residency.models.planned.windows import windows
from residency.spec.model import LatentAttentionSpec, MoeSpec, TensorSpec

_CORRECTION = "mlp.gate.e_score_correction_bias"


def deepseek(c: Configuration) -> Draft:
    """DeepSeek-V2 to V3.2, Kimi K2, GLM-4.7 Flash and GLM-5: multi-head latent attention, in some with an index of what
    to attend to; a shared network beside many experts.
    """
    hidden = c.integer("hidden_size")
    attention = latent_of(c)
    for implied in ("num_key_value_heads", "qk_head_dim"):  # the cache holds none of these heads
        c.integer(implied, 1)
    moe = routed_and_shared(c)
    dense_intermediate = c.integer("intermediate_size")
    is_dense = dense_layers(c, first=0)
    corrects = c.text("topk_method", "") == "noaux_tc" or c.architecture not in ("deepseek_v2", "kimi_k2")
    correction = _CORRECTION if corrects else None
    has_index = c.integer("index_head_dim", 0, least=0) > 0
    if has_index and any(kind != "full" for kind in (c.strings("indexer_types") if c.has("indexer_types") else ())):
        raise c.unsupported("indexer_types")
    for said_again in ("layer_types", "head_dim", "index_topk"):
        c.has(said_again)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        latent_attention(b, hidden, attention, bias=c.flag("attention_bias", False))
        if has_index:
            _index(b, hidden, attention, heads=c.integer("index_n_heads"))
        b.norm("post_attention_layernorm", hidden)
        _dense_or_routed(b, hidden, moe, dense_intermediate if is_dense[number] else None, correction)

    return _with_next_token_layer(c, fill)


def minicpm3(c: Configuration) -> Draft:
    """MiniCPM3: multi-head latent attention with one feed-forward network."""
    hidden, attention, activation = c.integer("hidden_size"), latent_of(c), activation_of(c)
    for implied in ("num_key_value_heads", "qk_head_dim", "head_dim", "dim_model_base", "scale_depth", "scale_emb"):
        c.has(implied)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", hidden)
        latent_attention(b, hidden, attention, bias=c.flag("attention_bias", False))
        b.norm("post_attention_layernorm", hidden)
        gated_mlp(b, hidden, c.integer("intermediate_size"), activation, bias=c.flag("mlp_bias", False))

    return whole(c, blocks(c, fill), tied=True)


def glm4_moe(c: Configuration) -> Draft:
    """GLM-4.5 and dots.llm1: grouped-query attention with DeepSeek-V3's experts."""
    is_dots = c.architecture == "dots1"
    heads, bias = heads_of(c, head_dim=None if is_dots else 128), c.flag("attention_bias", False)
    moe = routed_and_shared(c)
    is_dense, intermediate = dense_layers(c, first=0 if is_dots else 1), c.integer("intermediate_size")
    qk_norm = c.flag("use_qk_norm", is_dots)
    none: list[int | None] = [None] * len(is_dense)
    sliding = [*windows(c, slides=lambda number: False), None] if is_dots else none
    c.has("max_window_layers")

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, window_tokens=sliding[number], bias=bias, qk_norm=qk_norm)
        b.norm("post_attention_layernorm", heads.hidden)
        _dense_or_routed(b, heads.hidden, moe, intermediate if is_dense[number] else None, _CORRECTION)

    return _with_next_token_layer(c, fill)


def glm4v_moe(c: Configuration) -> Draft:
    """GLM-4.5V's text model: GLM-4.5 with biases on queries, keys and values."""
    return glm4_moe(c.with_defaults(attention_bias=True))


def exaone_moe(c: Configuration) -> Draft:
    """K-EXAONE: EXAONE 4's windows, DeepSeek-V3's experts."""
    heads = heads_of(c)
    moe = routed_and_shared(c, "num_experts", "num_shared_experts", shared=1)
    is_dense, intermediate = dense_layers(c, first=0), c.integer("intermediate_size")
    sliding = exaone_windows(c, default_tokens=4096)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, window_tokens=sliding[number], qk_norm=True)
        b.norm("post_attention_layernorm", heads.hidden)
        _dense_or_routed(
            b, heads.hidden, moe, intermediate if is_dense[number] else None, "mlp.e_score_correction_bias"
        )

    return whole(c, blocks(c, fill))


def afmoe(c: Configuration) -> Draft:
    """Arcee's Trinity: gated attention in windows, norms before and after both parts, DeepSeek-V3's experts."""
    heads = heads_of(c, head_dim=128)
    moe = routed_and_shared(c, "num_experts", "num_shared_experts", shared=1)
    first_dense, intermediate = c.integer("num_dense_layers", 1, least=0), c.integer("intermediate_size")
    every = c.integer("global_attn_every_n_layers", 4)
    sliding = windows(c, slides=lambda number: (number + 1) % every != 0, default_tokens=1024)
    names = ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")

    def fill(b: Block, number: int) -> None:
        for name in names:
            b.norm(name, heads.hidden)
        grouped_attention(b, heads, window_tokens=sliding[number], qk_norm=True)
        b.matrix("self_attn.gate_proj", heads.q_rows, heads.hidden)
        if number < first_dense:
            gated_mlp(b, heads.hidden, intermediate, moe.activation)
        else:
            experts(b, heads.hidden, moe, router="router.gate", shared="shared_experts")
            b.add("mlp.expert_bias", moe.num_experts, role="router", format=F32)

    return whole(c, blocks(c, fill))


def deepseek_moe(c: Configuration) -> Draft:
    """DeepSeekMoE (arXiv 2401.06066) and the dense DeepSeek: grouped-query attention, and experts or none."""
    heads, bias = heads_of(c), c.flag("attention_bias", False)
    moe = routed_and_shared(c) if c.has("n_routed_experts") else None
    is_dense, intermediate = dense_layers(c, first=0), c.integer("intermediate_size")

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        grouped_attention(b, heads, bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", heads.hidden)
        if moe is None or is_dense[number]:
            gated_mlp(b, heads.hidden, intermediate, activation_of(c))
        else:
            experts(b, heads.hidden, moe, shared="shared_experts")

    return whole(c, blocks(c, fill))


def _dense_or_routed(b: Block, hidden: int, moe: MoeSpec, dense_width: int | None, correction: str | None) -> None:
    """A dense network of this width, or without one the experts, with a bias of their scores by this name if any."""
    if dense_width is not None:
        gated_mlp(b, hidden, dense_width, moe.activation)
        return
    experts(b, hidden, moe, shared="shared_experts")
    if correction is not None:
        b.add(correction, moe.num_experts, role="router", format=F32)


def dense_layers(c: Configuration, *, first: int) -> list[bool]:
    """Whether each layer, and the one that drafts, has one network in the place of experts: the `first`, unless the
    configuration says otherwise.
    """
    numbers = layer_numbers(c)
    first, every = c.integer("first_k_dense_replace", first, least=0), c.integer("moe_layer_freq", 1)
    if c.has("mlp_layer_types"):
        return [*(kind == "dense" for kind in c.texts("mlp_layer_types", len(numbers))), False]
    return [number < first or number % every > 0 for number in range(len(numbers) + 1)]


def latent_of(c: Configuration) -> LatentAttentionSpec:
    """The widths of latent attention."""
    return LatentAttentionSpec(
        num_heads=c.integer("num_attention_heads"),
        kv_rank=c.integer("kv_lora_rank"),
        rope_dim=c.integer("qk_rope_head_dim"),
        nope_dim=c.integer("qk_nope_head_dim"),
        value_dim=c.integer("v_head_dim"),
        query_rank=c.integer("q_lora_rank") if c.has("q_lora_rank") else None,
        index_dim=c.integer("index_head_dim", 0, least=0),
    )


def _index(b: Block, hidden: int, spec: LatentAttentionSpec, *, heads: int) -> None:
    """DeepSeek-V3.2's indexer (arXiv 2512.02556), which finds the tokens to attend to; whole on every rank."""
    b.matrix("self_attn.indexer.wq_b", heads * spec.index_dim, spec.query_rank or hidden, "replicated")
    b.matrix("self_attn.indexer.wk", spec.index_dim, hidden, "replicated")
    b.norm("self_attn.indexer.k_norm", spec.index_dim, bias=True)
    b.matrix("self_attn.indexer.weights_proj", heads, hidden, "replicated")


def latent_attention(
    b: Block, hidden: int, spec: LatentAttentionSpec, *, bias: bool, prefix: str = "self_attn."
) -> None:
    """Down-projections to the latent vectors are held by every rank; each rank has its heads' up-projections."""
    b.attention = spec
    q_rows = spec.num_heads * (spec.nope_dim + spec.rope_dim)
    if spec.query_rank is None:
        b.matrix(prefix + "q_proj", q_rows, hidden)
    else:
        b.matrix(prefix + "q_a_proj", spec.query_rank, hidden, "replicated", bias=bias)
        b.norm(prefix + "q_a_layernorm", spec.query_rank)
        b.matrix(prefix + "q_b_proj", q_rows, spec.query_rank)
    b.matrix(prefix + "kv_a_proj_with_mqa", spec.kv_rank + spec.rope_dim, hidden, "replicated", bias=bias)
    b.norm(prefix + "kv_a_layernorm", spec.kv_rank)
    b.matrix(prefix + "kv_b_proj", spec.num_heads * (spec.nope_dim + spec.value_dim), spec.kv_rank)
    b.matrix(prefix + "o_proj", hidden, spec.num_heads * spec.value_dim, "columns", bias=bias)


def routed_and_shared(
    c: Configuration, routed_key: str = "n_routed_experts", shared_key: str = "n_shared_experts", *, shared: int = 0
) -> MoeSpec:
    """DeepSeek's experts: those that tokens are sent to, and those that every token meets, `shared` if unsaid."""
    intermediate = c.integer("moe_intermediate_size")
    return MoeSpec(
        num_experts=c.integer(routed_key),
        experts_per_token=c.integer("num_experts_per_tok"),
        intermediate=intermediate,
        activation=activation_of(c),
        shared_intermediate=c.integer(shared_key, shared, least=0) * intermediate,
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
