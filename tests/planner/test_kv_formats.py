"""What a cache of each format takes, to the byte, and which one a model gets when nobody asks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from residency.errors import UsageError
from residency.hardware import Machine
from residency.planner import plan_run
from residency.planner.buffers import activation_buffers
from residency.planner.memory import kv_groups
from residency.planner.quality import default_kv
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS, KvName

MakeModel = Callable[..., ModelSpec]


def with_heads(model: ModelSpec, head_dim: int, *, bias: bool = False, architecture: str = "llama") -> ModelSpec:
    layers = tuple(
        replace(layer, attention=replace(layer.grouped_attention, head_dim=head_dim, bias=bias))
        for layer in model.layers
    )
    return replace(model, layers=layers, architecture=architecture)


@pytest.mark.parametrize(
    ("kv_format", "page_bytes"),
    [("F32", 16 * 2 * 2 * 256), ("F16", 16 * 2 * 2 * 128), ("INT8", 16 * 2 * 2 * 66), ("INT4", 16 * 2 * 2 * 34)],
)
def test_a_page_holds_codes_and_scales_of_16_tokens(make_model: MakeModel, kv_format: KvName, page_bytes: int) -> None:
    """Two key-value heads of 64 values; keys and values."""
    model = with_heads(make_model(None), 64)
    (group,) = kv_groups(model, context_tokens=100, chunk_tokens=32, max_sequences=1, kv_format=kv_format)
    assert group.page_bytes == page_bytes


@pytest.mark.parametrize(("architecture", "head_dim"), [("llama", 64), ("qwen2", 64), ("qwen2", 128)])
def test_int8_is_the_default_where_it_was_measured(make_model: MakeModel, architecture: str, head_dim: int) -> None:
    assert default_kv(with_heads(make_model(None), head_dim, architecture=architecture)) == "INT8"


@pytest.mark.parametrize(("architecture", "head_dim"), [("llama", 32), ("gemma3", 256), ("qwen3", 128)])
def test_float16_is_the_default_where_nobody_measured(make_model: MakeModel, architecture: str, head_dim: int) -> None:
    assert default_kv(with_heads(make_model(None), head_dim, architecture=architecture)) == "F16"


def test_int4_is_refused_for_heads_that_its_runs_do_not_divide(make_model: MakeModel, machine: Machine) -> None:
    with pytest.raises(UsageError, match=r"multiple of 32 values and Tiny has 80; use --kv int8"):
        plan_run(
            with_heads(make_model(None), 80),
            machine=machine,
            runtime_bytes=0,
            budget_bytes=None,
            context_tokens=None,
            kv_format="INT4",
            model_path=Path("tiny.gguf"),
            fingerprint="abc",
        )


@pytest.mark.parametrize(
    ("bias", "kv_format", "offsets"), [(True, "INT8", 1), (True, "F16", 0), (False, "INT8", 0), (True, "INT4", 1)]
)
def test_only_quantized_keys_with_a_bias_need_room_for_their_offsets(
    make_model: MakeModel, bias: bool, kv_format: str, offsets: int
) -> None:
    buffers = activation_buffers(
        with_heads(make_model(None, None), 64, bias=bias),
        chunk_tokens=32,
        max_sequences=1,
        max_context_tokens=100,
        threads=2,
        kv=KV_FORMATS[kv_format],
    )
    assert [buffer.shape for buffer in buffers if buffer.name == "key_offsets"] == [(2, 128)] * offsets
