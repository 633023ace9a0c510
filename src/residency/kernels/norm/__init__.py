"""RMS norm."""

from residency.kernels.device import DeviceStep, on_device
from residency.kernels.recorder import FloatArray, Launch, Recorder, Rows, address_of, row_bytes


def rms_norm(
    step: Recorder, x: FloatArray, weight: FloatArray, epsilon: float, into: str, *, of_logits: bool = False
) -> Rows:
    """x / rms(x) * weight into the buffers `into` and `into`_q8, whichever is read (B. Zhang, R. Sennrich, 2019).

    x (tokens, columns), weight (columns,). With `of_logits` only the rows whose logits are wanted, in their order.
    """
    if isinstance(step, DeviceStep):
        normed: Rows = on_device("norm").rms_norm(step, x, weight, epsilon, into, of_logits=of_logits)
        return normed
    rows = Rows(step.buffers[into], step.buffers[f"{into}_q8"])
    rows.launch = _launch(step, x, weight, epsilon, rows.values, of_logits=of_logits)
    rows.launch.words.update(out=0, q8=0, q8_stride=row_bytes(step.buffers[f"{into}_q8"]))
    return rows


def rms_norm_add(step: Recorder, x: FloatArray, weight: FloatArray, epsilon: float, residual: FloatArray) -> None:
    """residual += x / rms(x) * weight, as after Gemma's attention and feed-forward."""
    if isinstance(step, DeviceStep):
        on_device("norm").rms_norm_add(step, x, weight, epsilon, residual)
        return
    launch = _launch(step, x, weight, epsilon, residual)
    launch.words["add"] = 1


def _launch(
    step: Recorder, x: FloatArray, weight: FloatArray, epsilon: float, out: FloatArray, *, of_logits: bool = False
) -> Launch:
    assert weight.size % 32 == 0, "a norm works on groups of 32 columns"
    return step.launch(
        "norm.rms",
        x=address_of(x),
        x_stride=row_bytes(x),
        rows_at=step.inputs.logit_rows if of_logits else 0,
        weight=address_of(weight),
        epsilon=epsilon,
        columns=weight.size,
        out=address_of(out),
        out_stride=row_bytes(out),
        add=0,
        q8=0,
        q8_stride=0,
        together=1,
        int8_at=step.inputs.num_logits if of_logits else step.inputs.num_int8,
        tokens_at=step.inputs.num_logits if of_logits else step.inputs.num_tokens,
    )
