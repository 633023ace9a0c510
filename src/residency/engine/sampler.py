"""From logits to a token."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.errors import UsageError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. A temperature of 0 takes the likeliest; None switches a filter off.

    The filters apply in this order: repetition penalty, temperature, top_k, min_p, top_p.
    """

    temperature: float = 0.0
    top_k: int | None = None  # only the k likeliest
    top_p: float | None = None  # only the likeliest that together have this probability (Holtzman et al., 2020)
    min_p: float | None = None  # only those with this part of the likeliest's probability (Nguyen et al., 2024)
    repetition_penalty: float = 1.0  # divides the logits of tokens that occurred, if positive (Keskar et al., 2019)
    seed: int | None = None  # None: a different text each time

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature >= 0.0, "0 or more"),
            ("top-k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top-p", self.top_p is None or 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p is None or 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition penalty", self.repetition_penalty > 0.0, "above 0"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, good, range_text in checks:
            if not good:  # also refuses NaN
                raise UsageError(f"the {name} must be {range_text}.")


class Sampler:
    """Chooses the tokens of one request; equal seeds and logits give equal tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def sample(self, logits: FloatArray, earlier: npt.NDArray[np.int64]) -> int:
        """A token by its logits (vocabulary,), which stay as they are; `earlier` tokens are penalised."""
        chosen = self._sampling
        if chosen.repetition_penalty != 1.0 and earlier.size:
            logits = _penalised(logits, earlier, chosen.repetition_penalty)
        if chosen.temperature == 0.0:
            return int(logits.argmax())
        tokens, scaled = _top_k(logits, chosen.top_k)
        weights = np.exp((scaled - scaled.max()) / np.float32(chosen.temperature))
        if chosen.min_p is not None:
            weights[weights < chosen.min_p] = 0.0  # the likeliest has a weight of 1
        if chosen.top_p is not None:
            weights[_outside_top_p(weights, chosen.top_p)] = 0.0
        totals = np.cumsum(weights, dtype=np.float64)
        place = int(np.searchsorted(totals, self._random.random() * totals[-1], side="right"))
        return place if tokens is None else int(tokens[place])


def _outside_top_p(weights: FloatArray, top_p: float) -> npt.NDArray[np.int64]:
    """Places of those beyond the likeliest that together have the part `top_p` of all weight."""
    order = np.argsort(-weights, kind="stable")
    totals = np.cumsum(weights[order], dtype=np.float64)
    return order[int(np.searchsorted(totals, top_p * totals[-1])) + 1 :]


def _penalised(logits: FloatArray, earlier: npt.NDArray[np.int64], penalty: float) -> FloatArray:
    seen = np.unique(earlier)
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _top_k(logits: FloatArray, top_k: int | None) -> tuple[npt.NDArray[np.int64] | None, FloatArray]:
    """The k likeliest tokens in rising order of number, with their logits; None for all of them."""
    if top_k is None or top_k >= len(logits):
        return None, logits
    tokens = np.sort(np.argpartition(-logits, top_k - 1)[:top_k])
    return tokens, logits[tokens]
