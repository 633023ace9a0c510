"""The engine's logits are those of transformers, prefilled in chunks and then decoded token by token.

Differences are in parts of the largest logit. With keys and values in float32 they are float32's rounding. In float16,
logits of these random models move by 2e-4 to 7e-4, and where a single key of the first tokens lies near the middle of
two float16 numbers and is rounded the other way, by 2e-4. So a float16 cache is held to what the same cache does to
transformers.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="the reference is computed by transformers on torch")
pytest.importorskip("transformers", reason="the reference is computed by transformers")

from residency.formats import FORMATS
from residency.kernels.simd.tiles import has_tiles
from residency.models.specs import model_spec
from residency.spec import open_checkpoint
from residency.spec.state import KvName
from support.engines import engine_logits
from support.folders import in_bfloat16, write_folder
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, random_weights, small_model
from support.plain import Rounding, plain_logits
from support.reference import reference_logits

TOKENS = np.random.default_rng(5).integers(0, 320, 300).tolist()
PROMPT_TOKENS = 280  # in chunks of 64; the others are decoded with the context in parts
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # architecture, extents, changes to config.json
    "llama": ("llama", {}, {}),
    "llama, tied": ("llama", {"tied": True}, {}),
    "llama, three heads to one": ("llama", {"num_heads": 9, "num_kv_heads": 3, "head_dim": 32, "hidden": 288}, {}),
    "llama, scaled for Llama 3": (
        "llama",
        {},
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral, with a window": ("mistral", {}, {"sliding_window": 40}),
    "qwen2": ("qwen2", {}, {}),
    "qwen2, untied": ("qwen2", {"tied": False}, {}),
    "qwen2, scaled by YaRN": (
        "qwen2",
        {},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
    "qwen3": ("qwen3", {}, {}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 128}, {}),
    "gemma3": ("gemma3", {}, {}),
    "gemma3, heads of 256": ("gemma3", {"head_dim": 256, "num_kv_heads": 1, "window_tokens": 70}, {}),
}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """One checkpoint, computed by both."""

    folder: Path

    @cached_property
    def exact(self) -> Floats:
        """The logits of transformers in float32."""
        return reference_logits(self.folder, TOKENS)

    @cached_property
    def ours(self) -> Floats:
        """The engine's logits with a float16 cache."""
        return engine_logits(self.folder, TOKENS, prompt_tokens=PROMPT_TOKENS)

    @cached_property
    def theirs(self) -> Floats:
        """Those of transformers with a float16 cache."""
        return reference_logits(self.folder, TOKENS, kv_format="F16")


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    architecture, extents, changes = request.param
    folder = write_folder(
        tmp_path_factory.mktemp("case") / "model", small_model(architecture, **extents), changes=changes
    )
    return Compared(folder)


def largest(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """The largest difference, in parts of the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def usual(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """The root of the mean squared difference, in parts of the largest logit."""
    return float(np.sqrt(((ours - theirs) ** 2).mean()) / np.abs(theirs).max())


def test_with_keys_and_values_in_float32_logits_differ_by_rounding_alone(compared: Compared) -> None:
    """Measured: within 4e-6."""
    ours = engine_logits(compared.folder, TOKENS, prompt_tokens=PROMPT_TOKENS, kv_format="F32")
    assert largest(ours, compared.exact) < 2e-5


def test_a_float16_cache_usually_costs_no_more_than_it_costs_transformers(compared: Compared) -> None:
    assert usual(compared.ours, compared.exact) < 1.5 * usual(compared.theirs, compared.exact)


def test_a_float16_cache_costs_no_logit_much_more_than_it_costs_transformers(compared: Compared) -> None:
    assert largest(compared.ours, compared.exact) < 2 * largest(compared.theirs, compared.exact)


def test_an_int8_cache_costs_what_it_costs_transformers(compared: Compared) -> None:
    """Rounding is a hundred times float16's, and so is what differs where a value is rounded the other way."""
    ours = engine_logits(compared.folder, TOKENS, prompt_tokens=PROMPT_TOKENS, kv_format="INT8")
    theirs = reference_logits(compared.folder, TOKENS, kv_format="INT8")
    assert usual(ours, compared.exact) < 1.2 * usual(theirs, compared.exact)
    assert usual(ours, theirs) < usual(theirs, compared.exact)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bfloat16_folder_computes_what_its_rounded_weights_do(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    weights = random_weights(model)
    folder = write_folder(tmp_path / "bf16", model, dtype="BF16", weights=weights)
    rounded = write_folder(tmp_path / "f32", model, weights=in_bfloat16(weights))
    ours = engine_logits(folder, TOKENS[:100], kv_format="F32")
    assert largest(ours, reference_logits(rounded, TOKENS[:100])) < 2e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_and_threads_change_no_bit_of_a_prompt_s_logits(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture))
    whole = engine_logits(folder, TOKENS[:150], chunk_tokens=160, threads=1)
    np.testing.assert_array_equal(engine_logits(folder, TOKENS[:150], chunk_tokens=48, threads=2), whole)


@pytest.mark.parametrize("kv_format", ["INT8", "INT4"])
def test_chunks_and_threads_change_no_bit_of_logits_with_a_quantized_cache(kv_format: KvName, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model("qwen2", head_dim=64))
    whole = engine_logits(folder, TOKENS[:150], chunk_tokens=160, threads=1, kv_format=kv_format)
    parts = engine_logits(folder, TOKENS[:150], chunk_tokens=48, threads=2, kv_format=kv_format)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_gives_the_logits_of_prefilling(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture))
    prefilled = engine_logits(folder, TOKENS)
    assert usual(engine_logits(folder, TOKENS, prompt_tokens=1), prefilled) < 5e-5


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gguf_file_of_any_format_computes_what_its_weights_say(
    architecture: str, number_format: str, tmp_path: Path
) -> None:
    """Against float64. Activations in int8 are off by at most half a code, 1/254 of their group's largest value, which
    of 32 normal values is about twice their deviation: in the mean 2 / 254 / sqrt(3), or 0.5%, of a product. The six
    rounded inputs on the way through each of three layers' and the head's products add up to some sqrt(13) of that,
    2%, of a usual logit; attention's exponentials and norms make more of it in some models and less in others.
    """
    path = write_gguf(tmp_path / "model.gguf", small_model(architecture), number_format)
    ours = engine_logits(path, TOKENS[:100], prompt_tokens=90, chunk_tokens=32)
    expected = plain_logits(model_spec(open_checkpoint(path)), TOKENS[:100])
    limit = 4e-4 if FORMATS[number_format].is_float else 0.015
    assert usual(ours, expected) < limit


@pytest.mark.parametrize("number_format", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_layer_of_a_gguf_file_computes_what_its_weights_and_rounded_activations_say(
    architecture: str, number_format: str, tmp_path: Path
) -> None:
    """Rounded where the engine rounds, little is left: values near the middle that fall to the other side.

    They are more where a prompt's attention is computed in tile registers, to 2**-17 and not float32's 2**-24.
    """
    path = write_gguf(tmp_path / "model.gguf", small_model(architecture, num_layers=1), number_format)
    ours = engine_logits(path, TOKENS[:100], prompt_tokens=90, chunk_tokens=32)
    rounding = Rounding(bf16_tokens=90 if has_tiles() else 0)
    expected = plain_logits(model_spec(open_checkpoint(path)), TOKENS[:100], rounding=rounding)
    assert usual(ours, expected) < (2e-3 if has_tiles() else 1e-3)
