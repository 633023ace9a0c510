"""Decoders from before Llama: layer norms with biases, plain feed-forward networks, learned positions."""

from collections.abc import Mapping
from dataclasses import replace

from residency.formats import BOOL
from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    Tensors,
    activation_of,
    heads_of,
    number_format,
    plain_mlp,
    whole,
)
from residency.spec.model import MlpSpec, Split


def gpt2(c: Configuration) -> Draft:
    """GPT-2. Its matrices are stored with inputs outermost. The published files also hold the causal masks."""
    hidden, num_heads = c.integer("n_embd"), c.integer("n_head")
    c = c.with_defaults(hidden_size=hidden, num_hidden_layers=c.integer("n_layer"), num_attention_heads=num_heads)
    heads = heads_of(c)
    positions = c.integer("n_positions", 1024)
    intermediate = c.integer("n_inner", 4 * hidden)
    activation = activation_of(c, "activation_function", "gelu_new")
    masks = Tensors(prefix="", format=number_format(c))

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("ln_1", hidden, bias=True)
        _stored_transposed(b, "attn.c_attn", 3 * hidden, hidden)
        _stored_transposed(b, "attn.c_proj", hidden, hidden, "columns")
        b.norm("ln_2", hidden, bias=True)
        b.mlp = MlpSpec(intermediate=intermediate, activation=activation, gated=False)
        _stored_transposed(b, "mlp.c_fc", intermediate, hidden)
        _stored_transposed(b, "mlp.c_proj", hidden, intermediate, "columns")
        masks.add(f"{b.prefix}attn.bias", 1, 1, positions, positions)

    layers = blocks(c, fill, prefix="h.")
    others = Tensors(prefix="", format=number_format(c))
    others.add("wpe.weight", positions, hidden, role="position")
    draft = whole(c, layers, embedding="wte", norm="ln_f", norm_bias=True, tied=True, extra=others.found)
    draft.unused = tuple(masks.found)
    draft.notes = ("the published files of GPT-2 also hold causal masks, which nothing loads",)
    return draft


def gpt_neox(c: Configuration) -> Draft:
    """GPT-NeoX and Pythia: one matrix for queries, keys and values, biases everywhere."""
    heads, bias = heads_of(c), c.flag("attention_bias", True)
    hidden, positions = heads.hidden, c.integer("max_position_embeddings")
    intermediate, activation = c.integer("intermediate_size"), activation_of(c, default="gelu")
    masks = Tensors(prefix="", format=BOOL)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("input_layernorm", hidden, bias=True)
        b.norm("post_attention_layernorm", hidden, bias=True)
        b.matrix("attention.query_key_value", 3 * hidden, hidden, bias=bias)
        b.matrix("attention.dense", hidden, hidden, "columns", bias=bias)
        names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        plain_mlp(b, hidden, intermediate, activation, names=names, bias=True)
        masks.add(f"{b.prefix}attention.bias", 1, 1, positions, positions)

    layers = blocks(c, fill, prefix="gpt_neox.layers.")
    draft = whole(
        c,
        layers,
        embedding="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        head="embed_out",
        norm_bias=True,
    )
    draft.unused = tuple(masks.found)
    draft.notes = ("the published files of Pythia also hold causal masks, which nothing loads",)
    return draft


def falcon(c: Configuration) -> Draft:
    """Falcon: one key-value head, or a few in the newer decoder; parallel attention and feed-forward network."""
    new, bias = c.flag("new_decoder_architecture", False), c.flag("bias", False)
    parallel, multi_query = c.flag("parallel_attn", True), c.flag("multi_query", True)
    c = c.with_defaults(max_position_embeddings=2048)
    all_heads = c.integer("num_attention_heads")
    several = c.integer("num_kv_heads", all_heads)
    kv_heads = several if new or not multi_query else 1
    heads = heads_of(c, num_kv_heads=kv_heads)
    hidden = heads.hidden
    intermediate = c.integer("ffn_hidden_size", 4 * hidden)
    activation = activation_of(c, "activation", "gelu")
    two_norms = new and c.integer("num_ln_in_parallel_attn", 2) == 2

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        for name in ("ln_attn", "ln_mlp") if two_norms else ("input_layernorm",):
            b.norm(name, hidden, bias=True)
        if not new and not parallel:
            b.norm("post_attention_layernorm", hidden, bias=True)
        b.matrix("self_attention.query_key_value", heads.q_rows + 2 * heads.kv_rows, hidden, bias=bias)
        b.matrix("self_attention.dense", hidden, heads.q_rows, "columns", bias=bias)
        names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        plain_mlp(b, hidden, intermediate, activation, names=names, bias=bias)

    draft = whole(
        c,
        blocks(c, fill, prefix="transformer.h."),
        embedding="transformer.word_embeddings",
        norm="transformer.ln_f",
        norm_bias=True,
        tied=True,
    )
    if draft.head is None:
        draft.unused = (replace(draft.embedding, name="lm_head.weight", role="head"),)
        draft.notes = ("the published files of Falcon hold the tied head a second time, which nothing loads",)
    return draft


def opt(c: Configuration) -> Draft:
    """OPT: learned positions, with two rows more than the context; 350M projects a narrower embedding, and ends with
    the last layer's own norm."""
    heads, bias = heads_of(c), c.flag("enable_bias", True)
    hidden, intermediate = heads.hidden, c.integer("ffn_dim")
    width = c.integer("word_embed_proj_dim", hidden)
    activation = activation_of(c, "activation_function", "relu")
    has_last_norm = c.flag("do_layer_norm_before", True) and not c.flag("_remove_final_layer_norm", False)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(bias=bias)
        for name in ("k_proj", "v_proj", "q_proj"):
            b.matrix(f"self_attn.{name}", hidden, hidden, bias=bias)
        b.matrix("self_attn.out_proj", hidden, hidden, "columns", bias=bias)
        b.norm("self_attn_layer_norm", hidden, bias=True)
        plain_mlp(b, hidden, intermediate, activation, names=("fc1", "fc2"), bias=bias)
        b.norm("final_layer_norm", hidden, bias=True)

    around = Tensors(prefix="model.decoder.", format=number_format(c))
    around.add("embed_positions.weight", c.integer("max_position_embeddings") + 2, hidden, role="position")
    if width != hidden:
        around.matrix("project_in", hidden, width, "replicated")
        around.matrix("project_out", width, hidden, "replicated")
    draft = whole(
        c,
        blocks(c, fill, prefix="model.decoder.layers."),
        embedding="model.decoder.embed_tokens",
        norm="model.decoder.final_layer_norm",
        norm_bias=has_last_norm,
        tied=True,
        extra=around.found,
    )
    if draft.head is not None and width != hidden:
        raise c.unsupported("tie_word_embeddings")
    draft.embedding = replace(draft.embedding, shape=(c.integer("vocab_size"), width))
    draft.final_norm = replace(draft.final_norm, copies=int(has_last_norm))
    return draft


def bloom(c: Configuration) -> Draft:
    """BLOOM (arXiv 2211.05100): positions by ALiBi, a norm on the embedding, biases everywhere."""
    hidden = c.integer("n_embed", c.integer("hidden_size", 64))
    num_heads, num_layers = c.integer("n_head", 8), c.integer("n_layer", 2)
    c = c.with_defaults(hidden_size=hidden, num_attention_heads=num_heads, num_hidden_layers=num_layers)
    heads = heads_of(c, num_kv_heads=c.integer("num_attention_heads"))
    for key in ("attention_softmax_in_fp32", "skip_bias_add", "skip_bias_add_qkv", "n_inner"):
        c.has(key)  # how it is computed

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("input_layernorm", hidden, bias=True)
        b.matrix("self_attention.query_key_value", 3 * hidden, hidden, bias=True)
        b.matrix("self_attention.dense", hidden, hidden, "columns", bias=True)
        b.norm("post_attention_layernorm", hidden, bias=True)
        names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        plain_mlp(b, hidden, 4 * hidden, "gelu_tanh", names=names, bias=True)

    around = Tensors(prefix="", format=number_format(c))
    around.norm("word_embeddings_layernorm", hidden, bias=True)
    layers = blocks(c, fill, prefix="h.")
    return whole(c, layers, embedding="word_embeddings", norm="ln_f", norm_bias=True, tied=True, extra=around.found)


def mpt(c: Configuration) -> Draft:
    """MPT: positions by ALiBi, no biases, plain layer norms without them."""
    hidden, num_heads = c.integer("d_model", 2048), c.integer("n_heads", 16)
    c = c.with_changes(hidden_size=hidden, num_attention_heads=num_heads)
    c = c.with_changes(num_hidden_layers=c.integer("n_layers", 24))
    attention = c.section("attn_config")
    for section, key, expected in ((attention, "alibi", True), (attention, "qk_ln", False), (c, "no_bias", True)):
        if section.flag(key, expected) is not expected:
            raise section.unsupported(key)
    kinds = {"multihead_attention": num_heads, "multiquery_attention": 1}
    kind = attention.text("attn_type", "multihead_attention")
    heads = heads_of(c, num_kv_heads=attention.integer("kv_n_heads", kinds.get(kind, num_heads)))
    intermediate = c.integer("expansion_ratio", 4) * hidden
    c.has("embedding_fraction")  # of gradients

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("norm_1", hidden)
        b.matrix("attn.Wqkv", heads.q_rows + 2 * heads.kv_rows, hidden)
        b.matrix("attn.out_proj", hidden, heads.q_rows, "columns")
        b.norm("norm_2", hidden)
        plain_mlp(b, hidden, intermediate, "gelu", names=("ffn.up_proj", "ffn.down_proj"), bias=False)

    layers = blocks(c, fill, prefix="transformer.blocks.")
    return whole(c, layers, embedding="transformer.wte", norm="transformer.norm_f", tied=True)


def gptj(c: Configuration) -> Draft:
    """GPT-J: attention and feed-forward network side by side behind one norm, a head with a bias."""
    return _gptj_with(c, {"q_proj": 1, "k_proj": 1, "v_proj": 1})


def codegen(c: Configuration) -> Draft:
    """CodeGen (arXiv 2203.13474): GPT-J with queries, keys and values in one matrix."""
    return _gptj_with(c, {"qkv_proj": 3})


def _gptj_with(c: Configuration, projections: Mapping[str, int]) -> Draft:
    """GPT-J with these matrices before attention, of so many times the hidden width."""
    hidden, num_heads = c.integer("n_embd"), c.integer("n_head")
    c = c.with_defaults(hidden_size=hidden, num_hidden_layers=c.integer("n_layer"), num_attention_heads=num_heads)
    heads = heads_of(c)
    intermediate = c.integer("n_inner", 4 * hidden)
    activation = activation_of(c, "activation_function", "gelu_new")

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("ln_1", hidden, bias=True)
        for name, times in projections.items():
            b.matrix(f"attn.{name}", times * hidden, hidden)
        b.matrix("attn.out_proj", hidden, hidden, "columns")
        plain_mlp(b, hidden, intermediate, activation, names=("mlp.fc_in", "mlp.fc_out"), bias=True)

    layers = blocks(c, fill, prefix="transformer.h.")
    return whole(c, layers, embedding="transformer.wte", norm="transformer.ln_f", norm_bias=True, head_bias=True)


def gpt_neo(c: Configuration) -> Draft:
    """GPT-Neo: every other layer sees a window, biases but on queries, keys and values."""
    hidden, count = c.integer("hidden_size"), c.integer("num_layers")
    c = c.with_defaults(num_hidden_layers=count, num_attention_heads=c.integer("num_heads"))
    heads = heads_of(c)
    intermediate, window = c.integer("intermediate_size", 4 * hidden), c.integer("window_size", 256)
    activation = activation_of(c, "activation_function", "gelu_new")
    kinds = _gpt_neo_kinds(c, count)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(window if kinds[number] == "local" else None)
        b.norm("ln_1", hidden, bias=True)
        for name in ("q_proj", "k_proj", "v_proj"):
            b.matrix(f"attn.attention.{name}", hidden, hidden)
        b.matrix("attn.attention.out_proj", hidden, hidden, "columns", bias=True)
        b.norm("ln_2", hidden, bias=True)
        plain_mlp(b, hidden, intermediate, activation, names=("mlp.c_fc", "mlp.c_proj"), bias=True)

    around = Tensors(prefix="transformer.", format=number_format(c))
    around.add("wpe.weight", c.integer("max_position_embeddings"), hidden, role="position")
    return whole(
        c,
        blocks(c, fill, prefix="transformer.h."),
        embedding="transformer.wte",
        norm="transformer.ln_f",
        norm_bias=True,
        tied=True,
        extra=around.found,
        notes=("the published files also hold causal masks, which nothing loads; they are not counted",),
    )


def _gpt_neo_kinds(c: Configuration, count: int) -> list[str]:
    """Each layer's kind of attention: attention_layers, or attention_types, which is [[[kind, ...], times], ...]."""
    c.has("attention_types")
    if not c.has("attention_layers"):
        return ["local" if number % 2 else "global" for number in range(count)]
    kinds = c.texts("attention_layers", count)
    if not {"global", "local"} >= set(kinds):
        raise c.unsupported("attention_layers")
    return kinds


def gpt_bigcode(c: Configuration) -> Draft:
    """StarCoder and SantaCoder (arXiv 2305.06161): GPT-2 with one key-value head."""
    hidden, num_heads = c.integer("n_embd"), c.integer("n_head")
    c = c.with_defaults(hidden_size=hidden, num_hidden_layers=c.integer("n_layer"), num_attention_heads=num_heads)
    kv_heads = 1 if c.flag("multi_query", True) else num_heads
    if c.integer("num_key_value_heads", kv_heads) != kv_heads:
        raise c.unsupported("num_key_value_heads")
    heads = heads_of(c, num_kv_heads=kv_heads)
    intermediate = c.integer("n_inner", 4 * hidden)
    activation = activation_of(c, "activation_function", "gelu_pytorch_tanh")
    for key in ("attention_softmax_in_fp32", "pad_key_length", "pre_allocate_kv_cache", "max_batch_size"):
        c.has(key)  # how it is computed

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention()
        b.norm("ln_1", hidden, bias=True)
        b.matrix("attn.c_attn", heads.q_rows + 2 * heads.kv_rows, hidden, bias=True)
        b.matrix("attn.c_proj", hidden, hidden, "columns", bias=True)
        b.norm("ln_2", hidden, bias=True)
        plain_mlp(b, hidden, intermediate, activation, names=("mlp.c_fc", "mlp.c_proj"), bias=True)

    around = Tensors(prefix="transformer.", format=number_format(c))
    around.add("wpe.weight", c.integer("n_positions", 1024), hidden, role="position")
    return whole(
        c,
        blocks(c, fill, prefix="transformer.h."),
        embedding="transformer.wte",
        norm="transformer.ln_f",
        norm_bias=True,
        tied=True,
        extra=around.found,
    )


def phi(c: Configuration) -> Draft:
    """Phi-1, 1.5 and 2: parallel attention and feed-forward network behind one norm, a head with a bias."""
    heads = heads_of(c)
    hidden, intermediate = heads.hidden, c.integer("intermediate_size")
    activation = activation_of(c, default="gelu_new")
    if c.flag("qk_layernorm", False):
        raise c.unsupported("qk_layernorm")

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(bias=True)
        b.norm("input_layernorm", hidden, bias=True)
        b.matrix("self_attn.q_proj", heads.q_rows, hidden, bias=True)
        b.matrix("self_attn.k_proj", heads.kv_rows, hidden, "kv_heads", bias=True)
        b.matrix("self_attn.v_proj", heads.kv_rows, hidden, "kv_heads", bias=True)
        b.matrix("self_attn.dense", hidden, heads.q_rows, "columns", bias=True)
        plain_mlp(b, hidden, intermediate, activation, names=("mlp.fc1", "mlp.fc2"), bias=True)

    return whole(c, blocks(c, fill), norm="model.final_layernorm", norm_bias=True, head_bias=True)


def persimmon(c: Configuration) -> Draft:
    """Persimmon: queries, keys and values in one matrix, layer norms on their heads, squared rectifiers."""
    heads = heads_of(c, num_kv_heads=c.integer("num_attention_heads"))
    hidden, intermediate, activation = heads.hidden, c.integer("intermediate_size"), activation_of(c, default="relu2")
    qk_norm = c.flag("qk_layernorm", True)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(bias=True)
        b.norm("input_layernorm", hidden, bias=True)
        b.matrix("self_attn.query_key_value", 3 * heads.q_rows, hidden, bias=True)
        b.matrix("self_attn.dense", hidden, heads.q_rows, "columns", bias=True)
        if qk_norm:
            b.norm("self_attn.q_layernorm", heads.head_dim, bias=True)
            b.norm("self_attn.k_layernorm", heads.head_dim, bias=True)
        b.norm("post_attention_layernorm", hidden, bias=True)
        plain_mlp(b, hidden, intermediate, activation, names=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), bias=True)

    return whole(c, blocks(c, fill), norm="model.final_layernorm", norm_bias=True)


def _stored_transposed(b: Block, name: str, rows: int, columns: int, split: Split = "rows") -> None:
    """A matrix whose inputs are outermost in the file."""
    b.add(f"{name}.weight", columns, rows, role="matrix", split=split)
    b.add(f"{name}.bias", rows, role="bias", split="replicated" if split == "columns" else "rows")
