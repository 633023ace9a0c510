"""Reads a folder with config.json and safetensors, one file or shards with an index, by the headers alone.

The format is that of the safetensors specification: a length, a JSON header, the bytes. Every length is checked
against the file's size before anything is read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from residency.errors import FileError, UnsupportedError
from residency.formats import COUNTED_FORMATS
from residency.spec.checkpoint import Checkpoint, refuse_overlaps
from residency.spec.model import SourceTensor

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
MAX_CONFIG_BYTES = 1 << 24
MAX_INDEX_BYTES = 1 << 26
MAX_HEADER_BYTES = 100_000_000  # what the format's own implementation allows
MAX_DIMENSIONS = 8
NUMBER_FORMATS = {name: each for name, each in COUNTED_FORMATS.items() if each.is_float}  # one value, some bytes


def read_safetensors_folder(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`. FileError or UnsupportedError say what is wrong."""
    try:
        return _read_folder(folder)
    except OSError as error:
        raise FileError(f"{error.filename or folder} could not be read: {error.strerror}.") from error


def read_configuration(folder: Path) -> dict[str, Any]:
    """config.json of a folder. FileError if it is missing or damaged."""
    if not (folder / CONFIG).is_file():
        hint = "give the GGUF file in it" if any(folder.glob("*.gguf")) else "give a folder with config.json"
        raise FileError(f"{folder} holds no {CONFIG}; {hint}.")
    return _read_json(folder / CONFIG, MAX_CONFIG_BYTES)


def _read_folder(folder: Path) -> Checkpoint:
    config = read_configuration(folder)
    architecture = config.get("model_type")
    if not isinstance(architecture, str):
        raise FileError(f"{folder / CONFIG} names no model_type; fetch the model again.")
    tensors: dict[str, SourceTensor] = {}
    file_bytes = (folder / CONFIG).stat().st_size
    for path, names in _shards(folder).items():
        held = read_safetensors(path)
        for name in held if names is None else names:
            if name not in held:
                raise FileError(f"{path} lacks the tensor {name[:80]!r} that {INDEX} places there.")
            tensors[name] = held[name]
        file_bytes += path.stat().st_size
    return Checkpoint(
        kind="safetensors",
        path=folder,
        name=folder.resolve().name,
        architecture=architecture,
        config=config,
        tensors=tensors,
        file_bytes=file_bytes,
    )


def read_safetensors(path: Path) -> dict[str, SourceTensor]:
    """The tensors of one file, by name."""
    file_bytes = path.stat().st_size
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise FileError(
                f"{path} is truncated or no safetensors file: it has {file_bytes} bytes "
                f"and claims a header of {header_bytes}. Fetch the file again."
            )
        header = _parse_object(path, file.read(header_bytes))
    header.pop("__metadata__", None)
    data_offset = 8 + header_bytes
    tensors = {name: _tensor(path, name, entry, data_offset, file_bytes) for name, entry in header.items()}
    refuse_overlaps(path, file_bytes, tensors.values())
    return tensors


def _tensor(path: Path, name: str, entry: object, data_offset: int, file_bytes: int) -> SourceTensor:
    if not isinstance(entry, Mapping):
        _damaged(path, f"its entry {name[:80]!r} is no object")
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS or not all(shape):
        _damaged(path, f"the tensor {name[:80]!r} has the shape {str(shape)[:80]}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        _damaged(path, f"the tensor {name[:80]!r} has the offsets {str(offsets)[:80]}")
    if not isinstance(dtype, str) or dtype not in NUMBER_FORMATS:
        raise UnsupportedError(
            f"{path}: the tensor {name[:80]!r} is {repr(dtype)[:20]}, which is not supported; "
            f"supported are {', '.join(NUMBER_FORMATS)}."
        )
    begin, end = offsets
    number_format = NUMBER_FORMATS[dtype]
    if end > file_bytes or end - begin != math.prod(shape) * number_format.block_bytes:
        _damaged(path, f"the tensor {name[:80]!r} of shape {str(shape)[:80]} claims the bytes {begin} to {end}")
    return SourceTensor(name=name, path=path, offset=data_offset + begin, shape=tuple(shape), format=number_format)


def _shards(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a folder, and the tensors that the index takes from each; None: all."""
    if (folder / INDEX).is_file():
        return _indexed_shards(folder)
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(found) != 1:
        other = " (pytorch_model.bin files are not read: save the model again as safetensors)"
        hint = other if any(folder.glob("*.bin")) else ""
        raise FileError(f"{folder} holds {len(found)} safetensors files and no {INDEX}{hint}; fetch the model again.")
    return {found[0]: None}


def _indexed_shards(folder: Path) -> dict[Path, list[str] | None]:
    weight_map = _read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _damaged(folder / INDEX, "it has no weight_map")
    shards: dict[Path, list[str]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not file_name.endswith(".safetensors") or set(file_name) & set("/\\\0:"):
            _damaged(folder / INDEX, f"it places {name[:80]!r} in {str(file_name)[:80]!r}, no file of this folder")
        if not file_name.isprintable():
            _damaged(folder / INDEX, f"it names the file {file_name[:80]!r}")
        shards.setdefault(folder / file_name, []).append(name)
    for path in shards:
        if not path.is_file():
            raise FileError(f"{folder} lacks {path.name[:80]}, which {INDEX} names; fetch the model again.")
    return dict(shards)


def _read_json(path: Path, most_bytes: int) -> dict[str, Any]:
    file_bytes = path.stat().st_size
    if file_bytes > most_bytes:
        _damaged(path, f"it has {file_bytes} bytes, and more than {most_bytes} cannot be right")
    return _parse_object(path, path.read_bytes())


def _parse_object(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            _damaged(path, "a name occurs twice in its JSON")
        return values

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"its JSON cannot be read ({str(error)[:80]})")
    if not isinstance(value, dict):
        _damaged(path, "its JSON is no object")
    return value


def _whole_numbers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _damaged(path: Path, what: str) -> NoReturn:
    raise FileError(f"{path} is truncated or damaged: {what}. Fetch the file again.")
