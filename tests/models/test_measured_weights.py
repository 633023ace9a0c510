"""Weights and states against what other people's runs have printed (sources beside the figures)."""

import pytest

from residency.models.specs import named_spec, requantized
from residency.spec import kv_format_named, rank_bytes, rank_states

GIB, MIB = 1024**3, 1024**2

# llama.cpp's "model buffer size" on a device and on the host, which holds the embedding: logs of ggml-org/ci, V100.
PYTHIA_BUFFERS = {
    "gguf-f16": (5049.71, 245.62),
    "Q8_0": (2684.57, 130.49),
    "Q4_0": (1454.83, 69.08),
    "Q4_1": (1604.83, 76.76),
}

# Bytes of the files of bartowski/Meta-Llama-3.1-8B-Instruct-GGUF: their tensors, and a header of one size.
LLAMA_FILES = {
    "Q8_0": 8_540_775_840,
    "Q6_K": 6_596_011_424,
    "Q5_K_M": 5_732_992_416,
    "Q4_K_M": 4_920_739_232,
    "Q4_K_S": 4_692_673_952,
    "Q3_K_M": 4_018_922_912,
    "Q2_K": 3_179_136_416,
}
LLAMA_HEADER_BYTES = 7_841_184  # the vocabulary, and Llama 3's divisors of frequencies

# vLLM 0.19.0 on H100-80GB, GiB of the pool and tokens in it: jgchn/llm-d-planner, results_raw.csv.
KV_POOLS = [
    ("Llama-3.1-8B", 1, "F16", 58.11, 476_016),
    ("Llama-3.1-8B", 2, "F16", 63.76, 1_044_688),
    ("Llama-3.1-8B", 4, "F16", 67.44, 2_209_792),
    ("Llama-3.1-8B", 1, "FP8", 58.11, 952_032),
    ("Qwen2.5-7B-Instruct", 1, "F16", 58.53, 1_096_000),
    ("Qwen2.5-7B-Instruct", 2, "F16", 63.84, 2_390_592),
    ("Qwen2.5-7B-Instruct", 4, "F16", 67.34, 5_043_280),
    ("Qwen3-8B", 1, "F16", 57.50, 418_688),
    ("Qwen2.5-72B-Instruct", 2, "F16", 3.04, 19_920),
    ("Mistral-Small-3.1-24B", 1, "F16", 28.19, 184_752),
    ("granite-3.1-2b", 1, "F16", 69.28, 908_048),
    ("granite-3.1-8b", 1, "F16", 58.66, 384_432),
]

# The same runs' weights in GiB, less the table of rotations where the engine counts it (0.03 GiB at 131,072 positions).
WEIGHTS = [
    ("Qwen3-8B", 1, 15.27, 0.02),
    ("Mistral-Small-3.1-24B", 1, 44.76, 0.04),
    ("Llama-3.1-8B", 2, 7.51, 0.04),
    ("Llama-3.1-8B", 4, 3.77, 0.04),
    ("gemma-2-9b-it", 1, 17.22, 0.02),
    ("gemma-2-27b-it", 1, 50.72, 0.02),
]


@pytest.mark.parametrize("label", PYTHIA_BUFFERS)
def test_pythia_has_the_model_buffers_that_llama_cpp_prints(label: str) -> None:
    model = requantized(named_spec("pythia-2.8b"), label)
    host = model.embedding.num_bytes
    assert ((model.weight_bytes - host) / MIB, host / MIB) == pytest.approx(PYTHIA_BUFFERS[label], abs=0.01)


def test_llama_3_1_8b_in_q4_k_m_has_the_model_buffer_that_llama_cpp_prints() -> None:
    model = requantized(named_spec("llama-3.1-8b"), "Q4_K_M")
    assert (model.weight_bytes // MIB, model.embedding.num_bytes // MIB) == (4685, 281)


@pytest.mark.parametrize("label", LLAMA_FILES)
def test_llama_3_1_8b_has_the_bytes_of_its_published_gguf_files(label: str) -> None:
    model = requantized(named_spec("llama-3.1-8b"), label)
    assert model.weight_bytes + LLAMA_HEADER_BYTES == LLAMA_FILES[label]


@pytest.mark.parametrize(("name", "ranks", "kv", "pool_gib", "tokens"), KV_POOLS)
def test_a_pool_holds_as_many_tokens_as_vllm_counts(
    name: str, ranks: int, kv: str, pool_gib: float, tokens: int
) -> None:
    states = rank_states(named_spec(name), kv_format_named(kv), ranks)
    assert tokens * sum(state.bytes_per_token for state in states) / GIB == pytest.approx(pool_gib, abs=0.0051)


@pytest.mark.parametrize(("name", "ranks", "gib", "tolerance_gib"), WEIGHTS)
def test_a_rank_holds_the_weights_that_vllm_prints(name: str, ranks: int, gib: float, tolerance_gib: float) -> None:
    assert rank_bytes(named_spec(name), ranks) / GIB == pytest.approx(gib, abs=tolerance_gib)


@pytest.mark.parametrize(
    ("name", "codes_mib", "absmax_mib"),
    [("Qwen2.5-Coder-1.5B-Instruct", 624.75, 78.106), ("Llama-3.2-1B", 464.0, 58.007)],
)
def test_nf4_has_the_codes_and_scales_that_bitsandbytes_allocates(
    name: str, codes_mib: float, absmax_mib: float
) -> None:
    """fitcheck-llm 0.3.1, data/measurements/final-t4-20260921.json; scales with each matrix's table."""
    layers = requantized(named_spec(name), "nf4").layers
    matrices = [tensor for layer in layers for tensor in layer.tensors if tensor.format.name == "nf4"]
    codes = sum(tensor.num_values // 2 for tensor in matrices)
    scales = sum(tensor.num_bytes for tensor in matrices) - codes
    assert (codes / MIB, scales / MIB) == pytest.approx((codes_mib, absmax_mib), abs=0.001)


def test_lfm2_keeps_384_mib_for_32768_tokens_in_its_six_attention_layers() -> None:
    """gguf-parser-go's issue 31: 6 of 16 layers attend."""
    states = named_spec("lfm2-1.2b").states()
    paged = sum(state.sequence_bytes(32768) for state in states if state.kind == "paged")
    assert (paged / MIB, [state.layers for state in states if state.kind == "paged"]) == (384, [6])
