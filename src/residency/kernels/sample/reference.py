"""The choice of a token, defined in plain NumPy; never optimised. Shape suffixes: R rows, V vocabulary."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def draw(logits_V: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, part: float) -> int:
    """The token at which the running sum of the weights that are kept passes `part` of their whole.

    Weights are exp(logit / temperature). Kept are, one filter after the other, the `top_k` likeliest; those with at
    least `min_p` of the likeliest's weight; the likeliest of these that together have `top_p` of the rest's weight.
    Tokens as likely as the last one kept are kept, too. A temperature of 0 takes the likeliest, of equals the first.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    weights_V = np.exp((logits_V.astype(np.float64) - logits_V.max()) / temperature)
    weights_V[logits_V < np.sort(logits_V)[::-1][min(top_k, len(logits_V)) - 1]] = 0.0
    weights_V[weights_V < min_p] = 0.0
    falling_V = np.sort(weights_V)[::-1]
    num_kept = int(np.searchsorted(np.cumsum(falling_V), top_p * weights_V.sum())) + 1
    weights_V[weights_V < falling_V[min(num_kept, len(falling_V)) - 1]] = 0.0
    totals_V = np.cumsum(weights_V)
    return int(np.searchsorted(totals_V, min(part * totals_V[-1], np.nextafter(totals_V[-1], 0.0)), side="right"))


def likeliest(logits_RV: Floats) -> list[int]:
    """The token with the largest logit of each row, of equals the first."""
    return [max(range(len(logits_V)), key=lambda token: logits_V[token]) for logits_V in logits_RV]
