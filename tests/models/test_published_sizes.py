"""Sizes that other programs print for published models, each to the digits that they print."""

from typing import Any

import pytest

from residency.models.planned import planned_spec
from residency.models.specs import named_spec, requantized
from residency.spec import kv_format_named, rank_bytes
from residency.spec.model import ModelSpec

GIB, MIB = 1024**3, 1024**2

# The column "size" of llama-bench: what the tensors hold. github.com/ggml-org/llama.cpp, discussions 4167 (Llama 2)
# and 15396 (gpt-oss), and the tables that users of the program publish.
LLAMA_BENCH_GIB = [
    ("Llama-2-7b", "gguf-f16", 12.55),
    ("Llama-2-7b", "q8_0", 6.67),
    ("Llama-2-7b", "q4_0", 3.56),
    ("Llama-2-13b", "q4_k_m", 7.33),
    ("Llama-3.1-8B", "gguf-f16", 14.96),
    ("Llama-3.1-8B", "q8_0", 7.95),
    ("Llama-3.1-8B", "q4_k_m", 4.58),
    ("Llama-3.1-8B", "q4_0", 4.33),
    ("Llama-3.1-70B", "q4_k_m", 39.59),
    ("Llama-3.2-1B", "q4_k_m", 762.81 / 1024),
    ("Llama-3.2-3B", "q4_k_m", 1.87),
    ("Mistral-7B-v0.1", "q4_k_m", 4.07),
    ("Mixtral-8x7B-v0.1", "q4_k_m", 26.49),
    ("Qwen2.5-1.5B", "q4_k_m", 934.69 / 1024),
    ("Qwen2.5-7B", "q4_k_m", 4.36),
    ("Qwen2.5-14B", "q4_k_m", 8.37),
    ("Qwen2.5-32B", "q4_k_m", 18.48),
    ("Qwen2.5-32B", "q8_0", 32.42),
    ("Qwen3-8B", "q4_k_m", 4.68),
    ("Qwen3-30B-A3B", "q4_k_m", 17.28),
    ("Phi-3-mini-4k-instruct", "q4_k_m", 2.23),
    ("phi-4", "q4_k_m", 8.43),
    ("gemma-3-4b-it", "q4_k_m", 2.31),
    ("gemma-3-12b-it", "q4_k_m", 6.79),
    ("gemma-3-27b-it", "q4_k_m", 15.40),
    ("DeepSeek-V2-Lite", "q4_k_m", 9.65),
    ("DeepSeek-V2-Lite", "q4_0", 8.29),
    ("DeepSeek-V3", "q4_k_m", 376.65),
    ("Llama-4-Scout-17B-16E", "q4_k_m", 60.86),
    ("gpt-oss-20b", "mxfp4_moe", 11.27),
    ("gpt-oss-120b", "mxfp4_moe", 59.02),
]


@pytest.mark.parametrize(("name", "label", "gib"), LLAMA_BENCH_GIB)
def test_a_gguf_file_has_the_size_that_llama_bench_prints(name: str, label: str, gib: float) -> None:
    assert requantized(named_spec(name), label).weight_bytes / GIB == pytest.approx(gib, abs=0.0051)


# "Model weights take", with the table of rotations: github.com/vllm-project/vllm, issues 10517, 13882 and pull 12569.
VLLM_GIB = [
    ("Llama-3.1-8B", None, 14.9888, 0.0001),
    ("Llama-3.1-70B", "w8a8", 67.7229, 0.02),
    ("Qwen2.5-7B-Instruct", "awq", 5.2032, 0.01),
]


@pytest.mark.parametrize(("name", "label", "gib", "tolerance_gib"), VLLM_GIB)
def test_weights_take_what_older_vllm_logged(name: str, label: str | None, gib: float, tolerance_gib: float) -> None:
    model = named_spec(name)
    tables = sum(2 * table.width * table.positions for table in model.rotations)
    weights = rank_bytes(model if label is None else requantized(model, label))
    assert (weights + tables) / GIB == pytest.approx(gib, abs=tolerance_gib)


# A float16 cache as llama.cpp logs it: github.com/ggml-org/llama.cpp, issues 6849, 9229 and 10547, and
# github.com/JamePeng/llama-cpp-python, pull 1.
LLAMA_CPP_KV_MIB = [
    ("Phi-3-mini-128k-instruct", 131_328, 49_248),
    ("Llama-2-7b", 4096, 2048),
    ("Qwen2.5-7B", 2048, 112),
    ("Qwen2.5-Coder-32B", 4096, 1024),
]


@pytest.mark.parametrize(("name", "tokens", "mib"), LLAMA_CPP_KV_MIB)
def test_a_cache_has_the_size_that_llama_cpp_logs(name: str, tokens: int, mib: int) -> None:
    assert _cache_bytes(named_spec(name), tokens) == mib * MIB


def test_keys_of_qwen3_235b_take_what_sglang_logs() -> None:
    """vllm-project/vllm issue 21348: 367,404 tokens on four ranks, "K size: 8.23 GB", in units of 2^30."""
    keys = _cache_bytes(named_spec("Qwen3-235B-A22B"), 367_404) / 2 / 4
    assert keys / GIB == pytest.approx(8.23, abs=0.0051)


@pytest.mark.parametrize(("blocks", "gib"), [(1952, 3.81), (1478, 2.89)])
def test_blocks_of_16_tokens_fill_what_vllm_leaves(blocks: int, gib: float) -> None:
    """vllm-project/vllm issue 10517."""
    assert _cache_bytes(named_spec("Llama-3.1-8B"), 16 * blocks) / GIB == pytest.approx(gib, abs=0.0051)


# Gated delta networks in llama.cpp, MiB of one sequence: inputs of the convolution and states, in float32, and what
# attention adds at 65,536 tokens. github.com/ggml-org/llama.cpp, pulls 23792 and 23269.
DELTA_NETS = [
    (
        {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4},
        48,
        5.625,
        144.0,
    ),
    (
        {"hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2},
        32,
        2.8125,
        60.0,
    ),
]


@pytest.mark.parametrize(("changes", "value_heads", "inputs_mib", "states_mib"), DELTA_NETS)
def test_delta_networks_keep_what_llama_cpp_logs(
    changes: dict[str, Any], value_heads: int, inputs_mib: float, states_mib: float
) -> None:
    others = {"model_type": "qwen3_5_text", "dtype": "bfloat16", "head_dim": 256, "vocab_size": 248_320}
    values = {**others, **changes, "intermediate_size": 4096, "linear_num_value_heads": value_heads}
    model = planned_spec("model", "config.json", {**values, "max_position_embeddings": 262_144})
    mixers = [layer.mixer for layer in model.layers if layer.mixer is not None]
    inputs = sum(4 * mixer.recent_values * 3 // 4 for mixer in mixers)  # it keeps three of the four
    assert (inputs / MIB, sum(4 * mixer.state_values for mixer in mixers) / MIB) == (inputs_mib, states_mib)


def _cache_bytes(model: ModelSpec, tokens: int) -> int:
    return sum(state.sequence_bytes(tokens) for state in model.states(kv_format_named("f16")))
