"""A mixture of experts, defined in plain NumPy; never optimised.

Shape suffixes: T tokens, E experts, K experts of a token, C columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Where tokens are sent, and with which weights."""

    experts_TK: npt.NDArray[np.int64]  # of the largest probability first; of equal ones the lower number
    weights_TK: Doubles


def routes(logits_TE: Floats, per_token: int, *, renormalized: bool) -> Routes:
    """Each token's experts of the largest probability; `renormalized` weights add up to 1 (N. Shazeer et al.:
    Outrageously large neural networks, 2017; A. Q. Jiang et al.: Mixtral of experts, 2024).
    """
    wide_TE = logits_TE.astype(np.float64)
    powers_TE = np.exp(wide_TE - wide_TE.max(axis=1, keepdims=True))
    shares_TE = powers_TE / powers_TE.sum(axis=1, keepdims=True)
    experts_TK = np.argsort(-shares_TE, axis=1, kind="stable")[:, :per_token]
    weights_TK = np.take_along_axis(shares_TE, experts_TK, axis=1)
    if renormalized:
        weights_TK = weights_TK / weights_TK.sum(axis=1, keepdims=True)
    return Routes(experts_TK=experts_TK, weights_TK=weights_TK)


def combined(hidden_TC: Floats, products_TKC: Floats, weights_TK: Floats) -> Doubles:
    """What was there, and each token's experts' products by their weights."""
    added_TC: Doubles = np.einsum("tkc,tk->tc", products_TKC.astype(np.float64), weights_TK.astype(np.float64))
    return hidden_TC + added_TC
