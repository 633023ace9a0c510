"""Sizes that other programs print for published models, each to the digits that they print."""

from typing import Any

import pytest

from residency.models.planned import planned_spec
from residency.models.specs import named_spec, requantized
from residency.spec import kv_format_named, rank_bytes
from residency.spec.model import ModelSpec

GIB, MIB = 1024**3, 1024**2

# The columns "size" and "params" of llama-bench: what the tensors hold, GiB and billions, and where it is printed.
# github.com/ggml-org/llama.cpp: LLAMA_2 is discussion 4167, OSS 15396, README tools/llama-bench/README.md; the others
# are HALO: kyuz0/amd-strix-halo-toolboxes, benchmark/results; IGPU: eliranwong/AMD_iGPU_AI_Setup, speed_test; PI:
# geerlingguy/ai-benchmarks, issues 51 and 53; IK: ikawrakow/ik_llama.cpp, pull 259; STRIX: halo-box/strix-llama.cpp,
# pull 38. ROW: several public logs, found by searching github.com for the row as it is printed, "gemma3 4B Q4_K -
# Medium        |   2.31 GiB |     3.88 B".
LLAMA_BENCH = [
    ("LLAMA_2", "Llama-2-7b", "gguf-f16", 12.55, 6.74),
    ("LLAMA_2", "Llama-2-7b", "q8_0", 6.67, 6.74),
    ("README", "Llama-2-7b", "q4_0", 3.56, 6.74),
    ("README", "Llama-2-13b", "q4_0", 6.86, 13.02),
    ("README", "Qwen2.5-7B", "q4_k_m", 4.36, 7.62),
    ("OSS", "gpt-oss-20b", "mxfp4_moe", 11.27, 20.91),
    ("OSS", "gpt-oss-120b", "mxfp4_moe", 59.02, 116.83),
    ("HALO", "gemma-3-27b-it", "gguf-f16", 50.31, 27.01),  # as BF16, of equal size
    ("HALO", "Llama-3.3-70B-Instruct", "q4_k_m", 39.59, 70.55),
    ("HALO", "Llama-4-Scout-17B-16E", "q6_k", 82.35, 107.77),
    ("HALO", "Llama-4-Scout-17B-16E", "q8_0", 106.65, 107.77),
    ("HALO", "Qwen3-30B-A3B", "gguf-f16", 56.89, 30.53),  # as BF16
    ("IGPU", "Llama-3.1-8B", "q4_k_m", 4.58, 8.03),  # as its R1 distillate; so are the next
    ("IGPU", "Qwen2.5-14B", "q4_k_m", 8.37, 14.77),
    ("IGPU", "Qwen2.5-32B", "q4_k_m", 18.48, 32.76),
    ("PI", "TinyLlama-1.1B-Chat-v1.0", "q4_k_m", 636.18 / 1024, 1.10),
    ("PI", "Llama-3.2-3B", "q4_k_m", 1.87, 3.21),
    ("IK", "DeepSeek-R1", "q4_k_m", 376.65, 671.03),
    ("STRIX", "Qwen3-8B", "q6_k", 6.26, 8.19),
    ("ROW", "DeepSeek-V2-Lite", "q4_0", 8.29, 15.71),
    ("ROW", "DeepSeek-V2-Lite", "q4_k_m", 9.65, 15.71),
    ("ROW", "gemma-3-4b-it", "q4_k_m", 2.31, 3.88),
    ("ROW", "gemma-3-12b-it", "q4_k_m", 6.79, 11.77),
    ("ROW", "gemma-3-27b-it", "q4_k_m", 15.40, 27.01),
    ("ROW", "Llama-3.1-8B", "gguf-f16", 14.96, 8.03),
    ("ROW", "Llama-3.1-8B", "q4_0", 4.33, 8.03),
    ("ROW", "Llama-3.1-8B", "q8_0", 7.95, 8.03),
    ("ROW", "Llama-3.2-1B", "q4_k_m", 762.81 / 1024, 1.24),
    ("ROW", "Llama-4-Scout-17B-16E", "q4_k_m", 60.86, 107.77),
    ("ROW", "Mistral-7B-v0.1", "q4_k_m", 4.07, 7.24),
    ("ROW", "Mixtral-8x7B-v0.1", "q4_k_m", 26.49, 46.70),
    ("ROW", "Phi-3-mini-4k-instruct", "q4_k_m", 2.23, 3.82),
    ("ROW", "phi-4", "q4_k_m", 8.43, 14.66),
    ("ROW", "Qwen2.5-32B", "q8_0", 32.42, 32.76),
    ("ROW", "Qwen3-8B", "q4_k_m", 4.68, 8.19),
    ("ROW", "Qwen3-30B-A3B", "q4_k_m", 17.28, 30.53),
]


@pytest.mark.parametrize(("source", "name", "label", "gib", "billions"), LLAMA_BENCH)
def test_a_gguf_file_has_the_size_that_llama_bench_prints(
    source: str, name: str, label: str, gib: float, billions: float
) -> None:
    model = requantized(named_spec(name), label)
    towers = sum(tensor.num_values for tensor in model.others if tensor.role == "vision")
    assert model.weight_bytes / GIB == pytest.approx(gib, abs=0.0051)
    assert (model.parameters - towers) / 1e9 == pytest.approx(billions, abs=0.0051)


def test_qwen2_5_7b_in_q4_k_m_has_the_bytes_that_llama_bench_writes() -> None:
    """What its CSV calls "model_size" and "model_n_params": ggml-org/llama.cpp, tools/llama-bench/README.md."""
    model = requantized(named_spec("Qwen2.5-7B-Instruct"), "q4_k_m")
    assert (model.weight_bytes, model.parameters) == (4_677_120_000, 7_615_616_512)


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
