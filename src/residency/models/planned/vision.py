"""The vision towers that multimodal checkpoints hold beside their text model: loaded with it, never read while text is
decoded.
"""

from residency.models.configuration import Configuration
from residency.models.planned.parts import Tensors, number_format
from residency.spec.model import Split, TensorSpec


def siglip(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Gemma 3's: SigLIP (arXiv 2303.15343) and a projection to the text model's width."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 1152), v.integer("intermediate_size", 4304)
    patch, channels = v.integer("patch_size", 14), v.integer("num_channels", 3)
    around = Tensors(prefix="vision_tower.vision_model.", format=number_format(c))
    around.add("embeddings.patch_embedding.weight", width, channels, patch, patch, role="vision")
    around.add("embeddings.patch_embedding.bias", width, role="vision")
    positions = (v.integer("image_size", 896) // patch) ** 2
    around.add("embeddings.position_embedding.weight", positions, width, role="vision")
    copies = v.integer("num_hidden_layers", 27)
    layers = Tensors(prefix=f"{around.prefix}encoder.layers.{{}}.", format=around.format)
    for name in ("layer_norm1", "layer_norm2"):
        _with_bias(layers, name, (width,), copies)
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        _with_bias(layers, f"self_attn.{name}", (width, width), copies)
    _with_bias(layers, "mlp.fc1", (intermediate, width), copies)
    _with_bias(layers, "mlp.fc2", (width, intermediate), copies)
    _with_bias(around, "post_layernorm", (width,), 1)
    projector = Tensors(prefix="multi_modal_projector.", format=around.format)
    projector.add("mm_input_projection_weight", width, hidden, role="vision")
    projector.add("mm_soft_emb_norm.weight", width, role="vision")
    return (*around.found, *layers.found, *projector.found)


def pixtral(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Mistral Small 3.1's: Pixtral's vision encoder (arXiv 2410.07073) and a projection that merges patches."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 1024), v.integer("intermediate_size", 4096)
    patch, channels = v.integer("patch_size", 14), v.integer("num_channels", 3)
    around = Tensors(prefix="vision_tower.", format=number_format(c))
    around.add("patch_conv.weight", width, channels, patch, patch, role="vision")
    around.add("ln_pre.weight", width, role="vision")
    copies = v.integer("num_hidden_layers", 24)
    layers = Tensors(prefix="vision_tower.transformer.layers.{}.", format=around.format)
    for name in ("attention_norm", "ffn_norm"):
        layers.add(f"{name}.weight", width, role="vision", copies=copies)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layers.add(f"attention.{name}.weight", width, width, role="vision", split="rows", copies=copies)
    for name in ("gate_proj", "up_proj"):
        layers.add(f"feed_forward.{name}.weight", intermediate, width, role="vision", split="rows", copies=copies)
    layers.add("feed_forward.down_proj.weight", width, intermediate, role="vision", split="columns", copies=copies)
    projector = Tensors(prefix="multi_modal_projector.", format=around.format)
    merged = c.integer("spatial_merge_size", 2) ** 2
    projector.add("norm.weight", width, role="vision")
    projector.add("patch_merger.merging_layer.weight", width, merged * width, role="vision")
    bias = c.flag("multimodal_projector_bias", False)
    for name, columns in (("linear_1", width), ("linear_2", hidden)):
        projector.add(f"{name}.weight", hidden, columns, role="vision")
        if bias:
            projector.add(f"{name}.bias", hidden, role="vision")
    return (*around.found, *layers.found, *projector.found)


def _with_bias(tensors: Tensors, name: str, shape: tuple[int, ...], copies: int) -> None:
    split: Split = "rows" if len(shape) > 1 else "replicated"
    tensors.add(f"{name}.weight", *shape, role="vision", split=split, copies=copies)
    tensors.add(f"{name}.bias", shape[0], role="vision", copies=copies)
