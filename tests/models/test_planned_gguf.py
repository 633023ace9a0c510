"""GGUF files of architectures that have no kernels here are planned from their headers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from residency.errors import FileError
from residency.models.specs import described_spec, named_spec
from residency.spec import LatentAttentionSpec, ModelSpec, MoeSpec, open_checkpoint

HIDDEN, VOCABULARY = 64, 96


def planned(path: Path, architecture: str, numbers: dict[str, Any], blocks: list["Block"]) -> ModelSpec:
    """The model of a file with these numbers in its metadata and these tensors (without "blk.N.") in its blocks."""
    writer = gguf.GGUFWriter(path / "model.gguf", architecture)
    values = {"block_count": len(blocks), "embedding_length": HIDDEN, "context_length": 4096, **numbers}
    for key, value in values.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for number, block in enumerate(blocks):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return named_spec(path / "model.gguf")


Block = dict[str, tuple[int, ...]]
ATTENDS: Block = {
    "attn_q.weight": (64, 64),
    "attn_k.weight": (32, 64),
    "attn_v.weight": (32, 64),
    "attn_output.weight": (64, 64),
}
MLP: Block = {"ffn_gate.weight": (128, 64), "ffn_up.weight": (128, 64), "ffn_down.weight": (64, 128)}
GROUPED = {"attention.head_count": 4, "attention.head_count_kv": 2}


def test_experts_are_read_as_often_as_they_are_routed_to(tmp_path: Path) -> None:
    experts: Block = {
        "ffn_gate_inp.weight": (8, 64),
        "ffn_gate_exps.weight": (8, 32, 64),
        "ffn_up_exps.weight": (8, 32, 64),
        "ffn_down_exps.weight": (8, 64, 32),
    }
    model = planned(tmp_path, "qwen3moe", {**GROUPED, "expert_used_count": 2}, [{**ATTENDS, **experts}])
    mlp = model.layers[0].mlp
    assert isinstance(mlp, MoeSpec)
    assert (mlp.num_experts, mlp.experts_per_token, mlp.intermediate) == (8, 2, 32)
    assert model.parameters - model.active_parameters == 6 * 3 * 32 * 64


def test_latent_attention_keeps_one_vector_for_all_heads(tmp_path: Path) -> None:
    numbers = {
        "attention.head_count": 4,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": 24,
        "attention.key_length": 32,
        "attention.value_length": 24,
        "rope.dimension_count": 8,
    }
    block: Block = {"attn_q.weight": (96, 64), "attn_kv_a_mqa.weight": (32, 64), "attn_kv_b.weight": (160, 24), **MLP}
    model = planned(tmp_path, "deepseek2", numbers, [block])
    assert isinstance(model.layers[0].attention, LatentAttentionSpec)
    assert [state.bytes_per_token for state in model.states()] == [(24 + 8) * 2]


def test_a_mamba_file_keeps_a_state_of_fixed_size(tmp_path: Path) -> None:
    block: Block = {
        "ssm_in.weight": (256, 64),
        "ssm_conv1d.weight": (128, 4),
        "ssm_a": (128, 16),
        "ssm_out.weight": (64, 128),
    }
    numbers = {"ssm.state_size": 16, "ssm.inner_size": 128, "ssm.conv_kernel": 4}
    (state,) = planned(tmp_path, "mamba", numbers, [block, block]).states()
    assert (state.kind, state.bytes_per_token, state.fixed_bytes) == ("recurrent", 0, 2 * 4 * 128 * (16 + 3))


def test_layers_without_key_value_heads_keep_no_keys(tmp_path: Path) -> None:
    convolution: Block = {"shortconv.conv.weight": (64, 3), "shortconv.in_proj.weight": (192, 64), **MLP}
    numbers = {"attention.head_count": 4, "attention.head_count_kv": [0, 2]}
    states = planned(tmp_path, "lfm2", numbers, [convolution, {**ATTENDS, **MLP}]).states()
    assert [(state.kind, state.layers) for state in states] == [("recurrent", 1), ("paged", 1)]


@pytest.mark.parametrize(("architecture", "windows"), [("gemma2", 2), ("gpt-oss", 2), ("llama", 4), ("phi3", 0)])
def test_a_window_is_in_the_layers_where_the_architecture_has_it(
    architecture: str, windows: int, tmp_path: Path
) -> None:
    numbers = {**GROUPED, "attention.sliding_window": 256}
    model = planned(tmp_path, architecture, numbers, [{**ATTENDS, **MLP}] * 4)
    assert sum(state.layers for state in model.states() if state.max_tokens == 256) == windows


def test_a_file_that_says_nothing_of_its_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"does not say phi2\.attention\.head_count"):
        planned(tmp_path, "phi2", {}, [{**ATTENDS, **MLP}])


def test_a_file_that_cannot_be_run_is_described_all_the_same(tmp_path: Path) -> None:
    block: Block = {"ssm_in.weight": (256, 64), "ssm_conv1d.weight": (128, 4), "ssm_out.weight": (64, 128)}
    planned(tmp_path, "mamba", {"ssm.state_size": 16, "ssm.inner_size": 128}, [block])
    assert described_spec(open_checkpoint(tmp_path / "model.gguf")).architecture == "mamba"
