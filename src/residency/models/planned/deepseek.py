"""DeepSeek's experts, beside a network that every token meets, with multi-head latent attention or without."""

from residency.formats import F32
from residency.models.configuration import Configuration
from residency.models.planned.dense import Fill, blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    Tensors,
    activation_of,
    experts,
    gated_mlp,
    grouped_attention,
    heads_of,
    number_format,
    whole,
)
from residency.spec.model import LatentAttentionSpec, MoeSpec, TensorSpec


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
