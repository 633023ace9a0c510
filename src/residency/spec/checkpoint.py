"""A model's files, opened by their headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from residency.spec.model import SourceTensor


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the headers of a GGUF file, or of a folder with config.json and safetensors, say. Holds no file open."""

    kind: Literal["gguf", "safetensors"]
    path: Path  # the GGUF file, or the folder
    name: str  # for people: general.name, or the folder's name
    architecture: str  # general.architecture, or config.json's model_type
    config: Mapping[str, Any]  # GGUF's metadata, or config.json
    tensors: Mapping[str, SourceTensor] = field(repr=False)  # by the file's own names
    file_bytes: int

    @property
    def fingerprint(self) -> str:
        """Changes when a file's path, size or modification time changes: the key of the store in the cache."""
        raise NotImplementedError
