"""The gated product on a device, over "gate"."""

import triton
import triton.language as tl

from residency.kernels.device import DeviceStep, Tensor
from residency.kernels.recorder import Rows
from residency.spec.model import Activation

_BLOCK = 1024


def gated(step: DeviceStep, gate: Tensor, up: Tensor, activation: Activation, columns: int) -> Rows:
    """See kernels.gate.gated."""
    rows = gate[: step.rows()]
    if not step.only_logits:
        activate_rows(rows, up, activation, columns)
    return Rows(rows)


def activate_rows(gate: Tensor, up: Tensor, activation: Activation, columns: int) -> None:
    """gate = activation(gate) * up, of all rows of gate."""
    grid = (len(gate), triton.cdiv(columns, _BLOCK))
    _gated[grid](gate, up, columns, gate.stride(0), up.stride(0), ACTIVATION=activation, BLOCK=_BLOCK)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """silu(x), or gelu_tanh(x): see gate/reference.py."""
    if ACTIVATION == "silu":
        active = x * tl.sigmoid(x)
    else:
        active = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # (1 + tanh(y)) / 2 is sigmoid(2 y)
    return active


@triton.jit
def _gated(gate, up, columns, gate_stride, up_stride, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(gate + row * gate_stride + column, activate(x, ACTIVATION) * y, mask=inside)
