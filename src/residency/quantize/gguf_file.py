"""A quantized model as a GGUF file that llama.cpp loads: the source file's metadata, and its tensors in fewer bits.

Metadata is copied byte by byte but for what tells of the formats (ggml's docs/gguf.md).
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from residency.errors import FileError, UnsupportedError
from residency.formats import F32, Format
from residency.quantize.blocks import Bytes, encoded, restored
from residency.quantize.folder import HELD_ROWS
from residency.quantize.forward import Layer
from residency.quantize.layers import MATRICES, LayerResult
from residency.quantize.methods import Inputs, Matrices, QuantizedMatrix
from residency.quantize.source import read_rows, rotary_order
from residency.spec.checkpoint import Checkpoint
from residency.spec.gguf import ARRAY_TYPE, ARRAY_TYPES, SCALARS, STRING_TYPE, TENSOR_TYPES
from residency.spec.model import ModelSpec, Rearrange, SourceTensor, TensorSpec
from residency.spec.strings import walk_strings

ALIGNMENT = 32
_CHUNK_BYTES = 1 << 22
_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment", "split.")
_QUANTIZATION_VERSION = 2
_TYPE_IDS = {name: number for number, name in TENSOR_TYPES.items()}
# What llama.cpp calls a file of each mixture (its llama.h); others are what most of their tensors are.
_FILE_TYPES = {
    **{"f32": 0, "gguf-f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_m": 12},
    **{"q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18},
}
_U32 = 4  # the type of metadata


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A method: every matrix in the format chosen for it, fitted where inputs are known."""

    formats: Mapping[str, Format]  # by the tensors' names
    needs_inputs: bool
    needs_gram: bool = False

    def quantize(self, layer: Layer, names: tuple[str, ...], inputs: Inputs | None, done: Matrices) -> Matrices:
        """As the protocol says."""
        importance_C = None if inputs is None else inputs.energy_C
        return {
            name: encoded(self.formats[layer.spec.tensor(name).name], layer.tensors[name], importance_C)
            for name in names
        }


@dataclass(frozen=True, kw_only=True)
class GgufTarget:
    """One file, from one file."""

    label: str
    formats: Mapping[str, Format]

    def refuse(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        """UnsupportedError where the file cannot be written."""
        if checkpoint.kind != "gguf":
            raise UnsupportedError(
                f"{checkpoint.path} is a folder, and GGUF's metadata is copied from a GGUF file; give the model's "
                "GGUF file in 16 bits, or choose int4 or int8."
            )

    def restored(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> QuantizedMatrix:
        """The matrix of which these were `to_arrays`."""
        return restored(arrays["rows"], str(arrays["format"]))

    def write(
        self, out: Path, checkpoint: Checkpoint, spec: ModelSpec, result_of: Callable[[int], LayerResult]
    ) -> None:
        """The file `out`, tensor after tensor."""
        tensors = {tensor.source.name: tensor for tensor in spec.tensors if tensor.source is not None}
        ordered = [*tensors, *(name for name in checkpoint.tensors if name not in tensors)]
        formats = {name: self._format_of(name, tensors, checkpoint) for name in ordered}
        with out.open("wb") as file:
            _write_header(
                file,
                checkpoint,
                self.label,
                [(name, checkpoint.tensors[name].shape, formats[name]) for name in ordered],
            )
            for name in ordered:
                for part in self._parts(name, tensors, checkpoint, spec, result_of):
                    file.write(np.ascontiguousarray(part).data)
                file.write(b"\0" * (-file.tell() % ALIGNMENT))

    def _format_of(self, name: str, tensors: Mapping[str, TensorSpec], checkpoint: Checkpoint) -> Format:
        if name not in tensors:
            return checkpoint.tensors[name].format
        return F32 if len(tensors[name].shape) == 1 else self.formats[tensors[name].name]

    def _parts(
        self,
        name: str,
        tensors: Mapping[str, TensorSpec],
        checkpoint: Checkpoint,
        spec: ModelSpec,
        result_of: Callable[[int], LayerResult],
    ) -> Iterator[npt.NDArray[Any]]:
        """A tensor's bytes, in order."""
        tensor = tensors.get(name)
        if tensor is None:
            yield from _copied(checkpoint.tensors[name])
            return
        _, *within = tensor.name.split("layers.")
        part = within[0].partition(".")[2] if within else ""
        if part in MATRICES:
            matrix = result_of(int(within[0].partition(".")[0])).matrices[part]
            yield _as_held(tensor, matrix.to_arrays()["rows"])
        elif len(tensor.shape) == 1:
            yield read_rows(tensor, 0, 1).astype("<f4")
        else:
            for first in range(0, tensor.shape[0], HELD_ROWS):
                values_RC = read_rows(tensor, first, min(first + HELD_ROWS, tensor.shape[0]))
                yield encoded(self.formats[tensor.name], values_RC, None).rows_RB


def gguf_bytes_beside(checkpoint: Checkpoint, spec: ModelSpec, formats: Mapping[str, Format]) -> int:
    """Bytes of a file beside the tensors that are not in `formats`: its header, the others, and room to align all."""
    header = min(tensor.offset for tensor in checkpoint.tensors.values())
    held = [tensor for tensor in spec.tensors if tensor.name in formats]
    known = {tensor.source.name for tensor in spec.tensors if tensor.source is not None}
    copied = sum(tensor.num_bytes for name, tensor in checkpoint.tensors.items() if name not in known)
    rest = sum((F32 if len(t.shape) == 1 else formats[t.name]).bytes_of(t.shape) for t in held)
    return header + rest + copied + ALIGNMENT * (len(checkpoint.tensors) + 4)


def _as_held(tensor: TensorSpec, rows_RB: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rows in the file's order."""
    if tensor.rearrange is not Rearrange.UNPERMUTE_ROPE:
        return rows_RB
    held_RB = np.empty_like(rows_RB)
    held_RB[rotary_order(tensor)] = rows_RB
    return held_RB


def _copied(source: SourceTensor) -> Iterator[Bytes]:
    with source.path.open("rb") as file:
        file.seek(source.offset)
        left = source.num_bytes
        while left:
            data = file.read(min(left, _CHUNK_BYTES))
            if not data:
                raise FileError(f"{source.path} ends inside the tensor {source.name}; fetch the model again.")
            left -= len(data)
            yield np.frombuffer(data, np.uint8)


def _write_header(
    file: BinaryIO, checkpoint: Checkpoint, label: str, tensors: list[tuple[str, tuple[int, ...], Format]]
) -> None:
    """Magic, metadata and where each tensor is; padded to where the first begins."""
    entries = list(_metadata(checkpoint.path))
    if label in _FILE_TYPES:
        entries.append(_entry("general.file_type", _FILE_TYPES[label]))
    entries.append(_entry("general.quantization_version", _QUANTIZATION_VERSION))
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries))
    offset = 0
    for name, shape, number_format in tensors:
        file.write(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        file.write(struct.pack("<IQ", _TYPE_IDS[number_format.name], offset))
        offset += -(-number_format.bytes_of(shape) // ALIGNMENT) * ALIGNMENT
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _entry(key: str, value: int) -> bytes:
    return _string(key) + struct.pack("<II", _U32, value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _metadata(path: Path) -> Iterator[bytes]:
    """The entries to keep of a file whose header has been read and found sound."""
    with path.open("rb") as file:
        file.seek(16)
        (num_entries,) = struct.unpack("<Q", file.read(8))
        for _ in range(num_entries):
            start = file.tell()
            key = file.read(struct.unpack("<Q", file.read(8))[0]).decode()
            _skip_value(file, path)
            end = file.tell()
            if not key.startswith(_REPLACED):
                file.seek(start)
                yield file.read(end - start)


def _skip_value(file: BinaryIO, path: Path) -> None:
    (type_id,) = struct.unpack("<I", file.read(4))
    if type_id == STRING_TYPE:
        file.seek(struct.unpack("<Q", file.read(8))[0], 1)
    elif type_id == ARRAY_TYPE:
        type_id, count = struct.unpack("<IQ", file.read(12))
        if type_id == STRING_TYPE:
            walk_strings(file, path, count, path.stat().st_size)
        else:
            file.seek(count * np.dtype(ARRAY_TYPES[type_id]).itemsize, 1)
    else:
        file.seek(SCALARS[type_id].size, 1)
