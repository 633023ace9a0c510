"""A quantized model as a GGUF file that llama.cpp loads: the source's metadata, and its tensors in fewer bits.

A GGUF file's metadata is copied byte by byte but for what tells of the formats (ggml's docs/gguf.md); of a folder it
is made.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from residency.errors import FileError
from residency.formats import F32, Format
from residency.quantize.blocks import Bytes, encoded, restored
from residency.quantize.folder import HELD_ROWS
from residency.quantize.forward import Layer
from residency.quantize.gguf_metadata import entry, folder_metadata, string, tensor_name
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
_INFO_BYTES = 40  # of a tensor of two dimensions, beside its name


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
    """One file, from a GGUF file or a folder."""

    label: str
    formats: Mapping[str, Format]

    def refuse(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        """UnsupportedError where the file cannot be written."""
        if checkpoint.kind != "gguf":
            folder_metadata(checkpoint, spec)

    def format_of(self, tensor: TensorSpec) -> Format:
        """What a tensor is written in."""
        return F32 if len(tensor.shape) == 1 else self.formats[tensor.name]

    def restored(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> QuantizedMatrix:
        """The matrix of which these were `to_arrays`."""
        return restored(arrays["rows"], str(arrays["format"]))

    def write(
        self, out: Path, checkpoint: Checkpoint, spec: ModelSpec, result_of: Callable[[int], LayerResult]
    ) -> None:
        """The file `out`, tensor after tensor."""
        tensors, copied = _held(checkpoint, spec), _others(checkpoint, spec)
        header = [(name, tensor.shape, self.format_of(tensor)) for name, tensor in tensors.items()]
        header += [(name, source.shape, source.format) for name, source in copied.items()]
        with out.open("wb") as file:
            _write_header(file, _metadata(checkpoint, spec), self.label, header)
            for parts in (
                *(self._parts(tensor, result_of) for tensor in tensors.values()),
                *(_copied(source) for source in copied.values()),
            ):
                for part in parts:
                    file.write(np.ascontiguousarray(part).data)
                file.write(b"\0" * (-file.tell() % ALIGNMENT))

    def _parts(self, tensor: TensorSpec, result_of: Callable[[int], LayerResult]) -> Iterator[npt.NDArray[Any]]:
        """A tensor's bytes, in order."""
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
    tensors, copied = _held(checkpoint, spec), _others(checkpoint, spec)
    header = sum(map(len, _metadata(checkpoint, spec))) + sum(len(name) + _INFO_BYTES for name in (*tensors, *copied))
    held = [tensor for tensor in tensors.values() if tensor.name in formats]
    rest = sum((F32 if len(t.shape) == 1 else formats[t.name]).bytes_of(t.shape) for t in held)
    rest += sum(source.num_bytes for source in copied.values())
    return header + rest + ALIGNMENT * (len(tensors) + len(copied) + 4)


def _held(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, TensorSpec]:
    """The model's tensors by the names that the file has, with what the file does to their rows."""
    if checkpoint.kind == "gguf":
        return {tensor.source.name: tensor for tensor in spec.tensors if tensor.source is not None}
    return {tensor_name(tensor.name): _interleaved(spec, tensor) for tensor in spec.tensors}


def _interleaved(spec: ModelSpec, tensor: TensorSpec) -> TensorSpec:
    """Llama's queries and keys lie in GGUF with each head's rotary halves interleaved."""
    attention = spec.layers[0].grouped_attention
    heads = {"q_proj.weight": attention.num_heads, "k_proj.weight": attention.num_kv_heads}
    part = tensor.name.rpartition("self_attn.")[2]
    if part not in heads or spec.architecture not in ("llama", "mistral"):
        return tensor
    return replace(tensor, rearrange=Rearrange.UNPERMUTE_ROPE, heads=heads[part])


def _others(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, SourceTensor]:
    """What a GGUF file holds besides the model's tensors, to be copied."""
    known = {tensor.source.name for tensor in spec.tensors if tensor.source is not None}
    is_file = checkpoint.kind == "gguf"
    return {name: source for name, source in checkpoint.tensors.items() if is_file and name not in known}


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
    file: BinaryIO, metadata: Iterator[bytes], label: str, tensors: list[tuple[str, tuple[int, ...], Format]]
) -> None:
    """Magic, metadata and where each tensor is; padded to where the first begins."""
    entries = list(metadata)
    if label in _FILE_TYPES:
        entries.append(entry("general.file_type", _FILE_TYPES[label]))
    entries.append(entry("general.quantization_version", _QUANTIZATION_VERSION))
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries))
    offset = 0
    for name, shape, number_format in tensors:
        file.write(string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        file.write(struct.pack("<IQ", _TYPE_IDS[number_format.name], offset))
        offset += -(-number_format.bytes_of(shape) // ALIGNMENT) * ALIGNMENT
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _metadata(checkpoint: Checkpoint, spec: ModelSpec) -> Iterator[bytes]:
    """The entries to write: a file's own, or those that a folder amounts to."""
    if checkpoint.kind == "gguf":
        yield from _kept(checkpoint.path)
    else:
        yield from (entry(key, value) for key, value in folder_metadata(checkpoint, spec).items())


def _kept(path: Path) -> Iterator[bytes]:
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
