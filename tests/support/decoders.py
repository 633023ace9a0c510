"""Models of the well-known decoders' extents, as ModelSpec alone."""

from residency.formats import BF16
from residency.spec.model import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, Role, Split, TensorSpec


def decoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    vocabulary: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    tied: bool = False,
    bias: bool = False,
    gated: bool = True,
    layer_norm: bool = False,
    context_tokens: int = 131072,
) -> ModelSpec:
    """A Llama-like model (`bias`: on q, k and v), or with `layer_norm` and not `gated` a GPT-like one."""
    kv_heads, head_dim = kv_heads or heads, head_dim or hidden // heads
    q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
    matrices: dict[str, tuple[int, int, Split]] = {
        "self_attn.q_proj": (q_rows, hidden, "rows"),
        "self_attn.k_proj": (kv_rows, hidden, "kv_heads"),
        "self_attn.v_proj": (kv_rows, hidden, "kv_heads"),
        "self_attn.o_proj": (hidden, q_rows, "columns"),
        "mlp.up_proj": (intermediate, hidden, "rows"),
        "mlp.down_proj": (hidden, intermediate, "columns"),
    }
    if gated:
        matrices["mlp.gate_proj"] = (intermediate, hidden, "rows")

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}."
        norms = ("input_layernorm", "post_attention_layernorm")
        kinds = ("weight", "bias") if layer_norm else ("weight",)
        tensors = [_tensor(f"{prefix}{norm}.{kind}", (hidden,), "norm") for norm in norms for kind in kinds]
        for name, (rows, columns, split) in matrices.items():
            tensors.append(_tensor(f"{prefix}{name}.weight", (rows, columns), "matrix", split))
            if bias and split in ("rows", "kv_heads") and "attn" in name:
                tensors.append(_tensor(f"{prefix}{name}.bias", (rows,), "bias", split))
        return LayerSpec(
            attention=AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=1.0),
            mlp=MlpSpec(intermediate=intermediate, activation="silu" if gated else "gelu", gated=gated),
            tensors=tuple(tensors),
        )

    return ModelSpec(
        name="Decoder",
        architecture="llama",
        vocabulary=vocabulary,
        hidden=hidden,
        max_context_tokens=context_tokens,
        norm_epsilon=1e-5,
        embedding_scale=1.0,
        embedding=_tensor("model.embed_tokens.weight", (vocabulary, hidden), "embedding", "vocabulary"),
        layers=tuple(layer(index) for index in range(layers)),
        final_norm=_tensor("model.norm.weight", (hidden,), "norm"),
        head=None if tied else _tensor("lm_head.weight", (vocabulary, hidden), "head", "vocabulary"),
    )


def _tensor(name: str, shape: tuple[int, ...], role: Role, split: Split = "replicated") -> TensorSpec:
    return TensorSpec(name=name, shape=shape, format=BF16, role=role, split=split)


def llama_2_7b() -> ModelSpec:
    """6.74 billion parameters."""
    return decoder(hidden=4096, layers=32, heads=32, intermediate=11008, vocabulary=32000, context_tokens=4096)


def llama_3_1_8b() -> ModelSpec:
    """8.03 billion parameters."""
    return decoder(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256)


def llama_3_2_1b() -> ModelSpec:
    """1.24 billion parameters."""
    return decoder(
        hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, intermediate=8192, vocabulary=128256, tied=True
    )


def qwen_2_5_1_5b() -> ModelSpec:
    """1.54 billion parameters."""
    return decoder(
        hidden=1536,
        layers=28,
        heads=12,
        kv_heads=2,
        intermediate=8960,
        vocabulary=151936,
        tied=True,
        bias=True,
        context_tokens=32768,
    )


def gpt_3_22b() -> ModelSpec:
    """The 22-billion model of arXiv 2205.05198: 48 layers of 6144 with 64 heads."""
    return decoder(
        hidden=6144,
        layers=48,
        heads=64,
        intermediate=4 * 6144,
        vocabulary=51200,
        gated=False,
        layer_norm=True,
        tied=True,
        context_tokens=2048,
    )
