"""The vision towers that multimodal checkpoints hold beside their text model: loaded with it, never read while text is
decoded.
"""

from residency.models.configuration import Configuration
from residency.models.planned.parts import Tensors, number_format
from residency.spec.model import Split, TensorSpec


def siglip(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Gemma 3's: SigLIP and a projection to the text model's width."""
    projector = Tensors(prefix="multi_modal_projector.", format=number_format(c))
    width = c.section("vision_config").integer("hidden_size", 1152)
    projector.add("mm_input_projection_weight", width, hidden, role="vision")
    projector.add("mm_soft_emb_norm.weight", width, role="vision")
    return (*siglip_encoder(c), *projector.found)


def siglip_encoder(
    c: Configuration, *, prefix: str = "vision_tower.vision_model.", has_head: bool | None = None
) -> list[TensorSpec]:
    """SigLIP (arXiv 2303.15343), with its head unless the configuration, or `has_head`, says otherwise."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 1152), v.integer("intermediate_size", 4304)
    patch, channels = v.integer("patch_size", 14), v.integer("num_channels", 3)
    around = Tensors(prefix=prefix, format=number_format(c))
    around.add("embeddings.patch_embedding.weight", width, channels, patch, patch, role="vision")
    around.add("embeddings.patch_embedding.bias", width, role="vision")
    positions = (v.integer("image_size", 896) // patch) ** 2
    around.add("embeddings.position_embedding.weight", positions, width, role="vision")
    layers = _clip_layers(around, v.integer("num_hidden_layers", 27), width, intermediate)
    with_bias(around, "post_layernorm", (width,), 1)
    if v.flag("vision_use_head", True) if has_head is None else has_head:
        _attention_pooling(around, width, intermediate)
    return [*around.found, *layers.found]


def _clip_layers(around: Tensors, copies: int, width: int, intermediate: int) -> Tensors:
    layers = Tensors(prefix=f"{around.prefix}encoder.layers.{{}}.", format=around.format)
    for name in ("layer_norm1", "layer_norm2"):
        with_bias(layers, name, (width,), copies)
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        with_bias(layers, f"self_attn.{name}", (width, width), copies)
    with_bias(layers, "mlp.fc1", (intermediate, width), copies)
    with_bias(layers, "mlp.fc2", (width, intermediate), copies)
    return layers


def uncounted(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Nothing: of a model whose notes say that its towers are left out."""
    for key in ("audio_config", "vision_config", "vision_soft_tokens_per_image", "audio_soft_tokens_per_image"):
        c.has(key)
    return ()


def _attention_pooling(around: Tensors, width: int, intermediate: int) -> None:
    """SigLIP's head: one query that attends to all patches."""
    around.add("head.probe", 1, 1, width, role="vision")
    around.add("head.attention.in_proj_weight", 3 * width, width, role="vision")
    around.add("head.attention.in_proj_bias", 3 * width, role="vision")
    with_bias(around, "head.attention.out_proj", (width, width), 1)
    with_bias(around, "head.layernorm", (width,), 1)
    with_bias(around, "head.mlp.fc1", (intermediate, width), 1)
    with_bias(around, "head.mlp.fc2", (width, intermediate), 1)


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


def llama4_vision(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Llama 4's: patches as one matrix, a class token, a projection that shuffles pixels."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 768), v.integer("intermediate_size", 5632)
    patch, channels = v.integer("patch_size", 14), v.integer("num_channels", 3)
    between, after = v.integer("projector_input_dim", 4096), v.integer("projector_output_dim", 4096)
    around = Tensors(prefix="vision_model.", format=number_format(c))
    around.add("class_embedding", width, role="vision")
    patches = (v.integer("image_size", 448) // patch) ** 2
    around.add("positional_embedding_vlm", patches + 1, width, role="vision")
    around.add("patch_embedding.linear.weight", width, channels * patch**2, role="vision", split="rows")
    for name in ("layernorm_pre", "layernorm_post"):
        with_bias(around, name, (width,), 1)
    around.add("vision_adapter.mlp.fc1.weight", between, intermediate, role="vision", split="rows")
    around.add("vision_adapter.mlp.fc2.weight", after, between, role="vision", split="columns")
    copies = v.integer("num_hidden_layers", 34)
    layers = Tensors(prefix="vision_model.model.layers.{}.", format=around.format)
    for name in ("input_layernorm", "post_attention_layernorm"):
        with_bias(layers, name, (width,), copies)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        with_bias(layers, f"self_attn.{name}", (width, width), copies)
    with_bias(layers, "mlp.fc1", (intermediate, width), copies)
    with_bias(layers, "mlp.fc2", (width, intermediate), copies)
    projector = Tensors(prefix="multi_modal_projector.", format=around.format)
    projector.add("linear_1.weight", hidden, v.integer("vision_output_dim", 4096), role="vision", split="rows")
    return (*around.found, *layers.found, *projector.found)


def llava(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """LLaVA's and LLaVA-NeXT's: CLIP or SigLIP, and a projection of the output of one of its layers or more."""
    v = c.section("vision_config")
    encoder = siglip_encoder(c) if v.says("model_type", "siglip_vision_model") else _clip_encoder(c)
    projector = Tensors(prefix="multi_modal_projector.", format=number_format(c))
    bias = c.flag("multimodal_projector_bias", True)
    layers = c.length("vision_feature_layer") if c.is_list("vision_feature_layer") else 1
    features = layers * v.integer("hidden_size", 1024)
    for name, columns in (("linear_1", features), ("linear_2", hidden)):
        projector.add(f"{name}.weight", hidden, columns, role="vision")
        if bias:
            projector.add(f"{name}.bias", hidden, role="vision")
    if c.has("use_image_newline_parameter") or c.has("image_grid_pinpoints"):
        projector.found.append(Tensors(prefix="", format=projector.format).add("image_newline", hidden, role="vision"))
    return (*encoder, *projector.found)


def _clip_encoder(c: Configuration) -> list[TensorSpec]:
    """CLIP's vision encoder (arXiv 2103.00020)."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 1024), v.integer("intermediate_size", 4096)
    patch, channels = v.integer("patch_size", 14), v.integer("num_channels", 3)
    around = Tensors(prefix="vision_tower.vision_model.", format=number_format(c))
    around.add("embeddings.class_embedding", width, role="vision")
    around.add("embeddings.patch_embedding.weight", width, channels, patch, patch, role="vision")
    positions = (v.integer("image_size", 336) // patch) ** 2 + 1
    around.add("embeddings.position_embedding.weight", positions, width, role="vision")
    for name in ("pre_layrnorm", "post_layernorm"):
        with_bias(around, name, (width,), 1)
    layers = _clip_layers(around, v.integer("num_hidden_layers", 24), width, intermediate)
    return [*around.found, *layers.found]


def moonvit(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Kimi-VL's (arXiv 2504.07491): MoonViT, at the image's own resolution, and a merger of neighbours."""
    v = c.section("vision_config")
    width, intermediate = v.integer("hidden_size", 1152), v.integer("intermediate_size", 4304)
    around = Tensors(prefix="vision_tower.", format=number_format(c))
    patch = v.integer("patch_size", 14)
    around.add("patch_embed.proj.weight", width, 3, patch, patch, role="vision")
    around.add("patch_embed.proj.bias", width, role="vision")
    high, wide = v.integer("init_pos_emb_height", 64), v.integer("init_pos_emb_width", 64)
    around.add("patch_embed.pos_emb.weight", high, wide, width, role="vision")
    copies = v.integer("num_hidden_layers", 27)
    layers = Tensors(prefix="vision_tower.encoder.blocks.{}.", format=around.format)
    for name in ("norm0", "norm1"):
        with_bias(layers, name, (width,), copies)
    for name, shape in (("wqkv", (3 * width, width)), ("wo", (width, width))):
        with_bias(layers, name, shape, copies)
    with_bias(layers, "mlp.fc0", (intermediate, width), copies)
    with_bias(layers, "mlp.fc1", (width, intermediate), copies)
    with_bias(around, "encoder.final_layernorm", (width,), 1)
    projector = Tensors(prefix="multi_modal_projector.", format=around.format)
    high, wide = v.integers("merge_kernel_size") or (2, 2)
    with_bias(projector, "pre_norm", (width,), 1)
    merged = high * wide * width
    for name, rows in (("linear_1", merged), ("linear_2", hidden)):  # not split: vLLM keeps them whole on each rank
        projector.add(f"{name}.weight", rows, merged, role="vision")
        projector.add(f"{name}.bias", rows, role="vision")
    return (*around.found, *layers.found, *projector.found)


def qwen2_vl(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Qwen2-VL's (arXiv 2409.12191): patches of two frames, and a merger of neighbours."""
    v = c.section("vision_config")
    width = v.integer("embed_dim", 1280)
    intermediate, copies = v.integer("mlp_ratio", 4) * width, _depth(v)
    around, layers = _qwen_encoder(c, v, width, copies, prefix="visual.", norm_bias=True)
    with_bias(layers, "mlp.fc1", (intermediate, width), copies)
    with_bias(layers, "mlp.fc2", (width, intermediate), copies)
    with_bias(around, "merger.ln_q", (width,), 1)
    _qwen_merger(around, v, width, hidden, names=("merger.mlp.0", "merger.mlp.2"))
    return (*around.found, *layers.found)


def qwen2_5_vl(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Qwen2.5-VL's (arXiv 2502.13923): Qwen2-VL's with RMS norms and a gated network."""
    v = c.section("vision_config")
    width, intermediate, copies = v.integer("hidden_size", 1280), v.integer("intermediate_size", 3420), _depth(v)
    around, layers = _qwen_encoder(c, v, width, copies, prefix="visual.", norm_bias=False)
    for name, shape in (
        ("gate", (intermediate, width)),
        ("up", (intermediate, width)),
        ("down", (width, intermediate)),
    ):
        with_bias(layers, f"mlp.{name}_proj", shape, copies)
    around.add("merger.ln_q.weight", width, role="vision")
    _qwen_merger(around, v, width, hidden, names=("merger.mlp.0", "merger.mlp.2"))
    return (*around.found, *layers.found)


def qwen3_vl(c: Configuration, hidden: int) -> tuple[TensorSpec, ...]:
    """Qwen3-VL's and Qwen3.5's: learned positions, and in the former mergers after several layers."""
    v = c.section("vision_config")
    width, intermediate, copies = v.integer("hidden_size", 1152), v.integer("intermediate_size", 4304), _depth(v, 27)
    around, layers = _qwen_encoder(c, v, width, copies, prefix="model.visual.", norm_bias=True)
    with_bias(layers, "mlp.linear_fc1", (intermediate, width), copies)
    with_bias(layers, "mlp.linear_fc2", (width, intermediate), copies)
    around.add("patch_embed.proj.bias", width, role="vision")
    around.add("pos_embed.weight", v.integer("num_position_embeddings", 2304), width, role="vision")
    with_bias(around, "merger.norm", (width,), 1)
    _qwen_merger(around, v, width, hidden, names=("merger.linear_fc1", "merger.linear_fc2"))
    deep = len(v.integers("deepstack_visual_indexes"))
    for number in range(deep):
        merger = f"deepstack_merger_list.{number}"
        with_bias(around, f"{merger}.norm", (width * _merged(v),), 1)
        _qwen_merger(around, v, width, hidden, names=(f"{merger}.linear_fc1", f"{merger}.linear_fc2"))
    return (*around.found, *layers.found)


def _qwen_encoder(
    c: Configuration, v: Configuration, width: int, copies: int, *, prefix: str, norm_bias: bool
) -> tuple[Tensors, Tensors]:
    """The patches, and of each layer its norms and its attention."""
    around = Tensors(prefix=prefix, format=number_format(c))
    patch, channels = v.integer("patch_size", 14), v.integer("in_channels", v.integer("in_chans", 3))
    frames = v.integer("temporal_patch_size", 2)
    around.add("patch_embed.proj.weight", width, channels, frames, patch, patch, role="vision")
    layers = Tensors(prefix=prefix + "blocks.{}.", format=around.format)
    for name in ("norm1", "norm2"):
        layers.add(f"{name}.weight", width, role="vision", copies=copies)
        if norm_bias:
            layers.add(f"{name}.bias", width, role="vision", copies=copies)
    with_bias(layers, "attn.qkv", (3 * width, width), copies)
    with_bias(layers, "attn.proj", (width, width), copies)
    return around, layers


def _qwen_merger(around: Tensors, v: Configuration, width: int, hidden: int, *, names: tuple[str, str]) -> None:
    merged = width * _merged(v)
    with_bias(around, names[0], (merged, merged), 1)
    with_bias(around, names[1], (hidden, merged), 1)


def _depth(v: Configuration, default: int = 32) -> int:
    return v.integer("depth", default)


def _merged(v: Configuration) -> int:
    """Patches that become one token."""
    return v.integer("spatial_merge_size", 2) ** 2


def with_bias(tensors: Tensors, name: str, shape: tuple[int, ...], copies: int) -> None:
    """A vision tower's tensor and its bias, in `copies`."""
    split: Split = "rows" if len(shape) > 1 else "replicated"
    tensors.add(f"{name}.weight", *shape, role="vision", split=split, copies=copies)
    tensors.add(f"{name}.bias", shape[0], role="vision", copies=copies)
