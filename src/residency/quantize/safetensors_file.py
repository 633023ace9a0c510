"""Writes a safetensors file tensor by tensor: all shapes first, so that no more than one is in memory."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.formats import Format

_DTYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1"}


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[Format, tuple[int, ...]]],
    arrays: Iterable[tuple[str, Iterable[npt.NDArray[Any]]]],
) -> None:
    """The file `path` with the tensors `shapes`; `arrays` yields, in the same order, runs of the rows of each."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (number_format, shape) in shapes.items():
        start, end = end, end + number_format.bytes_of(shape)
        header[name] = {"dtype": number_format.name, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (number_format, shape)), (written, parts) in zip(shapes.items(), arrays, strict=True):
            assert name == written, (name, written)
            start = file.tell()
            for part in parts:
                file.write(np.ascontiguousarray(part, _DTYPES[number_format.name]).data)
            assert file.tell() - start == number_format.bytes_of(shape), name
