"""A small model and a small machine, in round numbers."""

from collections.abc import Callable

import pytest

from residency.formats import F32, Q8_0
from residency.hardware import Figure, Machine, ThreadRate, Tier
from residency.spec.model import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec, TensorSpec

MakeModel = Callable[..., ModelSpec]


@pytest.fixture
def make_model() -> MakeModel:
    """A model of hidden 64 with one layer for each window given (None: full attention)."""

    def make(*windows: int | None, max_context_tokens: int = 4096, vocabulary: int = 320) -> ModelSpec:
        return ModelSpec(
            name="Tiny",
            architecture="llama",
            vocabulary=vocabulary,
            hidden=64,
            max_context_tokens=max_context_tokens,
            norm_epsilon=1e-6,
            embedding_scale=1.0,
            embedding=TensorSpec(name="model.embed_tokens.weight", shape=(vocabulary, 64), format=Q8_0),
            layers=tuple(_layer(index, window) for index, window in enumerate(windows)),
            final_norm=TensorSpec(name="model.norm.weight", shape=(64,), format=F32),
            head=None,
        )

    return make


@pytest.fixture
def machine() -> Machine:
    """Two threads; 10 GB/s on one, 15 on both; no overhead; arithmetic too quick to wait for."""
    values = {
        "matrix_int8_operations_per_second": 1e15,
        "vector_f32_operations_per_second": 1e15,
        "read_efficiency": 1.0,
        "step_overhead_seconds": 0.0,
        "layer_overhead_seconds": 0.0,
    }
    rates = (ThreadRate(threads=1, bytes_per_second=10e9), ThreadRate(threads=2, bytes_per_second=15e9))
    ram = Tier(name="RAM", kind="ram", capacity_bytes=2_000_000_000, available_bytes=1_000_000_000, read_rates=rates)
    return Machine(
        name="small",
        processor="paper",
        threads=2,
        cores=2,
        instruction_sets=(),
        caches=(),
        tiers=(ram,),
        links=(),
        figures={name: Figure(value=value, origin="measured") for name, value in values.items()},
    )


def _layer(index: int, window_tokens: int | None) -> LayerSpec:
    shapes = {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (96, 64),
        "mlp.up_proj": (96, 64),
        "mlp.down_proj": (64, 96),
    }
    tensors = tuple(
        TensorSpec(name=f"model.layers.{index}.{name}.weight", shape=shape, format=Q8_0)
        for name, shape in shapes.items()
    )
    rope = RopeSpec(inverse_frequencies=(1.0,) * 8, factor=1.0 if window_tokens is None else 2.0)
    attention = AttentionSpec(
        num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, rope=rope, window_tokens=window_tokens
    )
    return LayerSpec(attention=attention, mlp=MlpSpec(intermediate=96, activation="silu"), tensors=tensors)
