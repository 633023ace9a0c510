"""Matrices of integers in a folder's checkpoint: which of its tensors they are, and how the engine will keep them."""

from dataclasses import dataclass

from residency.errors import FileError, UnsupportedError
from residency.formats import GroupedFormat, grouped
from residency.formats.grouped import BITS, GROUPS
from residency.formats.schemes import Scheme
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import PackedSource, SourceTensor

_BITS = {"gptq": BITS, "awq": (4,), "packed": (4, 8), "int8": (8,), "llm-int8": (8,)}
_SCALES = (".scales", ".weight_scale", ".SCB")
_NOT_NEEDED = (".weight_shape", ".weight_format", ".input_scale")
# Scales of activations and caches, and zero points where codes are symmetric: nothing here multiplies by them.
UNUSED_SUFFIXES = (
    *(".k_scale", ".v_scale", ".input_scale", ".output_scale", ".input_zero_point", ".weight_zero_point"),
    *(".g_idx", ".weight_g_idx", ".weight_shape", ".weight_format"),
)


@dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """A matrix's tensors, and its format in the store."""

    format: GroupedFormat
    source: PackedSource


def find_packed(
    checkpoint: Checkpoint, scheme: Scheme | None, file_name: str, shape: tuple[int, ...]
) -> PackedMatrix | None:
    """The matrix `file_name`, if the checkpoint holds it in the scheme. FileError if a part of it is missing or of
    another shape; UnsupportedError where its layout cannot be multiplied.
    """
    if scheme is None or len(shape) != 2:
        return None
    stem, main = file_name.removesuffix(".weight"), scheme.parts[0]
    held = checkpoint.tensors.get(stem + main.suffix)
    if held is None or held.format != main.format:
        return None
    if scheme.packing is None or scheme.packing.bits not in _BITS[scheme.packing.layout]:
        raise UnsupportedError(
            f"{checkpoint.path} holds {held.name} as {scheme.name}, which can be planned and not yet run; "
            "run a model in GPTQ, AWQ or compressed-tensors' integers, or a GGUF file."
        )
    packing = scheme.packing
    parts: list[SourceTensor] = []
    for suffix, (number_format, part_shape) in scheme.parts_of(shape).items():
        source = checkpoint.tensors.get(stem + suffix)
        is_needed = packing.ordered if suffix.endswith("g_idx") else suffix not in _NOT_NEEDED
        if source is None and is_needed:
            raise FileError(f"{checkpoint.path} lacks the tensor {stem + suffix}; fetch the model again.")
        if source is not None and source.shape != part_shape:
            raise FileError(
                f"{checkpoint.path} holds {source.name} of shape {source.shape}, and its configuration asks for "
                f"{part_shape}; fetch the model again."
            )
        if source is not None and source.format != number_format and suffix not in _SCALES:
            raise FileError(f"{checkpoint.path} holds {source.name} in {source.format.name}, not {number_format.name}.")
        if source is not None and suffix not in _NOT_NEEDED:
            parts.append(source)
    found = PackedSource(packing=packing, parts=tuple(parts))
    return PackedMatrix(format=_stored(checkpoint, found, shape), source=found)


def column_groups(source: PackedSource, columns: int) -> bytes | None:
    """The content of the tensor that tells each column's group; None where groups are runs of columns."""
    index = source.group_index
    if index is None or not source.packing.ordered:
        return None
    with index.path.open("rb") as file:
        file.seek(index.offset)
        content = file.read(index.num_bytes)
    group = source.packing.group or columns
    in_order = b"".join((column // group).to_bytes(4, "little") for column in range(columns))
    return None if content == in_order else content


def _stored(checkpoint: Checkpoint, source: PackedSource, shape: tuple[int, ...]) -> GroupedFormat:
    """Groups as in the file, or such that theirs are several of ours."""
    packing = source.packing
    rows, columns = shape
    main, scales = source.parts[0], next(part for part in source.parts if part.name.endswith(_SCALES))
    group = next((each for each in GROUPS if columns % each == 0 and (packing.group or columns) % each == 0), None)
    if group is None or rows % 8:
        raise UnsupportedError(
            f"{checkpoint.path} holds {main.name} of {rows} x {columns} values in groups of "
            f"{packing.group or columns}; rows must be a multiple of 8, and columns and groups of 32, to be run."
        )
    if scales.format.name not in ("F16", "BF16", "F32"):
        raise UnsupportedError(f"{checkpoint.path} holds {scales.name} in {scales.format.name}, not as floats.")
    if packing.layout == "int8" and not packing.symmetric:
        raise UnsupportedError(
            f"{checkpoint.path} holds {main.name} in eight bits with zero points, which can be planned and not yet run."
        )
    return grouped(bits=packing.bits, group=group, scales=scales.format, has_zero=not packing.symmetric)
