"""quantization_config says which matrices are kept how; the headers of the files have the last word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from residency.errors import UnsupportedError
from residency.formats.schemes import Scheme
from residency.models.planned import planned_spec
from residency.models.specs import named_spec
from residency.spec import ModelSpec, TensorSpec

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "dtype": "bfloat16",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "intermediate_size": 384,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "tie_word_embeddings": False,
}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*mlp.gate$"]}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "gptq-int4-g128"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "awq-int4-g128"),
    "fp8 in tiles": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
    "packed": (
        {**COMPRESSED, "format": "pack-quantized", "config_groups": {"group_0": {"weights": INT4}}},
        "packed-int4-g128",
    ),
    "float": ({**COMPRESSED, "format": "float-quantized", "config_groups": {"group_0": {"weights": FLOAT8}}}, "fp8"),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "nf4",
    ),
    "ModelOpt FP8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
    "ModelOpt NVFP4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    "LLM.int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "llm-int8"),
}
DTYPES = {"I32": np.int32, "I64": np.int64, "I8": np.int8, "U8": np.uint8, "F32": np.float32, "F16": np.float16}


def quantized(settings: dict[str, Any], **changes: Any) -> ModelSpec:
    return planned_spec("model", "config.json", {**CONFIG, **changes, "quantization_config": settings})


def schemes(model: ModelSpec) -> dict[str, str]:
    return {tensor.name: tensor.format.name for tensor in model.tensors if isinstance(tensor.format, Scheme)}


@pytest.mark.parametrize("method", METHODS)
def test_matrices_and_experts_of_the_layers_are_kept_in_the_scheme(method: str) -> None:
    settings, name = METHODS[method]
    model = quantized(settings)
    converted = {t.name for layer in model.layers for t in layer.tensors if t.role in ("matrix", "expert")}
    assert schemes(model) == dict.fromkeys(converted, name)


@pytest.mark.parametrize("method", METHODS)
def test_a_scheme_does_not_change_how_many_parameters_there_are(method: str) -> None:
    assert quantized(METHODS[method][0]).parameters == planned_spec("model", "config.json", CONFIG).parameters


@pytest.mark.parametrize(
    ("settings", "spared"),
    [
        ({"modules_to_not_convert": ["model.layers.0"]}, "model.layers.0."),
        ({"modules_to_not_convert": ["self_attn"]}, ".self_attn."),
        ({"ignored_layers": ["model.layers.1.self_attn.o_proj"]}, "model.layers.1.self_attn.o_proj"),
        ({"ignore": ["re:.*q_proj$"]}, "q_proj"),
    ],
)
def test_what_the_configuration_spares_keeps_its_format(settings: dict[str, Any], spared: str) -> None:
    everything = set(schemes(quantized(METHODS["gptq"][0])))
    left = set(schemes(quantized({**METHODS["gptq"][0], **settings})))
    assert left == {name for name in everything if spared not in name}


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "aqlm"},
        {"quant_method": "awq", "version": "marlin"},
        {**COMPRESSED, "format": "marlin-24", "config_groups": {"group_0": {"weights": INT4}}},
        {**COMPRESSED, "config_groups": {"group_0": {"weights": INT4}, "group_1": {"weights": FLOAT8}}},
    ],
)
def test_a_scheme_that_is_not_known_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"^config\.json"):
        quantized(settings)


def test_the_files_of_a_quantized_model_are_planned_to_the_byte(tmp_path: Path) -> None:
    """Scales are float32 here, as older tools wrote them, and not float16."""
    settings = METHODS["gptq"][0]
    model = quantized(settings, dtype="float16")
    arrays = {name: array for tensor in model.tensors for name, array in _arrays(tensor).items()}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "dtype": "float16", "quantization_config": settings}))
    assert named_spec(tmp_path).weight_bytes == sum(array.nbytes for array in arrays.values())


def test_the_biases_that_gptqs_tools_write_for_every_matrix_are_not_loaded(tmp_path: Path) -> None:
    settings = METHODS["gptq"][0]
    model = quantized(settings, dtype="float16")
    arrays = {name: array for tensor in model.tensors for name, array in _arrays(tensor).items()}
    extra = {"model.layers.0.self_attn.o_proj.bias": np.zeros(256, np.float16)}
    save_file(arrays | extra, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "dtype": "float16", "quantization_config": settings}))
    found = named_spec(tmp_path)
    assert found.checkpoint_bytes - found.weight_bytes == 512


def _arrays(tensor: TensorSpec) -> dict[str, np.ndarray[Any, Any]]:
    if not isinstance(tensor.format, Scheme):
        return {tensor.name: np.zeros(tensor.shape, DTYPES[tensor.format.name])}
    arrays = {}
    for number in range(tensor.copies):
        stem = tensor.name.replace("{}", str(number)).removesuffix(".weight")
        for suffix, (number_format, shape) in tensor.format.parts_of(tensor.shape).items():
            dtype = np.float32 if suffix == ".scales" else DTYPES[number_format.name]
            arrays[stem + suffix] = np.zeros(shape, dtype)
    return arrays
