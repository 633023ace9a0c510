"""The values of each tensor on one device: shared by tensor and pipeline parallelism, frozen, adapted or packed."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from residency.errors import UsageError
from residency.planner.training.options import TARGET_GROUPS, LoraOptions, TrainingOptions
from residency.spec.model import AttentionSpec, LayerSpec, ModelSpec, TensorSpec
from residency.spec.ranks import VOCABULARY_PADDING

NF4_BLOCK_VALUES = 64  # share one scale, "absmax"
NF4_CODE_BYTES = 16 * 4  # the sixteen values themselves, with each matrix
SCALE_BLOCK_VALUES = 256  # scales that share one, where they are quantized again
SCALE_CODE_BYTES = 256 * 4
LINEAR_ROLES = ("matrix", "expert", "router")
MLP_PARTS = ("mlp", "feed_forward", "ffn", "experts", "block_sparse_moe", "fc1", "fc2")  # in names of modules


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """One tensor as a device holds it; `shape` is the device's part, of one of `copies`."""

    name: str
    shape: tuple[int, ...]
    copies: int = 1
    in_layer: bool = False
    trainable: bool = True
    is_adapter: bool = False
    is_nf4: bool = False

    @property
    def num_values(self) -> int:
        """Values of all copies."""
        return self.copies * math.prod(self.shape)


def stage_tensors(model: ModelSpec, training: TrainingOptions, stage: int) -> tuple[DeviceTensor, ...]:
    """What one device of pipeline stage `stage` holds."""
    layers = stage_layers(model, training, stage)
    return (*end_tensors(model, training, stage), *(t for layer in layers for t in layer_tensors(layer, training)))


def end_tensors(model: ModelSpec, training: TrainingOptions, stage: int) -> tuple[DeviceTensor, ...]:
    """What it holds beside layers. The first stage has the embedding, the last norm and head: a tied embedding is on
    both.
    """
    first, last = stage == 0, stage == training.pipeline_parallel - 1
    ends: list[TensorSpec] = [model.embedding] if first or (last and model.tied) else []
    ends += [model.final_norm, *([model.head] if model.head else [])] if last else []
    ends += [t for t in model.others if (first if t.role in ("position", "vision") else last)]
    return tuple(_on_device(tensor, training, None) for tensor in ends)


def stage_layers(model: ModelSpec, training: TrainingOptions, stage: int) -> tuple[LayerSpec, ...]:
    """The layers of one pipeline stage."""
    per_stage = len(model.layers) // training.pipeline_parallel
    return model.layers[stage * per_stage : (stage + 1) * per_stage]


def layer_tensors(layer: LayerSpec, training: TrainingOptions) -> list[DeviceTensor]:
    """What one device holds of one layer, adapters last."""
    held = [_on_device(tensor, training, layer) for tensor in layer.tensors]
    if training.lora:
        lora, adapted = training.lora, adapted_matrices(layer, training.lora)
        held += [part for tensor in adapted for part in _adapter(tensor, lora, training.tensor_parallel)]
    return held


def adapted_matrices(layer: LayerSpec, lora: LoraOptions) -> tuple[TensorSpec, ...]:
    """The layer's matrices that adapters sit beside."""
    linear = [t for t in layer.tensors if t.role in LINEAR_ROLES and len(t.shape) >= 2]
    if "all-linear" in lora.targets:
        return tuple(linear)
    with_attention = "attention" in lora.targets
    return tuple(t for t in linear if module_name(t) in lora.targets or (with_attention and not in_mlp(t)))


def in_mlp(tensor: TensorSpec) -> bool:
    """Whether a matrix belongs to the feed-forward network."""
    parts = tensor.name.split(".")
    return tensor.role in ("expert", "router") or any(part in parts for part in MLP_PARTS)


def module_name(tensor: TensorSpec) -> str:
    """ "q_proj" of "model.layers.0.self_attn.q_proj.weight"."""
    parts = [part for part in tensor.name.split(".") if part not in ("weight", "bias")]
    return parts[-1]


def check_targets(model: ModelSpec, lora: LoraOptions) -> None:
    """UsageError if a target is no matrix of the model."""
    known = {module_name(t): None for layer in model.layers for t in layer.tensors if t.role in LINEAR_ROLES}
    for target in lora.targets:
        if target not in TARGET_GROUPS and target not in known:
            raise UsageError(
                f"{model.name} has no matrix called {target[:40]!r} to adapt; choose among {', '.join(known)}."
            )


def nf4_bytes(tensors: Iterable[DeviceTensor]) -> int:
    """Bytes of the packed matrices, half a byte a value, without scales."""
    return _sum(tensors, lambda values: -(-values // 2))


def absmax_bytes(tensors: Iterable[DeviceTensor], *, double_quantization: bool) -> int:
    """Bytes of the scales and tables of packed matrices.

    A float32 for every 64 values and the table of 16; quantized again, a byte for every 64, a float32 for every 256
    of those, their mean and a second table (QLoRA, arXiv 2305.14314, section 3, as bitsandbytes keeps it).
    """

    def scales(values: int) -> int:
        blocks = -(-values // NF4_BLOCK_VALUES)
        if not double_quantization:
            return 4 * blocks + NF4_CODE_BYTES
        return blocks + 4 * -(-blocks // SCALE_BLOCK_VALUES) + 4 + SCALE_CODE_BYTES + NF4_CODE_BYTES

    return _sum(tensors, scales)


def _sum(tensors: Iterable[DeviceTensor], count: Callable[[int], int]) -> int:
    return sum(tensor.copies * count(math.prod(tensor.shape)) for tensor in tensors if tensor.is_nf4)


def _on_device(tensor: TensorSpec, training: TrainingOptions, layer: LayerSpec | None) -> DeviceTensor:
    lora = training.lora
    packed = lora is not None and lora.nf4 and layer is not None and tensor.role in LINEAR_ROLES
    return DeviceTensor(
        name=tensor.name,
        shape=rank_shape(tensor, training.tensor_parallel, layer),
        copies=tensor.copies,
        in_layer=layer is not None,
        trainable=lora is None and tensor.role != "vision",
        is_nf4=packed and len(tensor.shape) >= 2,
    )


def rank_shape(tensor: TensorSpec, tensor_parallel: int, layer: LayerSpec | None = None) -> tuple[int, ...]:
    """The part of a tensor that one tensor-parallel rank holds; a vocabulary is padded before it is shared."""
    if tensor.split == "replicated" or tensor_parallel == 1:
        return tensor.shape
    first, *rest = tensor.shape
    if tensor.split == "vocabulary":
        padded = -(-first // VOCABULARY_PADDING) * VOCABULARY_PADDING
        return (-(-padded // tensor_parallel), *rest)
    if tensor.split == "columns":
        return (*tensor.shape[:-1], -(-tensor.shape[-1] // tensor_parallel))
    attention = layer.attention if layer else None
    heads = attention.num_kv_heads if isinstance(attention, AttentionSpec) else tensor_parallel
    parts = min(tensor_parallel, heads) if tensor.split == "kv_heads" else tensor_parallel
    return (*tensor.shape[:-2], -(-tensor.shape[-2] // parts), tensor.shape[-1]) if rest else (-(-first // parts),)


def _adapter(tensor: TensorSpec, lora: LoraOptions, tensor_parallel: int) -> tuple[DeviceTensor, DeviceTensor]:
    """Down to the rank and up again; each is split as the side of the matrix that it meets."""
    *stack, rows, columns = tensor.shape
    down = columns // tensor_parallel if tensor.split == "columns" else columns
    up = rows // tensor_parallel if tensor.split in ("rows", "kv_heads") else rows
    copies = tensor.copies * math.prod(stack)
    return tuple(  # type: ignore[return-value]
        DeviceTensor(name=f"{tensor.name}.lora_{part}", shape=shape, copies=copies, in_layer=True, is_adapter=True)
        for part, shape in (("A", (lora.rank, down)), ("B", (up, lora.rank)))
    )
