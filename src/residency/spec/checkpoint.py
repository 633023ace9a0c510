"""A model's files, opened by their headers alone."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from residency.errors import FileError
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
        """Changes when a file's path, size or modification time changes: the key of the store in the cache.

        Of the GGUF file, or of config.json and every shard. FileError if one of them is gone.
        """
        paths = {tensor.path for tensor in self.tensors.values()}
        paths.add(self.path if self.kind == "gguf" else self.path / "config.json")
        digest = hashlib.sha256()
        for path in sorted(paths):
            try:
                status = path.stat()
            except OSError as error:
                raise FileError(f"{path} could not be read: {error.strerror}.") from error
            digest.update(
                f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
        return digest.hexdigest()


def printable(name: object) -> str:
    """A name from a file, fit for a terminal: one line without control characters, "" if there is none."""
    if not isinstance(name, str):
        return ""
    return "".join(character if character.isprintable() else " " for character in name[:200]).strip()


def refuse_overlaps(path: Path, file_bytes: int, tensors: Iterable[SourceTensor]) -> None:
    """FileError if two of the tensors of the file `path` share bytes, or one passes the file's end."""
    end = 0
    previous = "the header"
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise FileError(
                f"{path} is damaged: the tensor {tensor.name[:80]!r} starts at byte {tensor.offset}, "
                f"{end - tensor.offset} bytes before {previous[:80]!r} ends. Fetch the file again."
            )
        end = tensor.offset + tensor.num_bytes
        previous = tensor.name
        if end > file_bytes:
            raise FileError(
                f"{path} is truncated: the tensor {tensor.name[:80]!r} ends at byte {end}, "
                f"{end - file_bytes} bytes past the file's end. Fetch the file again."
            )
