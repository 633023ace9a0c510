"""Bytes that an optimizer remembers of one tensor.

AdamW, SGD, Adafactor and Muon as torch.optim keeps them, to the byte; Lion by its paper (arXiv 2302.06675: one
moment); 8-bit Adam as bitsandbytes keeps it (arXiv 2110.02861).
"""

import math
from collections.abc import Callable

from residency.planner.training.options import Optimizer

STEP_BYTES = 4  # torch.optim counts steps in one float32 for each tensor
BLOCK_VALUES = 256  # of 8-bit states; each block of each moment has a float32 scale
LEAST_8BIT_VALUES = 4096  # tensors with fewer keep 32-bit states
QUANTILES_BYTES = 2 * 256 * 4  # the two tables of 8-bit values, once on each device

State = Callable[[tuple[int, ...], int], int]


def state_bytes(optimizer: Optimizer, shape: tuple[int, ...], *, value_bytes: int, is_hidden: bool) -> int:
    """Bytes remembered of a tensor of `shape`, whose float states have `value_bytes` each.

    `is_hidden`: a matrix inside a layer, the kind that Muon orthogonalizes; it leaves all others to AdamW.
    """
    if optimizer == "muon":
        return _one_moment(shape, value_bytes) if is_hidden and len(shape) >= 2 else _adamw(shape, value_bytes)
    return STATES[optimizer](shape, value_bytes)


def _one_moment(shape: tuple[int, ...], value_bytes: int) -> int:
    return math.prod(shape) * value_bytes


def _adamw(shape: tuple[int, ...], value_bytes: int) -> int:
    return 2 * math.prod(shape) * value_bytes + STEP_BYTES


def _adam8bit(shape: tuple[int, ...], value_bytes: int) -> int:
    values = math.prod(shape)
    if values < LEAST_8BIT_VALUES:
        return 2 * values * 4
    return 2 * (values + -(-values // BLOCK_VALUES) * 4)


def _adafactor(shape: tuple[int, ...], value_bytes: int) -> int:
    """One sum for each row and each column of a matrix (arXiv 1804.04235); of a vector, every value."""
    if len(shape) < 2:
        return math.prod(shape) * value_bytes + STEP_BYTES
    *copies, rows, columns = shape
    return math.prod(copies) * (rows + columns) * value_bytes + STEP_BYTES


STATES: dict[Optimizer, State] = {
    "adamw": _adamw,
    "adam8bit": _adam8bit,
    "sgd": _one_moment,
    "lion": _one_moment,
    "adafactor": _adafactor,
}
