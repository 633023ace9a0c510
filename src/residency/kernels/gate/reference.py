"""The gated product, defined in plain NumPy; never optimised. Shape suffixes: T tokens, C columns."""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def gated(gate_TC: Floats, up_TC: Floats, activation: Literal["silu", "gelu_tanh"]) -> Doubles:
    """activation(gate) * up (N. Shazeer: GLU variants improve Transformer, 2020)."""
    wide_TC = gate_TC.astype(np.float64)
    product_TC: Doubles = (silu(wide_TC) if activation == "silu" else gelu_tanh(wide_TC)) * up_TC
    return product_TC


def silu(x: Doubles) -> Doubles:
    """x / (1 + exp(-x)), of any shape."""
    with np.errstate(over="ignore"):  # exp(-x) may be infinite, and the quotient 0
        result: Doubles = x / (1 + np.exp(-x))
    return result


def gelu_tanh(x: Doubles) -> Doubles:
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))), of any shape (D. Hendrycks, K. Gimpel: GELUs, 2016)."""
    result: Doubles = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result
