"""RMS norm, defined in plain NumPy; never optimised. Shape suffixes: T tokens, C columns."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def rms_norm(x_TC: Floats, weight_C: Floats, epsilon: float) -> Doubles:
    """x / sqrt(mean(x²) + epsilon) * weight, row by row (B. Zhang, R. Sennrich: Root Mean Square Layer Norm, 2019)."""
    wide_TC = x_TC.astype(np.float64)
    mean_T1 = (wide_TC**2).mean(axis=-1, keepdims=True)
    normed_TC: Doubles = wide_TC / np.sqrt(mean_T1 + epsilon) * weight_C
    return normed_TC


def rms_norm_add(x_TC: Floats, weight_C: Floats, epsilon: float, residual_TC: Floats) -> Doubles:
    """residual + rms_norm(x)."""
    added_TC: Doubles = residual_TC + rms_norm(x_TC, weight_C, epsilon)
    return added_TC
