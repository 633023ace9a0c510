"""Bytes of a device's tensors by class: weights, master weights, gradients and optimizer states."""

from collections.abc import Iterable
from dataclasses import dataclass

from residency.planner.training.optimizers import QUANTILES_BYTES, state_bytes
from residency.planner.training.options import TrainingOptions
from residency.planner.training.tensors import DeviceTensor, absmax_bytes, nf4_bytes


@dataclass(frozen=True, kw_only=True)
class TensorBytes:
    """What the tensors of one device come to in each class, shared by ZeRO, wherever they lie."""

    weights: int
    master_weights: int
    gradients: int
    optimizer: int


def tensor_bytes(tensors: Iterable[DeviceTensor], training: TrainingOptions) -> TensorBytes:
    """Bytes of each class of `tensors` on one data-parallel rank."""
    held = tuple(tensors)
    optimizer = sum(_state_bytes(t, training) for t in held if t.trainable)
    if training.optimizer == "adam8bit" and optimizer:
        optimizer += QUANTILES_BYTES
    return TensorBytes(
        weights=share(sum(weight_bytes(t, training) for t in held), training.shards(3)),
        master_weights=share(sum(_master_bytes(t, training) for t in held), training.shards(1)),
        gradients=share(sum(gradient_bytes(t, training) for t in held), training.shards(2)),
        optimizer=share(optimizer, training.shards(1)),
    )


def weight_bytes(tensor: DeviceTensor, training: TrainingOptions) -> int:
    """Bytes of a tensor's values. Beside NF4 matrices the rest is float32, but in pure bf16."""
    lora = training.lora
    if tensor.is_nf4 and lora is not None:
        scales = absmax_bytes((tensor,), double_quantization=lora.double_quantization)
        return nf4_bytes((tensor,)) + scales
    float32 = lora is not None and training.precision != "bf16" and (tensor.is_adapter or lora.nf4)
    return tensor.num_values * (4 if float32 else training.numerics.weight_bytes)


def gradient_bytes(tensor: DeviceTensor, training: TrainingOptions) -> int:
    """Bytes of a tensor's gradient; an adapter's is of the adapter's type."""
    if not tensor.trainable:
        return 0
    return weight_bytes(tensor, training) if tensor.is_adapter else tensor.num_values * training.numerics.gradient_bytes


def _master_bytes(tensor: DeviceTensor, training: TrainingOptions) -> int:
    kept = tensor.trainable and not tensor.is_adapter
    return tensor.num_values * training.numerics.master_bytes if kept else 0


def _state_bytes(tensor: DeviceTensor, training: TrainingOptions) -> int:
    value_bytes = weight_bytes(tensor, training) // tensor.num_values if tensor.is_adapter else None
    return tensor.copies * state_bytes(
        training.optimizer,
        tensor.shape,
        value_bytes=value_bytes or training.numerics.state_bytes,
        is_hidden=tensor.in_layer,
    )


def share(num_bytes: int, ranks: int) -> int:
    """The largest part where `ranks` share `num_bytes`."""
    return -(-num_bytes // ranks)
