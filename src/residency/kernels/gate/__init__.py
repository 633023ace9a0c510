"""The gated product of a feed-forward network."""

from residency.kernels.device import DeviceStep, on_device
from residency.kernels.recorder import FloatArray, Recorder, Rows, address_of, row_bytes
from residency.spec.model import Activation


def gated(
    step: Recorder,
    gate: FloatArray,
    up: FloatArray,
    activation: Activation,
    columns: int,
    into_q8: str,
    *,
    but_prompts: bool = False,
) -> Rows:
    """activation(gate) * up, over `gate` or quantized into the buffer `into_q8`, whichever is read.

    With `but_prompts` prompts' rows are left out. gate, up (tokens, columns) (N. Shazeer: GLU variants improve
    Transformer, 2020).
    """
    if isinstance(step, DeviceStep):
        product: Rows = on_device("gate").gated(step, gate, up, activation, columns)
        return product
    assert columns % 32 == 0, "a gated product works on groups of 32 columns"
    assert row_bytes(gate) == row_bytes(up)
    q8 = step.buffers[into_q8]
    launch = step.launch(
        f"gate.{activation}",
        gate=address_of(gate),
        up=address_of(up),
        stride=row_bytes(gate),
        columns=columns,
        q8=0,
        q8_stride=row_bytes(q8),
        together=1,
        int8_at=step.inputs.num_int8,
        tokens_at=step.inputs.num_int8 if but_prompts else step.inputs.num_tokens,
    )
    return Rows(gate, q8, launch)
