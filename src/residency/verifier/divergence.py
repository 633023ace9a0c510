"""How far a model's predictions are from a reference's: what a smaller format changed.

The Kullback-Leibler divergence of each next token's distribution (S. Kullback, R. Leibler: On information and
sufficiency, 1951), in nats, from the reference to the model; and how often both hold the same token for the likeliest.
Perplexity may stay while predictions move; divergence does not. Shape suffixes: T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenDivergences:
    """Of each scored token."""

    nats_T: Doubles
    agrees_T: npt.NDArray[np.bool_]

    @staticmethod
    def joined(parts: Sequence["TokenDivergences"]) -> "TokenDivergences":
        """One after the other."""
        return TokenDivergences(
            nats_T=np.concatenate([part.nats_T for part in parts]),
            agrees_T=np.concatenate([part.agrees_T for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Over all scored tokens; `error` is one standard error of the mean."""

    mean: float
    error: float
    p99: float
    top1_agreement: float

    def to_data(self) -> dict[str, float]:
        """The divergence alone, as JSON values."""
        return {"mean": self.mean, "error": self.error, "p99": self.p99}


def token_divergences(reference_TV: Logits, model_TV: Logits) -> TokenDivergences:
    """Of each row of logits, both of one vocabulary; computed in float64."""
    nats_T = np.empty(len(reference_TV))
    agrees_T = np.empty(len(reference_TV), np.bool_)
    for index, (reference_V, model_V) in enumerate(zip(reference_TV, model_TV, strict=True)):  # rows are long
        log_p_V, log_q_V = _log_probabilities(reference_V), _log_probabilities(model_V)
        nats_T[index] = max(0.0, float(np.exp(log_p_V) @ (log_p_V - log_q_V)))  # below 0 by rounding alone
        agrees_T[index] = reference_V.argmax() == model_V.argmax()
    return TokenDivergences(nats_T=nats_T, agrees_T=agrees_T)


def divergence_of(tokens: TokenDivergences) -> Divergence:
    """Over all tokens, at least two."""
    nats_T = tokens.nats_T
    return Divergence(
        mean=float(nats_T.mean()),
        error=float(nats_T.std(ddof=1)) / math.sqrt(nats_T.size),
        p99=float(np.quantile(nats_T, 0.99)),
        top1_agreement=float(tokens.agrees_T.mean()),
    )


def _log_probabilities(logits_V: Logits) -> Doubles:
    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    logs_V: Doubles = shifted_V - math.log(np.exp(shifted_V).sum())
    return logs_V
