"""Opens a model's files, whichever kind they are."""

from pathlib import Path

from residency.errors import FileError
from residency.spec.checkpoint import Checkpoint
from residency.spec.gguf import read_gguf
from residency.spec.safetensors import read_safetensors_folder


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file, or in a folder with config.json and safetensors, by its headers alone.

    FileError if it is missing, truncated, foreign or contradicts itself; UnsupportedError names what is not supported.
    """
    if path.is_dir():
        return read_safetensors_folder(path)
    if not path.is_file():
        raise FileError(f"there is no file or folder {path}; give a GGUF file, or a folder with config.json.")
    return read_gguf(path)
