"""More vision towers beside text models: SmolVLM's and Idefics3's, PaliGemma's, InternVL's, GLM-4V's."""

from residency.errors import UnsupportedError
from residency.models.configuration import Configuration
from residency.models.planned.parts import Tensors, number_format
from residency.models.planned.vision import siglip_encoder, with_bias
from residency.spec.model import TensorSpec


def idefics3(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Idefics3's (arXiv 2408.12637) and SmolVLM's: SigLIP, and a projection that shuffles pixels into channels."""
    c.section("vision_config").has("vision_use_head")
    encoder = siglip_encoder(c, prefix="model.vision_model.", has_head=False)
    width = c.section("vision_config").integer("hidden_size", 1152)
    connector = Tensors(prefix="model.connector.", format=number_format(c))
    shuffled = width * c.integer("scale_factor", 2) ** 2
    connector.add("modality_projection.proj.weight", hidden, shuffled, role="vision")
    c.section("text_config").has("pixel_shuffle_factor")
    return (*encoder, *connector.found)


def paligemma(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """PaliGemma's (arXiv 2407.07726): SigLIP and one matrix."""
    v = c.section("vision_config")
    for said_again in ("hidden_size", "projection_dim", "vocab_size"):
        c.has(said_again)
    for section in (v, c.section("text_config")):
        section.has("num_image_tokens")
    projector = Tensors(prefix="multi_modal_projector.", format=number_format(c))
    width, columns = v.integer("projection_dim", hidden), v.integer("hidden_size", 1152)
    with_bias(projector, "linear", (width, columns), 1)
    return (*siglip_encoder(c, has_head=v.flag("vision_use_head", False)), *projector.found)


def internvl(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """InternVL's (arXiv 2312.14238): a transformer whose layers are scaled, and two projections behind a shuffle."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 1024), v.integer("intermediate_size", 4096)
    (patch, _), (image, _) = _square(v, "patch_size", 14), _square(v, "image_size", 448)
    bias, qk_norm = v.flag("attention_bias", False), v.flag("use_qk_norm", False)
    around = Tensors(prefix="vision_tower.", format=number_format(c))
    around.add("embeddings.cls_token", 1, 1, width, role="vision")
    if v.flag("use_mask_token", False):
        around.add("embeddings.mask_token", 1, 1, width, role="vision")
    if v.flag("use_absolute_position_embeddings", True):
        around.add("embeddings.position_embeddings", 1, (image // patch) ** 2 + 1, width, role="vision")
    with_bias(around, "embeddings.patch_embeddings.projection", (width, v.integer("num_channels", 3), patch, patch), 1)
    norm_bias = v.text("norm_type", "layer_norm") == "layer_norm"
    if not v.flag("use_mean_pooling", True):
        with_bias(around, "layernorm", (width,), 1)
    copies = v.integer("num_hidden_layers", 24)
    layers = Tensors(prefix="vision_tower.encoder.layer.{}.", format=around.format)
    for name in ("q_proj", "k_proj", "v_proj"):
        layers.add(f"attention.{name}.weight", width, width, role="vision", split="rows", copies=copies)
        if bias:
            layers.add(f"attention.{name}.bias", width, role="vision", copies=copies)
    with_bias(layers, "attention.projection_layer", (width, width), copies)
    scales = ("attention.q_norm.weight", "attention.k_norm.weight") if qk_norm else ()
    for name in (*scales, "lambda_1", "lambda_2", "layernorm_before.weight", "layernorm_after.weight"):
        layers.add(name, width, role="vision", copies=copies)
    for name in ("layernorm_before.bias", "layernorm_after.bias") if norm_bias else ():
        layers.add(name, width, role="vision", copies=copies)
    with_bias(layers, "mlp.fc1", (intermediate, width), copies)
    with_bias(layers, "mlp.fc2", (width, intermediate), copies)
    projector = Tensors(prefix="multi_modal_projector.", format=around.format)
    shuffled = width * round(1 / c.number("downsample_ratio", 0.5)) ** 2
    with_bias(projector, "layer_norm", (shuffled,), 1)
    with_bias(projector, "linear_1", (hidden, shuffled), 1)
    with_bias(projector, "linear_2", (hidden, hidden), 1)
    return (*around.found, *layers.found, *projector.found)


def glm4v(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """GLM-4.1V's and GLM-4.5V's (arXiv 2507.01006): patches of two frames, RMS norms, gated networks as wide as the
    text model, and a gated merger."""
    v = c.section("vision_config")
    width, out = v.integer("hidden_size", 1536), v.integer("out_hidden_size", hidden)
    patch, frames, channels = (
        v.integer("patch_size", 14),
        v.integer("temporal_patch_size", 2),
        v.integer("in_channels", 3),
    )
    merge, between, copies = (
        v.integer("spatial_merge_size", 2),
        v.integer("intermediate_size", 13696),
        v.integer("depth", 24),
    )
    bias = v.flag("attention_bias", False)
    around = Tensors(prefix="model.visual.", format=number_format(c))
    with_bias(around, "patch_embed.proj", (width, channels, frames, patch, patch), 1)
    positions = (v.integer("image_size", 336) // patch) ** 2
    around.add("embeddings.position_embedding.weight", positions, width, role="vision")
    for name in ("post_conv_layernorm", "post_layernorm"):
        around.add(f"{name}.weight", width, role="vision")
    with_bias(around, "downsample", (out, width, merge, merge), 1)
    around.add("merger.proj.weight", out, out, role="vision", split="rows")
    with_bias(around, "merger.post_projection_norm", (out,), 1)
    for name, shape in (("gate", (between, out)), ("up", (between, out)), ("down", (out, between))):
        around.add(f"merger.{name}_proj.weight", *shape, role="vision", split="rows")
    layers = Tensors(prefix="model.visual.blocks.{}.", format=around.format)
    for name in ("norm1", "norm2"):
        layers.add(f"{name}.weight", width, role="vision", copies=copies)
    layers.add("attn.qkv.weight", 3 * width, width, role="vision", split="rows", copies=copies)
    if bias:
        layers.add("attn.qkv.bias", 3 * width, role="vision", copies=copies)
    layers.add("attn.proj.weight", width, width, role="vision", split="rows", copies=copies)
    for name, shape in (("gate", (out, width)), ("up", (out, width)), ("down", (width, out))):
        layers.add(f"mlp.{name}_proj.weight", *shape, role="vision", split="rows", copies=copies)
    return (*around.found, *layers.found)


def _square(v: Configuration, key: str, default: int) -> tuple[int, int]:
    """A width and a height, written as one number or as two alike."""
    if not v.is_list(key):
        return (v.integer(key, default),) * 2
    found = v.integers(key)
    if len(found) != 2 or found[0] != found[1] or not found[0]:
        raise UnsupportedError(f"{v.source} sets {key} to {found}; only squares are known here.")
    return found[0], found[1]
