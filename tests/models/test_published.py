"""Models known by name have the sizes that their cards, indexes and papers give."""

import subprocess
import sys

import pytest

from residency.errors import FetchError
from residency.models.published import known_models, published_spec

# The number of parameters that the repository's safetensors hold, each tensor once.
PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 108_641_793_536,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": 401_583_781_376,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": 24_011_361_280,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "mistralai/Mamba-Codestral-7B-v0.1": 7_285_403_648,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/phi-4": 14_659_507_200,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-ai/DeepSeek-V2": 235_741_434_880,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "facebook/opt-30b": 29_974_540_288,
    "state-spaces/mamba-130m-hf": 129_135_360,
    "state-spaces/mamba-2.8b-hf": 2_768_345_600,
    "tiiuae/falcon-mamba-7b": 7_272_665_088,
    "ai21labs/Jamba-v0.1": 51_570_323_328,
    "LiquidAI/LFM2-1.2B": 1_170_340_608,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "bigcode/starcoder2-3b": 3_030_371_328,
    "ibm-granite/granite-3.1-8b-instruct": 8_170_848_256,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "bigscience/bloom-560m": 559_214_592,
    "bigscience/bloom": 176_247_271_424,
    "mosaicml/mpt-7b": 6_649_286_656,
    "facebook/opt-350m": 331_196_416,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "bigcode/starcoder": 15_517_456_384,
    "microsoft/Phi-3.5-MoE-instruct": 41_873_153_344,
    "baidu/ERNIE-4.5-0.3B-PT": 360_748_032,
    "stabilityai/stablelm-zephyr-3b": 2_795_443_200,
    "zai-org/glm-4-9b-hf": 9_399_951_360,
}

# What model.safetensors.index.json, or the file's size less its header, says of all tensors.
CHECKPOINT_BYTES = {
    "meta-llama/Llama-3.1-8B": 16_060_522_496,
    "openai/gpt-oss-20b": 13_761_264_768,
    "openai/gpt-oss-120b": 65_248_815_744,
    "openai-community/gpt2": 548_090_880,
    "tiiuae/falcon-7b": 14_434_379_520,
    "mistralai/Mixtral-8x7B-v0.1": 93_405_585_408,
}

# What their papers and cards call active, in billions.
ACTIVE_BILLIONS = {
    "mistralai/Mixtral-8x7B-v0.1": 12.9,
    "mistralai/Mixtral-8x22B-v0.1": 39,
    "Qwen/Qwen3-30B-A3B": 3.3,
    "Qwen/Qwen3-235B-A22B": 22,
    "deepseek-ai/DeepSeek-V3": 37,
    "ai21labs/Jamba-v0.1": 12,
    "ai21labs/AI21-Jamba-1.5-Large": 94,
    "moonshotai/Kimi-K2-Instruct": 32,
}

# Bytes that one token adds to a cache in 16 bits, all layers together.
TOKEN_BYTES = {
    "meta-llama/Llama-3.1-70B": 327_680,  # 80 layers x 8 heads x 128 x 2 x 2
    "meta-llama/Llama-2-7b-hf": 524_288,
    "deepseek-ai/DeepSeek-V3": 70_272,  # 61 x (512 + 64) x 2: "70 KB", Insights into DeepSeek-V3, arXiv 2505.09343
    "tiiuae/falcon-7b": 8_192,
    "EleutherAI/pythia-2.8b": 327_680,
    "LiquidAI/LFM2-1.2B": 12_288,
    "state-spaces/mamba-2.8b-hf": 0,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_the_parameters_of_its_card(name: str) -> None:
    assert published_spec(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", CHECKPOINT_BYTES)
def test_a_published_checkpoint_has_the_bytes_of_its_files(name: str) -> None:
    assert published_spec(name).checkpoint_bytes == CHECKPOINT_BYTES[name]


@pytest.mark.parametrize("name", ACTIVE_BILLIONS)
def test_the_active_parameters_are_those_that_the_authors_state(name: str) -> None:
    active = published_spec(name).active_parameters / 1e9
    assert active == pytest.approx(ACTIVE_BILLIONS[name], rel=0.03)


@pytest.mark.parametrize("name", TOKEN_BYTES)
def test_a_token_adds_the_bytes_to_the_cache_that_its_heads_need(name: str) -> None:
    assert sum(state.bytes_per_token for state in published_spec(name).states()) == TOKEN_BYTES[name]


def test_deepseek_v3_is_671_billion_and_its_checkpoint_holds_684_5_with_the_layer_that_drafts() -> None:
    model = published_spec("deepseek-v3")
    with_draft = model.parameters + sum(tensor.num_values for tensor in model.unused)
    assert [round(each / 1e9, 1) for each in (model.parameters, with_draft)] == [671.0, 684.5]


@pytest.mark.parametrize(("name", "all_parameters"), [("gemma-3n-e2b", 5_439_438_272), ("gemma-3n-e4b", 7_849_978_192)])
def test_gemma_3n_is_its_text_model_without_the_same_towers_of_both_sizes(name: str, all_parameters: int) -> None:
    model = published_spec(name)
    published = model.parameters + sum(tensor.num_values for tensor in model.unused)
    assert all_parameters - published == 983_281_504


@pytest.mark.parametrize("known", known_models(), ids=lambda known: str(known.name))
def test_every_bundled_configuration_can_be_planned(known: object) -> None:
    name, parameters = getattr(known, "name"), getattr(known, "parameters")  # noqa: B009
    assert published_spec(name).parameters == parameters


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("meta-llama/Llama-3.1-70B", "Llama-3.1-70B"),
        ("LLAMA-3-8B", "Meta-Llama-3-8B"),
        ("llama3.1:8b", "Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("llama-2-7b", "Llama-2-7b-hf"),
        ("Qwen/Qwen3-30B-A3B", "Qwen3-30B-A3B"),
        ("gemma-3-4b", "gemma-3-4b-it"),
        ("mistral-small-3.1-24b", "Mistral-Small-3.1-24B-Instruct-2503"),
        ("deepseek-ai/DeepSeek-R1-0528", "DeepSeek-R1"),
        ("mistral-7b", "Mistral-7B-v0.1"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.2"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B-v0.3"),
    ],
)
def test_a_name_is_found_however_people_write_it(asked: str, name: str) -> None:
    assert published_spec(asked).name == name


@pytest.mark.parametrize("asked", ["deepseek-v3.1", "deepseek-v2.5", "mistral-7b-v0.9"])
def test_another_version_is_not_taken_for_one_that_is_known(asked: str) -> None:
    with pytest.raises(FetchError, match="did you mean"):
        published_spec(asked)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(FetchError, match=r"did you mean .*meta-llama/Llama-3\.1-8B"):
        published_spec("llama-3.1-9b")


def test_a_name_becomes_a_model_without_a_network_in_a_third_of_a_second() -> None:
    program = """
import sys, time
from residency.models.specs import named_spec
start = time.perf_counter()
named_spec("deepseek-v3")
print(time.perf_counter() - start, "socket" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    seconds, has_sockets = output.split()
    assert (float(seconds) < 0.3, has_sockets) == (True, "False")
