"""Both products of a gated feed-forward network and their gated product at once, for prompts in tile registers."""

from residency.kernels.matmul import Matrix
from residency.kernels.order import in_order
from residency.kernels.recorder import Recorder, Rows, address_of, row_bytes
from residency.kernels.simd.tiles import has_tiles
from residency.spec.model import Activation


def can_gate(gate: Matrix, up: Matrix) -> bool:
    """Whether the products of prompts with these matrices can be computed at once here."""
    return (
        isinstance(gate, Matrix)
        and has_tiles()
        and gate.format == up.format
        and _order(gate) == _order(up)
        and not gate.format.is_float
        and gate.rows % 32 == 0
    )


def _order(matrix: Matrix) -> int:
    return 0 if matrix.order is None else address_of(matrix.order)


def gated_linear(step: Recorder, x: Rows, gate: Matrix, up: Matrix, activation: Activation, into_q8: str) -> None:
    """activation(x · gateᵀ) * (x · upᵀ), for the rows of prompts alone, packed into the buffer `into_q8`.

    x (tokens, columns); gate, up (intermediate, columns). See N. Shazeer: GLU variants improve Transformer, 2020.
    """
    assert can_gate(gate, up) and (gate.rows, gate.columns) == (up.rows, up.columns)
    if gate.order is not None:
        x = in_order(step, x, gate.order)
    source, q8 = x.as_q8(), step.buffers[into_q8]
    step.launch(
        f"gated_matmul.{activation}_{gate.format.name}",
        meet=False,
        gate=address_of(gate.tiles),
        up=address_of(up.tiles),
        x=address_of(source),
        x_stride=row_bytes(source),
        q8=address_of(q8),
        q8_stride=row_bytes(q8),
        groups=gate.rows // 32,
        blocks=gate.blocks,
        int8_at=step.inputs.num_int8,
        tokens_at=step.inputs.num_tokens,
    )
