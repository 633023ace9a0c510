"""Decoders whose code is published beside their weights, and not in `transformers`."""

from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks, decoder
from residency.models.planned.parts import (
    Block,
    Draft,
    activation_of,
    gated_matrices,
    gated_mlp,
    heads_of,
    layer_numbers,
    whole,
)
from residency.spec.model import MlpSpec


def internlm(c: Configuration) -> Draft:
    """InternLM, Orion and XVERSE: Llama, with biases in attention or layer norms."""
    bias = c.flag("bias", c.architecture == "internlm")
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, bias=bias, out_bias=bias, norm_bias=c.architecture == "orion")


def internlm2(c: Configuration) -> Draft:
    """InternLM2 (arXiv 2403.17297): queries, keys and values in one matrix, by key-value head."""
    heads, bias = heads_of(c), c.flag("bias", True)
    intermediate, activation = c.integer("intermediate_size"), activation_of(c)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(bias=bias)
        b.norm("attention_norm", heads.hidden)
        b.matrix("attention.wqkv", heads.q_rows + 2 * heads.kv_rows, heads.hidden, bias=bias)
        b.matrix("attention.wo", heads.hidden, heads.q_rows, "columns", bias=bias)
        b.norm("ffn_norm", heads.hidden)
        b.mlp = MlpSpec(intermediate=intermediate, activation=activation)
        gated_matrices(b, "feed_forward.", heads.hidden, intermediate, names=("w1", "w3", "w2"))

    return whole(c, blocks(c, fill), embedding="model.tok_embeddings", head="output")


def baichuan(c: Configuration) -> Draft:
    """Baichuan (arXiv 2309.10305): Llama with queries, keys and values in one matrix."""
    if c.has("model_max_length"):
        c = c.with_defaults(max_position_embeddings=c.integer("model_max_length"))
    heads, activation = heads_of(c, num_kv_heads=c.integer("num_attention_heads")), activation_of(c)
    intermediate = c.integer("intermediate_size")

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("input_layernorm", heads.hidden)
        b.matrix("self_attn.W_pack", 3 * heads.q_rows, heads.hidden)
        b.matrix("self_attn.o_proj", heads.hidden, heads.q_rows, "columns")
        b.norm("post_attention_layernorm", heads.hidden)
        gated_mlp(b, heads.hidden, intermediate, activation)

    return whole(c, blocks(c, fill))


def qwen(c: Configuration) -> Draft:
    """Qwen (arXiv 2309.16609): biases on queries, keys and values alone; intermediate_size counts gate and up."""
    heads = heads_of(c, head_dim=c.integer("kv_channels", 128), num_kv_heads=c.integer("num_attention_heads"))
    intermediate = c.integer("intermediate_size") // 2
    if not c.flag("no_bias", True):
        raise c.unsupported("no_bias")
    for key in ("use_cache_kernel", "use_cache_quantization", "use_dynamic_ntk", "use_flash_attn", "use_logn_attn"):
        c.has(key)  # how it is computed

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(bias=True)
        b.norm("ln_1", heads.hidden)
        b.matrix("attn.c_attn", 3 * heads.q_rows, heads.hidden, bias=True)
        b.matrix("attn.c_proj", heads.hidden, heads.q_rows, "columns")
        b.norm("ln_2", heads.hidden)
        b.mlp = MlpSpec(intermediate=intermediate, activation="silu")
        gated_matrices(b, "mlp.", heads.hidden, intermediate, names=("w2", "w1", "c_proj"))

    layers = blocks(c, fill, prefix="transformer.h.")
    return whole(c, layers, embedding="transformer.wte", norm="transformer.ln_f")


def chatglm(c: Configuration) -> Draft:
    """ChatGLM2, ChatGLM3 and the first GLM-4: few key-value heads, gate and up in one matrix."""
    for key, expected in (("rmsnorm", True), ("add_bias_linear", False), ("post_layer_norm", True)):
        if c.flag(key, expected) is not expected:
            raise c.unsupported(key)
    count, vocabulary = c.integer("num_layers"), c.integer("padded_vocab_size")
    c = c.with_changes(num_hidden_layers=count, vocab_size=vocabulary)
    num_heads = c.integer("num_attention_heads")
    groups = c.integer("multi_query_group_num", 1) if c.flag("multi_query_attention", False) else num_heads
    heads = heads_of(c, head_dim=c.integer("kv_channels", 128), num_kv_heads=groups)
    intermediate, bias = c.integer("ffn_hidden_size"), c.flag("add_qkv_bias", False)
    for key in (
        "fp32_residual_connection",
        "apply_query_key_layer_scaling",
        "attention_softmax_in_fp32",
        "pre_seq_len",
    ):
        c.has(key)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(bias=bias)
        b.norm("input_layernorm", heads.hidden)
        b.matrix("self_attention.query_key_value", heads.q_rows + 2 * heads.kv_rows, heads.hidden, bias=bias)
        b.matrix("self_attention.dense", heads.hidden, heads.q_rows, "columns")
        b.norm("post_attention_layernorm", heads.hidden)
        b.mlp = MlpSpec(intermediate=intermediate, activation="silu")
        b.matrix("mlp.dense_h_to_4h", 2 * intermediate, heads.hidden)
        b.matrix("mlp.dense_4h_to_h", heads.hidden, intermediate, "columns")

    return whole(
        c,
        blocks(c, fill, prefix="transformer.encoder.layers."),
        embedding="transformer.embedding.word_embeddings",
        norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
    )


def minicpm(c: Configuration) -> Draft:
    """MiniCPM (arXiv 2404.06395): Llama with a tied head and factors."""
    if c.integer("num_experts", 0, least=0):
        raise c.unsupported("num_experts")
    for key in ("dim_model_base", "scale_depth", "scale_emb"):
        c.has(key)  # factors
    return decoder(c, [None] * len(layer_numbers(c)), bias=c.flag("attention_bias", False), tied=True)


def exaone(c: Configuration) -> Draft:
    """EXAONE 3 and 3.5 (arXiv 2408.03541): Llama under GPT-2's names."""
    c = c.with_defaults(num_hidden_layers=c.integer("num_layers"))
    heads, intermediate = heads_of(c), c.integer("intermediate_size")
    activation = activation_of(c, "activation_function")

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("ln_1", heads.hidden)
        b.matrix("attn.attention.q_proj", heads.q_rows, heads.hidden)
        b.matrix("attn.attention.k_proj", heads.kv_rows, heads.hidden, "kv_heads")
        b.matrix("attn.attention.v_proj", heads.kv_rows, heads.hidden, "kv_heads")
        b.matrix("attn.attention.out_proj", heads.hidden, heads.q_rows, "columns")
        b.norm("ln_2", heads.hidden)
        b.mlp = MlpSpec(intermediate=intermediate, activation=activation)
        gated_matrices(b, "mlp.", heads.hidden, intermediate, names=("c_fc_0", "c_fc_1", "c_proj"))

    layers = blocks(c, fill, prefix="transformer.h.")
    return whole(c, layers, embedding="transformer.wte", norm="transformer.ln_f")
