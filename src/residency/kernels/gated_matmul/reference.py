"""Both products of a gated feed-forward network of a prompt, defined in plain NumPy; never optimised."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from residency.formats import Format
from residency.kernels.gate import reference as gate_reference
from residency.kernels.matmul.reference import Doubles, Floats, prompt_linear


def gated_linear(
    x_TC: Floats,
    number_format: Format,
    gate_RB: npt.NDArray[np.uint8],
    up_RB: npt.NDArray[np.uint8],
    activation: Literal["silu", "gelu_tanh"],
) -> Doubles:
    """activation(x · gateᵀ) * (x · upᵀ), (tokens, rows), x and the matrices rounded to bfloat16."""
    gate_TR, up_TR = (prompt_linear(x_TC, number_format, rows_RB) for rows_RB in (gate_RB, up_RB))
    return gate_reference.gated(gate_TR.astype(np.float32), up_TR.astype(np.float32), activation)
