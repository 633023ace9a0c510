"""A planned model against the headers of its files: the formats are those of the files, and nothing is left over."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from residency.errors import FileError, UnsupportedError
from residency.formats import Format
from residency.formats.schemes import Scheme
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import LayerSpec, ModelSpec, SourceTensor, TensorSpec

# What different savers put before a tensor's own name.
_PREFIX = re.compile(r"^((transformer|model|language_model)\.)+|(?<=^vision_tower\.)vision_model\.")
# Tables that are computed from the configuration, masks, scales of what is quantized while it runs, text.
_IGNORED = re.compile(
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.(masked_)?bias"
    r"|\.(k_scale|v_scale|input_scale|output_scale|input_zero_point|weight_zero_point)"
    r"|\.quant_state\.bitsandbytes__\w+)$"
)


def from_headers(model: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """`model` with the number formats that the files of `checkpoint` have. FileError if a tensor is missing or of
    another shape, UnsupportedError if the files hold one that the model has no use for.
    """
    held = {_own(name): tensor for name, tensor in checkpoint.tensors.items()}
    used: set[str] = set()

    def found(tensor: TensorSpec) -> TensorSpec:
        if not tensor.copies:
            return tensor
        formats = []
        for name, shape in parts_of(tensor):
            source = held.get(_own(name))
            if source is None:
                raise FileError(f"{checkpoint.path} lacks the tensor {name}; fetch the model again.")
            if source.shape != shape:
                raise FileError(
                    f"{checkpoint.path} holds {source.name} of shape {source.shape}, and its configuration asks for "
                    f"{shape}; fetch the model again."
                )
            used.add(_own(name))
            formats.append(source.format)
        return replace(tensor, format=_as_held(tensor, formats, checkpoint))

    whole = replace(
        model,
        embedding=found(model.embedding),
        layers=tuple(_with_tensors(layer, [found(tensor) for tensor in layer.tensors]) for layer in model.layers),
        final_norm=found(model.final_norm),
        head=None if model.head is None else found(model.head),
        others=tuple(found(tensor) for tensor in model.others),
        unused=(),
        notes=(),
    )
    return replace(whole, unused=tuple(_unused(model, held, used, checkpoint)))


def parts_of(tensor: TensorSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of the file that `tensor` stands for: its copies, the parts of its scheme."""
    for number in range(tensor.copies):
        name = tensor.name.replace("{}", str(number))
        if isinstance(tensor.format, Scheme):
            stem = name.removesuffix(".weight")
            for suffix, (_, shape) in tensor.format.parts_of(tensor.shape).items():
                yield stem + suffix, shape
        else:
            yield name, tensor.shape


def _as_held(tensor: TensorSpec, formats: list[Format], checkpoint: Checkpoint) -> Format:
    """The format of the copies of a tensor, given that of each part of each copy in the file."""
    num_parts = len(formats) // tensor.copies
    first = formats[:num_parts]
    if formats != first * tensor.copies:
        names = " and ".join(sorted({each.name for each in formats}))
        raise UnsupportedError(f"{checkpoint.path} holds the copies of {tensor.name} in {names}, not all alike.")
    if not isinstance(tensor.format, Scheme):
        return first[0]
    held = (replace(part, format=each) for part, each in zip(tensor.format.parts, first, strict=True))
    return replace(tensor.format, parts=tuple(held))


def _unused(
    model: ModelSpec, held: Mapping[str, SourceTensor], used: set[str], checkpoint: Checkpoint
) -> Iterator[TensorSpec]:
    expected = {_own(name) for tensor in model.unused for name, _ in parts_of(tensor)}
    expected |= {"lm_head.weight"} if model.tied else set()
    for name, source in held.items():
        if name in used:
            continue
        is_empty_bias = name.removesuffix(".bias") + ".qweight" in held  # GPTQ's tools write one for every matrix
        if name not in expected and not is_empty_bias and not _IGNORED.search(name):
            raise UnsupportedError(
                f"{checkpoint.path} holds the tensor {source.name[:80]!r}, which {model.architecture} models here have "
                "no use for; the model is of a variant that is not known."
            )
        yield TensorSpec(name=source.name, shape=source.shape, format=source.format, role="other", source=source)


def _with_tensors(layer: LayerSpec, tensors: list[TensorSpec]) -> LayerSpec:
    return replace(layer, tensors=tuple(tensors))


def _own(name: str) -> str:
    """A tensor's name without what savers put before it."""
    return _PREFIX.sub("", _PREFIX.sub("", name))
