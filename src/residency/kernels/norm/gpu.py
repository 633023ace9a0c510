"""RMS norm on a device: one program a row."""

import triton
import triton.language as tl

from residency.kernels.device import DeviceStep, Tensor
from residency.kernels.device_language import power_of_two
from residency.kernels.recorder import Rows

_VALUES_PER_WARP = 512  # 16 a lane: two loads of 16 bytes


def rms_norm(
    step: DeviceStep, x: Tensor, weight: Tensor, epsilon: float, into: str, *, of_logits: bool = False
) -> Rows:
    """See kernels.norm.rms_norm."""
    out = step.buffers[into][: step.rows(of_logits=of_logits)]
    rows = step.buffers["logit_rows"] if of_logits else None
    if of_logits or not step.only_logits:
        _launch(x, weight, epsilon, out, rows, add=False)
    return Rows(out)


def rms_norm_add(step: DeviceStep, x: Tensor, weight: Tensor, epsilon: float, residual: Tensor) -> None:
    """See kernels.norm.rms_norm_add."""
    if not step.only_logits:
        _launch(x, weight, epsilon, residual[: step.rows()], None, add=True)


def _launch(x: Tensor, weight: Tensor, epsilon: float, out: Tensor, rows: Tensor | None, *, add: bool) -> None:
    columns = weight.numel()
    block = power_of_two(columns)
    _rms_norm[(len(out),)](
        x,
        rows,
        weight,
        out,
        columns,
        x.stride(0),
        out.stride(0),
        epsilon,
        GATHERS=rows is not None,
        ADD=add,
        BLOCK=block,
        num_warps=min(16, max(1, block // _VALUES_PER_WARP)),
    )


@triton.jit
def _rms_norm(
    x,
    rows,
    weight,
    out,
    columns,
    x_stride,
    out_stride,
    epsilon,
    GATHERS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    source = tl.load(rows + row).to(tl.int64) if GATHERS else row.to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    values = tl.load(x + source * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values * values) / columns
    normed = values * tl.rsqrt(mean + epsilon) * tl.load(weight + column, mask=inside, other=0.0)
    place = out + row.to(tl.int64) * out_stride + column
    if ADD:
        normed += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, normed, mask=inside)
