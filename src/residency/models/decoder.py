"""What the decoder-only architectures share: from a configuration and tensors to a ModelSpec."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from residency.errors import FileError, UnsupportedError
from residency.models.configuration import Configuration
from residency.models.mixture import Mixture, gated_matrices
from residency.models.rope import rope_spec
from residency.models.tensors import TensorFinder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, Rearrange, RopeSpec, TensorSpec

MAX_LAYERS = 1 << 12
MAX_HEAD_DIM = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The extents of a decoder, as its configuration gives them."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    norm_epsilon: float


def dimensions(config: Configuration) -> Dimensions:
    """The extents in `config`. FileError if they contradict each other."""
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    num_layers = config.integer("num_hidden_layers")
    if not config.has("head_dim") and hidden % num_heads:
        raise FileError(f"{config.source} says {num_heads} heads share {hidden} values, which leaves a remainder.")
    if num_heads % num_kv_heads:
        raise FileError(f"{config.source} says {num_heads} heads share {num_kv_heads} key-value heads unevenly.")
    if num_layers > MAX_LAYERS:
        raise FileError(f"{config.source} claims {num_layers} layers; more than {MAX_LAYERS} cannot be right.")
    head_dim = config.integer("head_dim", hidden // num_heads)
    if head_dim > MAX_HEAD_DIM:
        raise FileError(f"{config.source} claims heads of {head_dim} values; more than {MAX_HEAD_DIM} cannot be right.")
    for key in ("v_head_dim", "rotary_dim"):
        if config.integer(key, head_dim) != head_dim:
            raise UnsupportedError(
                f"{config.source} says heads have {head_dim} values and {key} is {config.integer(key)}; "
                "only equal ones are supported."
            )
    return Dimensions(
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context_tokens=config.integer("max_position_embeddings"),
        norm_epsilon=config.number("rms_norm_eps"),
    )


def global_rope(checkpoint: Checkpoint, config: Configuration, extents: Dimensions) -> RopeSpec:
    """The rotary embedding of a model whose layers all share one."""
    parameters = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    return rope_spec(
        parameters,
        rope_theta=config.number("rope_theta", 10000.0),
        head_dim=extents.head_dim,
        max_context_tokens=extents.max_context_tokens,
        divisors=_gguf_divisors(checkpoint, extents.head_dim // 2),
    )


def window_or_none(window_tokens: int | None, extents: Dimensions) -> int | None:
    """A window that the context cannot outgrow is none."""
    return None if window_tokens is None or window_tokens >= extents.max_context_tokens else window_tokens


def optional_windows(config: Configuration, extents: Dimensions) -> list[int | None]:
    """Each layer's window in models that ask for it by use_sliding_window (Qwen): the layers from max_window_layers."""
    if not config.flag("use_sliding_window", False):
        return [None] * extents.num_layers
    window = window_or_none(config.integer("sliding_window", 4096), extents)
    if config.has("layer_types"):
        kinds = layer_kinds(config, extents)
        return [window if kind == "sliding_attention" else None for kind in kinds]
    first = config.integer("max_window_layers", 28, least=0)
    return [window if layer >= first else None for layer in range(extents.num_layers)]


def layer_kinds(config: Configuration, extents: Dimensions) -> list[str]:
    """config.json's layer_types: sliding_attention or full_attention."""
    kinds = config.texts("layer_types", extents.num_layers)
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise UnsupportedError(f"{config.source} asks for layers of the type {kind[:80]!r}, not supported.")
    return kinds


def build_model(
    checkpoint: Checkpoint,
    config: Configuration,
    extents: Dimensions,
    finder: TensorFinder,
    layers: Sequence[LayerSpec],
    *,
    norm: Rearrange = Rearrange.NONE,
    embedding_scale: float = 1.0,
    tied_by_default: bool = False,
) -> ModelSpec:
    """The model around its layers. Checks that no tensor of the checkpoint is left over."""
    has_vocabulary = config.has("vocab_size")
    vocabulary = config.integer("vocab_size") if has_vocabulary else finder.rows("model.embed_tokens.weight")
    matrix = (vocabulary, extents.hidden)
    tied = config.flag("tie_word_embeddings", tied_by_default)
    model = ModelSpec(
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        vocabulary=vocabulary,
        hidden=extents.hidden,
        max_context_tokens=extents.max_context_tokens,
        norm_epsilon=extents.norm_epsilon,
        embedding_scale=embedding_scale,
        embedding=finder.take("model.embed_tokens.weight", matrix),
        layers=tuple(layers),
        final_norm=finder.take("model.norm.weight", (extents.hidden,), norm),
        head=None if tied else finder.take("lm_head.weight", matrix),
    )
    finder.refuse_unused(["lm_head.weight"] if tied else [])
    return model


def build_layer(
    finder: TensorFinder,
    extents: Dimensions,
    layer: int,
    attention: AttentionSpec,
    *,
    activation: Literal["silu", "gelu_tanh"] = "silu",
    norm: Rearrange = Rearrange.NONE,
    qk: Rearrange = Rearrange.NONE,
    norms_after: bool = False,
    mixture: Mixture | None = None,
) -> LayerSpec:
    """One block, its tensors in the order in which a token meets them; `norms_after` also has norms after its parts.

    Its feed-forward network is a `mixture` of experts where there is one.
    """
    hidden = extents.hidden
    q_rows, kv_rows = extents.num_heads * extents.head_dim, extents.num_kv_heads * extents.head_dim

    def take(part: str, *shape: int, rearrange: Rearrange = Rearrange.NONE) -> TensorSpec:
        heads = {"self_attn.q_proj": extents.num_heads, "self_attn.k_proj": extents.num_kv_heads}
        shared = heads.get(part.rpartition(".")[0]) if rearrange is Rearrange.UNPERMUTE_ROPE else None
        return finder.take(f"model.layers.{layer}.{part}", shape, rearrange, shared)

    tensors = [
        take("input_layernorm.weight", hidden, rearrange=norm),
        take("self_attn.q_proj.weight", q_rows, hidden, rearrange=qk),
        take("self_attn.k_proj.weight", kv_rows, hidden, rearrange=qk),
        take("self_attn.v_proj.weight", kv_rows, hidden),
    ]
    if attention.bias:
        tensors.append(take("self_attn.q_proj.bias", q_rows, rearrange=qk))
        tensors.append(take("self_attn.k_proj.bias", kv_rows, rearrange=qk))
        tensors.append(take("self_attn.v_proj.bias", kv_rows))
    if attention.qk_norm:
        tensors.append(take("self_attn.q_norm.weight", extents.head_dim, rearrange=norm))
        tensors.append(take("self_attn.k_norm.weight", extents.head_dim, rearrange=norm))
    tensors.append(take("self_attn.o_proj.weight", hidden, q_rows))
    tensors.append(take("post_attention_layernorm.weight", hidden, rearrange=norm))
    if norms_after:
        tensors.append(take("pre_feedforward_layernorm.weight", hidden, rearrange=norm))
    if mixture is None:
        tensors += gated_matrices(finder, f"model.layers.{layer}.mlp", hidden, extents.intermediate)
    else:
        tensors += mixture.tensors(finder, layer, hidden)
    if norms_after:
        tensors.append(take("post_feedforward_layernorm.weight", hidden, rearrange=norm))
    mlp = MlpSpec(intermediate=extents.intermediate, activation=activation) if mixture is None else mixture.spec
    return LayerSpec(attention=attention, mlp=mlp, tensors=tuple(finder.with_orders(tensors)))


def qwen_decoder(
    checkpoint: Checkpoint,
    config: Configuration,
    *,
    bias: bool = False,
    qk_norm: bool = False,
    mixture_of: Callable[[int], Mixture | None] = lambda layer: None,
) -> ModelSpec:
    """What Qwen's generations share; `mixture_of` says which layers are mixtures of experts."""
    check_activation(config, "hidden_act", "silu", {"silu", "swish"})
    extents = dimensions(config)
    finder = TensorFinder(checkpoint)
    rope = global_rope(checkpoint, config, extents)
    layers = []
    for layer, window_tokens in enumerate(optional_windows(config, extents)):
        attention = AttentionSpec(
            num_heads=extents.num_heads,
            num_kv_heads=extents.num_kv_heads,
            head_dim=extents.head_dim,
            scale=extents.head_dim**-0.5,
            rope=rope,
            window_tokens=window_tokens,
            bias=bias,
            qk_norm=qk_norm,
        )
        layers.append(build_layer(finder, extents, layer, attention, mixture=mixture_of(layer)))
    return build_model(checkpoint, config, extents, finder, layers)


def check_activation(config: Configuration, key: str, default: str, expected: set[str]) -> None:
    """UnsupportedError if the configuration's activation is not the one that the architecture's kernels compute."""
    activation = config.text(key, default)
    if activation not in expected:
        raise UnsupportedError(f"{config.source} asks for the activation {activation[:80]!r}, not supported here.")


def _gguf_divisors(checkpoint: Checkpoint, count: int) -> tuple[float, ...] | None:
    """GGUF's rope_freqs.weight: what Llama 3's scaling divides each frequency by. None if there is none."""
    source = checkpoint.tensors.get("rope_freqs.weight") if checkpoint.kind == "gguf" else None
    if source is None:
        return None
    if source.shape != (count,) or source.format.name != "F32":
        raise FileError(f"{source.path} holds rope_freqs.weight of shape {source.shape}; {count} float32 are needed.")
    try:
        with open(source.path, "rb") as file:
            file.seek(source.offset)
            values = struct.unpack(f"<{count}f", file.read(source.num_bytes))
    except (OSError, struct.error) as error:
        raise FileError(f"{source.path} could not be read: {error}.") from error
    if not all(0 < value < float("inf") for value in values):
        raise FileError(f"{source.path} holds rope_freqs.weight with values that are not positive; fetch it again.")
    return values
