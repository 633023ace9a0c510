"""From a checkpoint, a configuration or a name of any known architecture to its ModelSpec."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from residency.errors import FileError, UnsupportedError
from residency.models.planned import ARCHITECTURES, MULTIMODAL, planned_spec
from residency.models.planned.gguf import gguf_spec
from residency.models.planned.headers import from_headers
from residency.models.published import KnownModel, is_known, known_models, published_spec
from residency.spec.checkpoint import Checkpoint
from residency.spec.gguf import read_gguf
from residency.spec.model import ModelSpec
from residency.spec.requantize import requantized
from residency.spec.safetensors import CONFIG, read_configuration, read_safetensors_folder

__all__ = [
    "KnownModel",
    "architecture_folder",
    "described_spec",
    "is_known",
    "known_models",
    "model_spec",
    "named_spec",
    "requantized",
]

FOLDERS = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen2_moe",
    "qwen2moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "qwen3moe": "qwen3_moe",
}


def architecture_folder(architecture: str) -> str:
    """The folder of residency.models that holds `architecture`. UnsupportedError names the ones there are."""
    if architecture in FOLDERS:
        return FOLDERS[architecture]
    if architecture in (*ARCHITECTURES, *MULTIMODAL):
        raise UnsupportedError(
            f"the architecture {architecture!r} can be planned and not yet run; run one of {', '.join(FOLDERS)}."
        )
    raise UnsupportedError(
        f"the architecture {architecture[:80]!r} is not supported; supported are {', '.join(FOLDERS)}."
    )


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`, to be run: its shapes, formats and where its tensors are."""
    folder = architecture_folder(checkpoint.architecture)
    if folder == "llama" and checkpoint.config.get("llama.expert_count"):
        folder = "mixtral"  # which GGUF files call llama, too
    module = importlib.import_module(f"residency.models.{folder}.spec")
    return cast(Callable[[Checkpoint], ModelSpec], module.model_spec)(checkpoint)


def described_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`, whether it can be run here or only planned."""
    try:
        return model_spec(checkpoint)
    except UnsupportedError:
        return _planned(checkpoint)


def named_spec(model: str | Path) -> ModelSpec:
    """The model to be planned that `model` names: a GGUF file, a folder with config.json and perhaps safetensors, or
    a published model. FileError, UnsupportedError or FetchError say what is wrong, or which name is near.
    """
    path = Path(model)
    if path.is_dir():
        return _folder_spec(path)
    if path.is_file():
        return _planned(read_gguf(path))
    if path.suffix in (".gguf", ".json", ".safetensors") or str(model).startswith(("/", "./", "../", "~")):
        raise FileError(f"there is no file or folder {model}; give a GGUF file, or a folder with config.json.")
    return published_spec(str(model))


def _folder_spec(folder: Path) -> ModelSpec:
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return _planned(read_safetensors_folder(folder))
    return planned_spec(folder.resolve().name, str(folder / CONFIG), read_configuration(folder))


def _planned(checkpoint: Checkpoint) -> ModelSpec:
    if checkpoint.kind == "gguf":
        return gguf_spec(checkpoint)
    return from_headers(planned_spec(checkpoint.name, str(checkpoint.path / CONFIG), checkpoint.config), checkpoint)
