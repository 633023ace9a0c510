"""A spec says all that a model needs: computed plainly from it, logits are those of transformers."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="the reference is computed by transformers on torch")
pytest.importorskip("transformers", reason="the reference is computed by transformers")

from residency.models.specs import model_spec
from residency.spec import open_checkpoint
from support.folders import in_bfloat16, write_folder
from support.gguf_files import rounded, write_gguf
from support.models import ARCHITECTURES, SmallModel, random_weights, small_model
from support.plain import plain_logits
from support.reference import reference_logits

TOKENS = np.random.default_rng(5).integers(0, 320, 40).tolist()
ROPE_SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn with magnitudes": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 16,
        "beta_slow": 2,
    },
}


def difference(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float32]) -> float:
    """The largest difference, in parts of the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def our_logits(path: Path) -> npt.NDArray[np.float64]:
    return plain_logits(model_spec(open_checkpoint(path)), TOKENS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_computes_what_transformers_computes(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture), num_shards=2)
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bfloat16_folder_computes_what_its_rounded_weights_say(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    weights = random_weights(model)
    folder = write_folder(tmp_path / "bf16", model, dtype="BF16", weights=weights)
    reference = write_folder(tmp_path / "f32", model, weights=in_bfloat16(weights))
    assert difference(our_logits(folder), reference_logits(reference, TOKENS)) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("number_format", ["F32", "Q4_K"])
def test_a_gguf_file_computes_what_the_same_weights_do(architecture: str, number_format: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    weights = random_weights(model)
    path = write_gguf(tmp_path / "model.gguf", model, number_format, weights=weights)
    folder = write_folder(tmp_path / "model", model, weights=rounded(weights, number_format))
    assert difference(our_logits(path), reference_logits(folder, TOKENS)) < 1e-5


@pytest.mark.parametrize("scaling", ROPE_SCALINGS.values(), ids=ROPE_SCALINGS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_scaled_rope_turns_as_in_transformers(architecture: str, scaling: dict[str, float], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture), changes={"rope_scaling": scaling})
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5


def test_gemma_scales_the_rope_of_its_full_layers_alone(tmp_path: Path) -> None:
    changes = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    folder = write_folder(tmp_path / "model", small_model("gemma3"), changes=changes)
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5


def test_the_rope_parameters_of_newer_configurations_are_read(tmp_path: Path) -> None:
    changes = {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}
    folder = write_folder(tmp_path / "model", small_model("qwen3"), changes=changes)
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5


def test_gemmas_rope_parameters_by_layer_type_are_read(tmp_path: Path) -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
    }
    changes = {"rope_parameters": parameters, "rope_theta": None, "rope_local_base_freq": None}
    folder = write_folder(tmp_path / "model", small_model("gemma3"), changes=changes)
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("mistral", {"sliding_window": 6}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    ],
)
def test_windows_hide_what_they_hide_in_transformers(
    architecture: str, changes: dict[str, object], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture), changes=changes)
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5


def test_an_untied_head_is_used(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", SmallModel(architecture="qwen2", tied=False))
    assert difference(our_logits(folder), reference_logits(folder, TOKENS)) < 1e-5
