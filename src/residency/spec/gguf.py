"""Reads the header of a GGUF file, version 2 or 3 (ggml's docs/gguf.md): metadata and where the tensors are.

Every count and length is checked against the file's size before anything is read or allocated.
"""

import math
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from residency.errors import FileError, UnsupportedError
from residency.formats import COUNTED_FORMATS, Format
from residency.spec.checkpoint import Checkpoint, printable, refuse_overlaps
from residency.spec.model import SourceTensor
from residency.spec.strings import walk_strings

MAX_TENSORS = 1 << 17
MAX_ARRAY_VALUES = 1 << 21
MAX_STRING_BYTES = 1 << 24
MAX_NAME_BYTES = (1 << 16) - 1
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
SMALLEST_ENTRY_BYTES = 13  # of metadata: an empty key, a type and one byte
SMALLEST_TENSOR_BYTES = 32  # an empty name, one dimension, a type and an offset

# Files are named by people, and end in their format; general.name is often what some tool made of a folder's name.
_FORMAT_SUFFIX = re.compile(r"(?<=.)[.-](I?Q\d[\w]*|B?F16|F32)$", re.IGNORECASE | re.ASCII)
_PART_SUFFIX = re.compile(r"-\d{5}-of-(\d{5})$", re.ASCII)

SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
ARRAY_TYPES = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING_TYPE, ARRAY_TYPE = 8, 9
TENSOR_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K"},
    **{12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"},
    **{29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}


def read_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file `path`, by its header alone; of a model in several files, by all their headers.

    FileError or UnsupportedError say what is wrong.
    """
    config, tensors = _read(path)
    num_files = config.get("split.count", 1)
    if isinstance(num_files, int) and num_files > 1:
        config, tensors = _joined(path, num_files)
    architecture = config.get("general.architecture")
    if not isinstance(architecture, str):
        raise _damaged(path, "its metadata names no general.architecture")
    paths = {path, *(tensor.path for tensor in tensors.values())}
    return Checkpoint(
        kind="gguf",
        path=path,
        name=printable(_FORMAT_SUFFIX.sub("", _PART_SUFFIX.sub("", path.stem))) or "model",
        architecture=architecture,
        config=config,
        tensors=tensors,
        file_bytes=sum(each.stat().st_size for each in paths),
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
    """The metadata and the tensors of one file."""
    try:
        with open(path, "rb", buffering=1 << 16) as file:
            return _Header(path, file, path.stat().st_size).read()
    except OSError as error:
        raise FileError(f"{path} could not be read: {error.strerror}.") from error


def _joined(path: Path, num_files: int) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
    """The first part's metadata and all parts' tensors: "name-00001-of-00003.gguf" and its sisters."""
    found = _PART_SUFFIX.search(path.stem)
    if found is None or int(found[1]) != num_files:
        raise FileError(
            f"{path} is one of {num_files} parts; name them as they were fetched, -00001-of-{num_files:05}."
        )
    config: dict[str, Any] = {}
    tensors: dict[str, SourceTensor] = {}
    for number in range(1, num_files + 1):
        part = path.with_name(f"{path.stem[: found.start()]}-{number:05}-of-{num_files:05}{path.suffix}")
        told, held = _read(part)
        config = config or told
        if twice := tensors.keys() & held.keys():
            raise _damaged(part, f"the tensor {min(twice)[:80]!r} is in an earlier part too")
        tensors |= held
    promised = config.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise _damaged(path, f"its parts hold {len(tensors)} tensors and promise {str(promised)[:20]}")
    return config, tensors


def _damaged(path: Path, what: str) -> FileError:
    return FileError(f"{path} is truncated or damaged: {what}. Fetch the file again.")


class _Header:
    """One pass over a header. The file's position never passes its end."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self.path = path
        self.file = file
        self.file_bytes = file_bytes

    def read(self) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
        num_tensors, num_entries = self._counts()
        config = self._metadata(num_entries)
        return config, self._tensors(num_tensors, self._alignment(config))

    def damaged(self, what: str) -> NoReturn:
        raise _damaged(self.path, what)

    def _take(self, num_bytes: int, what: str) -> bytes:
        left = self.file_bytes - self.file.tell()
        data = self.file.read(num_bytes) if num_bytes <= left else b""
        if len(data) < num_bytes:
            self.damaged(f"{what} needs {num_bytes} bytes and {left} are left")
        return data

    def _u32(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _u64(self, what: str) -> int:
        return int.from_bytes(self._take(8, what), "little")

    def _string(self, what: str, most_bytes: int) -> str:
        num_bytes = self._u64(what)
        if num_bytes > most_bytes:
            self.damaged(f"{what} claims {num_bytes} bytes, and more than {most_bytes} cannot be right")
        try:
            return self._take(num_bytes, what).decode()
        except UnicodeDecodeError:
            self.damaged(f"{what} is not UTF-8")

    def _counts(self) -> tuple[int, int]:
        if self._take(min(4, self.file_bytes), "the magic") != b"GGUF":
            raise FileError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'. Give another file.")
        version = self._u32("the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            which = "big-endian" if swapped else f"of version {version}"
            raise UnsupportedError(f"{self.path} is a GGUF file {which}; convert it to a little-endian version 3.")
        num_tensors, num_entries = self._u64("the number of tensors"), self._u64("the number of metadata entries")
        for count, each_bytes, what in (
            (num_tensors, SMALLEST_TENSOR_BYTES, "tensors"),
            (num_entries, SMALLEST_ENTRY_BYTES, "metadata entries"),
        ):
            most = min(MAX_TENSORS, (self.file_bytes - self.file.tell()) // each_bytes)
            if count > most:
                self.damaged(f"it claims {count} {what}, and a file of {self.file_bytes} bytes has room for {most}")
        return num_tensors, num_entries

    def _metadata(self, num_entries: int) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string("a metadata key", MAX_NAME_BYTES)
            if key in config:
                self.damaged(f"the metadata key {key[:80]!r} occurs twice")
            config[key] = self._value(key)
        return config

    def _value(self, key: str) -> Any:
        what = f"the value of {key[:80]!r}"
        type_id = self._u32(what)
        if type_id == STRING_TYPE:
            return self._string(what, MAX_STRING_BYTES)
        if type_id == ARRAY_TYPE:
            return self._array(what)
        if type_id not in SCALARS:
            self.damaged(f"{what} has the unknown type {type_id}")
        scalar = SCALARS[type_id]
        return scalar.unpack(self._take(scalar.size, what))[0]

    def _array(self, what: str) -> Any:
        type_id, num_values = self._u32(what), self._u64(what)
        if type_id == ARRAY_TYPE:
            raise UnsupportedError(f"{self.path}: {what} is an array of arrays, which no known model uses.")
        if type_id != STRING_TYPE and type_id not in ARRAY_TYPES:
            self.damaged(f"{what} is an array of the unknown type {type_id}")
        each_bytes = 8 if type_id == STRING_TYPE else np.dtype(ARRAY_TYPES[type_id]).itemsize
        most = min(MAX_ARRAY_VALUES, (self.file_bytes - self.file.tell()) // each_bytes)
        if num_values > most:
            self.damaged(f"{what} claims {num_values} values, and there is room for {most}")
        if type_id == STRING_TYPE:
            return walk_strings(self.file, self.path, num_values, self.file_bytes)
        return np.frombuffer(self._take(num_values * each_bytes, what), ARRAY_TYPES[type_id])

    def _alignment(self, config: dict[str, Any]) -> int:
        alignment = config.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self.damaged(f"it claims an alignment of {str(alignment)[:80]}, which is no power of two")
        return alignment

    def _tensors(self, num_tensors: int, alignment: int) -> dict[str, SourceTensor]:
        relative: dict[str, SourceTensor] = {}
        for _ in range(num_tensors):
            tensor = self._tensor()
            if tensor.name in relative:
                self.damaged(f"the tensor {tensor.name[:80]!r} occurs twice")
            relative[tensor.name] = tensor
        data_offset = -(-self.file.tell() // alignment) * alignment
        tensors: dict[str, SourceTensor] = {}
        for tensor in relative.values():
            if tensor.offset % alignment:
                self.damaged(
                    f"the tensor {tensor.name[:80]!r} starts at {tensor.offset}, not a multiple of {alignment}"
                )
            tensors[tensor.name] = SourceTensor(
                name=tensor.name,
                path=tensor.path,
                offset=data_offset + tensor.offset,
                shape=tensor.shape,
                format=tensor.format,
            )
        refuse_overlaps(self.path, self.file_bytes, tensors.values())
        return tensors

    def _tensor(self) -> SourceTensor:
        name = self._string("a tensor's name", MAX_NAME_BYTES)
        what = f"the tensor {name[:80]!r}"
        num_dimensions = self._u32(what)
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            self.damaged(f"{what} claims {num_dimensions} dimensions; there are 1 to {MAX_DIMENSIONS}")
        shape = tuple(reversed([self._u64(what) for _ in range(num_dimensions)]))
        if min(shape) < 1 or math.prod(shape) > 32 * self.file_bytes:
            self.damaged(f"{what} claims the shape {shape} in a file of {self.file_bytes} bytes")
        number_format = self._format(self._u32(what), what)
        return SourceTensor(name=name, path=self.path, offset=self._u64(what), shape=shape, format=number_format)

    def _format(self, type_id: int, what: str) -> Format:
        type_name = TENSOR_TYPES.get(type_id, f"type {type_id}")
        if type_name not in COUNTED_FORMATS:
            known = ", ".join(COUNTED_FORMATS)
            raise UnsupportedError(
                f"{self.path}: {what} is {type_name}, which is not supported; supported are {known}. "
                "Choose a file in one of those."
            )
        return COUNTED_FORMATS[type_name]
