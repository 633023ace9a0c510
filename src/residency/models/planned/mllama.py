"""Llama 3.2 Vision: Llama, some of whose layers attend to a picture, and the tower that sees it."""

from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import (
    Block,
    Draft,
    Heads,
    Tensors,
    activation_of,
    gated_mlp,
    grouped_attention,
    heads_of,
    layer_numbers,
    number_format,
    whole,
)
from residency.models.planned.vision import with_bias
from residency.spec.model import RecurrentSpec, TensorSpec

IMAGE_TOKENS = 8  # rows of the embedding that the head has no row for
TILES, PATCHES = 4, 1601  # of a picture: what its keys and values are made of


def mllama(c: Configuration) -> Draft:
    """Llama whose cross_attention_layers attend to a picture's tokens, of which they keep the keys and values."""
    heads, activation = heads_of(c), activation_of(c)
    intermediate = c.integer("intermediate_size")
    crossing = set(c.integers("cross_attention_layers") or range(3, len(layer_numbers(c)), 5))

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden)
        if number in crossing:
            _cross_attention(b, heads)
        else:
            grouped_attention(b, heads)
        b.norm("post_attention_layernorm", heads.hidden)
        gated_mlp(b, heads.hidden, intermediate, activation)

    vocabulary = c.integer("vocab_size")
    draft = whole(c.with_changes(vocab_size=vocabulary + IMAGE_TOKENS), blocks(c, fill))
    head = Tensors(prefix="", format=number_format(c))
    draft.head = head.add("lm_head.weight", vocabulary, heads.hidden, role="head", split="vocabulary")
    draft.notes = (f"each sequence has room for the keys and values of one picture of {TILES} tiles",)
    return draft


def _cross_attention(b: Block, heads: Heads) -> None:
    kept = 2 * heads.kv_rows * TILES * PATCHES
    b.mixer = RecurrentSpec(
        kind="cross", recent_values=0, state_values=kept, recent_format=b.format, state_format=b.format
    )
    b.matrix("cross_attn.q_proj", heads.q_rows, heads.hidden)
    for name in ("k_proj", "v_proj"):
        b.matrix(f"cross_attn.{name}", heads.kv_rows, heads.hidden, "kv_heads")
    b.matrix("cross_attn.o_proj", heads.hidden, heads.q_rows, "columns")
    for name in ("q_norm", "k_norm"):
        b.norm(f"cross_attn.{name}", heads.head_dim)
    for name in ("attn_gate", "mlp_gate"):
        b.add(f"cross_attn_{name}", 1)


def mllama_vision(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """A picture in tiles: patches, positions of patches and tiles, one encoder for each tile and one for all."""
    v = c.section("vision_config")
    width, tiles = v.integer("hidden_size", 1280), v.integer("max_num_tiles", 4)
    ratios = 1 + (v.length("supported_aspect_ratios") if v.is_list("supported_aspect_ratios") else 8)
    patch, channels = v.integer("patch_size", 14), v.integer("num_channels", 3)
    positions = (v.integer("image_size", 448) // patch) ** 2 + 1
    around = Tensors(prefix="vision_model.", format=number_format(c))
    around.add("class_embedding", width, role="vision")
    around.add("patch_embedding.weight", width, channels, patch, patch, role="vision")
    embedding = "gated_positional_embedding"
    around.add(f"{embedding}.gate", 1, role="vision")
    around.add(f"{embedding}.embedding", positions, width, role="vision")
    around.add(f"{embedding}.tile_embedding.weight", ratios, tiles * positions * width, role="vision")
    for name in ("pre_tile", "post_tile"):
        around.add(f"{name}_positional_embedding.gate", 1, role="vision")
        around.add(f"{name}_positional_embedding.embedding.weight", ratios, tiles * width, role="vision")
    for name in ("layernorm_pre", "layernorm_post"):
        with_bias(around, name, (width,), 1)
    encoders = [
        *_encoder(around, "transformer", v.integer("num_hidden_layers", 32), v, gated=False),
        *_encoder(around, "global_transformer", v.integer("num_global_layers", 8), v, gated=True),
    ]
    projector = Tensors(prefix="", format=around.format)
    with_bias(projector, "multi_modal_projector", (hidden, v.integer("vision_output_dim", 7680)), 1)
    return (*around.found, *encoders, *projector.found)


def _encoder(around: Tensors, name: str, copies: int, v: Configuration, *, gated: bool) -> list[TensorSpec]:
    width, intermediate = v.integer("hidden_size", 1280), v.integer("intermediate_size", 5120)
    layers = Tensors(prefix=f"{around.prefix}{name}.layers.{{}}.", format=around.format)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        with_bias(layers, norm, (width,), copies)
    for matrix in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layers.add(f"self_attn.{matrix}.weight", width, width, role="vision", copies=copies)
    with_bias(layers, "mlp.fc1", (intermediate, width), copies)
    with_bias(layers, "mlp.fc2", (width, intermediate), copies)
    for gate in ("gate_attn", "gate_ffn") if gated else ():
        layers.add(gate, 1, role="vision", copies=copies)
    return layers.found
