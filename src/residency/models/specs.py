"""From a checkpoint of any supported architecture to its ModelSpec."""

import importlib
from collections.abc import Callable
from typing import cast

from residency.errors import UnsupportedError
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec

FOLDERS = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}


def architecture_folder(architecture: str) -> str:
    """The folder of residency.models that holds `architecture`. UnsupportedError names the ones there are."""
    if architecture not in FOLDERS:
        raise UnsupportedError(
            f"the architecture {architecture[:80]!r} is not supported; supported are {', '.join(FOLDERS)}."
        )
    return FOLDERS[architecture]


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`: its shapes, formats and where its tensors are."""
    module = importlib.import_module(f"residency.models.{architecture_folder(checkpoint.architecture)}.spec")
    return cast(Callable[[Checkpoint], ModelSpec], module.model_spec)(checkpoint)
