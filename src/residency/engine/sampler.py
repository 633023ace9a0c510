"""From logits to a token."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from residency.errors import UsageError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_BLOCK_TOKENS = 64  # whose largest logit bounds the k-th largest of all from below
_NEAR = np.float32(2.0**-10)  # weights below this part of the largest seldom matter to top-p
_FEW = 4096  # weights are quicker sorted than counted into buckets
_LEAST_TEMPERATURE = 1e-30
_MOST_BIAS = 100.0
_MOST_PENALTY = 2.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. A temperature of 0 takes the likeliest; None switches a filter off.

    They apply in this order: penalties and biases, temperature, top_k, min_p, top_p.
    """

    temperature: float = 0.0
    top_k: int | None = None  # only the k likeliest
    top_p: float | None = None  # only the likeliest that together have this probability (Holtzman et al., 2020)
    min_p: float | None = None  # only those with this part of the likeliest's probability (Nguyen et al., 2024)
    repetition_penalty: float = 1.0  # divides the logits of tokens that occurred, if positive (Keskar et al., 2019)
    presence_penalty: float = 0.0  # subtracted from the logits of tokens that the answer has
    frequency_penalty: float = 0.0  # subtracted as often as the answer has the token
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to tokens' logits
    seed: int | None = None  # None: a different text each time

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more"),
            ("top-k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top-p", self.top_p is None or 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p is None or 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition penalty", 0.0 < self.repetition_penalty < float("inf"), "above 0"),
            ("presence penalty", abs(self.presence_penalty) <= _MOST_PENALTY, "between -2 and 2"),
            ("frequency penalty", abs(self.frequency_penalty) <= _MOST_PENALTY, "between -2 and 2"),
            ("logit bias", all(abs(bias) <= _MOST_BIAS for bias in self.logit_bias.values()), "between -100 and 100"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, good, range_text in checks:
            if not good:  # also refuses NaN
                raise UsageError(f"the {name} must be {range_text}.")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a device needs to choose a token by itself."""

    sampling: Sampling
    part: float  # of all weight that is passed over, 0 to 1: the random number

    @property
    def words(self) -> tuple[float, float, float, float, float]:
        """Temperature, top_k, top_p, min_p and the part; filters that are off pass everything."""
        chosen = self.sampling
        most = float(1 << 24) if chosen.top_k is None else float(min(chosen.top_k, 1 << 24))
        return chosen.temperature, most, 1.0 if chosen.top_p is None else chosen.top_p, chosen.min_p or 0.0, self.part


class Sampler:
    """Chooses the tokens of one answer; equal seeds and logits give equal tokens, whoever else is answered."""

    def __init__(self, sampling: Sampling, *, answer: int = 0) -> None:
        """`answer` numbers the answers of one prompt, which get different tokens from one seed."""
        self._sampling = sampling
        seed = (sampling.seed, answer) if sampling.seed is not None and answer else sampling.seed
        self._random = np.random.default_rng(seed)
        self._biased = np.array(list(sampling.logit_bias), np.int64)
        self._biases = np.array(list(sampling.logit_bias.values()), np.float32)

    def sample(
        self,
        logits: FloatArray,
        earlier: IntArray,
        *,
        prompt_tokens: int = 0,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """A token by its logits (vocabulary,), which stay as they are, of those `allowed` (vocabulary,).

        All `earlier` tokens are penalised as repeated, those after the first `prompt_tokens` also as present.
        """
        chosen = self._sampling
        logits = self._adjusted(logits, earlier, prompt_tokens)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        if chosen.temperature == 0.0:
            return int(logits.argmax())
        tokens, scaled = _top_k(logits, chosen.top_k)
        weights = scaled - scaled.max()
        weights /= np.float32(max(chosen.temperature, _LEAST_TEMPERATURE))
        np.exp(weights, out=weights)
        if chosen.min_p is not None:
            weights[weights < chosen.min_p] = 0.0  # the likeliest has a weight of 1
        if chosen.top_p is not None:
            places = _top_p(weights, chosen.top_p)
            weights, tokens = weights[places], places if tokens is None else tokens[places]
        place = _drawn(weights, self._random.random())
        return place if tokens is None else int(tokens[place])

    @property
    def needs_logits_alone(self) -> bool:
        """Whether earlier tokens and biases have no say, so that a device can choose."""
        chosen = self._sampling
        penalties = (chosen.repetition_penalty, chosen.presence_penalty, chosen.frequency_penalty)
        return penalties == (1.0, 0.0, 0.0) and not self._biased.size

    def draw(self) -> Draw:
        """The next choice, for a device to make in place of `sample`."""
        return Draw(sampling=self._sampling, part=0.0 if self._sampling.temperature == 0.0 else self._random.random())

    def _adjusted(self, logits: FloatArray, earlier: IntArray, prompt_tokens: int) -> FloatArray:
        chosen = self._sampling
        answer = earlier[prompt_tokens:]
        repeated = chosen.repetition_penalty != 1.0 and earlier.size > 0
        present = (chosen.presence_penalty != 0.0 or chosen.frequency_penalty != 0.0) and answer.size > 0
        if not (repeated or present or self._biased.size):
            return logits
        logits = logits.copy()
        if repeated:
            seen = np.unique(earlier)
            values, penalty = logits[seen], chosen.repetition_penalty
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if present:
            seen, counts = np.unique(answer, return_counts=True)
            logits[seen] -= (chosen.presence_penalty + chosen.frequency_penalty * counts).astype(np.float32)
        logits[self._biased] += self._biases
        return logits


def allowed_by(mask: npt.NDArray[np.int32], vocabulary: int) -> npt.NDArray[np.bool_]:
    """The tokens (vocabulary,) whose bits are set; see `LogitMask`. Tokens beyond the mask's end are not allowed."""
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")[:vocabulary]
    return np.pad(bits, (0, vocabulary - len(bits))).view(np.bool_)


def log_probabilities(logits: FloatArray, tokens: IntArray) -> FloatArray:
    """The logarithms of the probabilities of `tokens` by logits (vocabulary,)."""
    shifted = logits - logits.max()
    total = np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    found: FloatArray = shifted[tokens] - total
    return found


def likeliest(logits: FloatArray, num_tokens: int) -> IntArray:
    """The tokens with the largest logits, largest first, of equal ones the first."""
    tokens, values = _top_k(logits, num_tokens)
    order = np.argsort(-values, kind="stable")
    return order if tokens is None else tokens[order]


def _top_k(logits: FloatArray, top_k: int | None) -> tuple[IntArray | None, FloatArray]:
    """The k likeliest tokens in rising order of number, with their logits; None for all of them.

    At least k logits reach the k-th largest of the blocks' maxima, so only those that do are looked at closely.
    """
    if top_k is None or top_k >= len(logits):
        return None, logits
    blocks = len(logits) // _BLOCK_TOKENS
    if top_k <= blocks:
        maxima = logits[: blocks * _BLOCK_TOKENS].reshape(blocks, _BLOCK_TOKENS).max(axis=1)
        places = np.flatnonzero(logits >= np.partition(maxima, blocks - top_k)[blocks - top_k])
    else:
        places = np.arange(len(logits))
    order = np.argsort(-logits[places], kind="stable")
    tokens = np.sort(places[order[:top_k]])
    return tokens, logits[tokens]


def _top_p(weights: FloatArray, top_p: float) -> IntArray:
    """Places, rising, of the likeliest that together have the part `top_p` of all weight; the largest weight is 1."""
    goal = top_p * float(weights.sum())
    near = np.flatnonzero(weights >= _NEAR)
    if len(near) > _FEW or weights[near].sum() < goal:
        return _heaviest(weights, goal)
    order = np.argsort(-weights[near], kind="stable")
    count = int(np.searchsorted(np.cumsum(weights[near[order]], dtype=np.float64), goal)) + 1
    return np.sort(near[order[:count]])


def _heaviest(weights: FloatArray, goal: float) -> IntArray:
    """Places, rising, of the fewest of many weights that add up to `goal`.

    The bits of positive floats rise with their values, so their upper half sorts weights into buckets, and only the
    bucket in which the goal is reached is sorted.
    """
    buckets = weights.view(np.int32) >> 16
    totals = np.cumsum(np.bincount(buckets, weights)[::-1])
    above = int(np.searchsorted(totals, goal))  # buckets that are kept whole
    last_bucket = len(totals) - 1 - above
    kept = buckets > last_bucket
    last = np.flatnonzero(buckets == last_bucket)
    last = last[np.argsort(-weights[last], kind="stable")]
    missing = goal - (totals[above - 1] if above else 0.0)
    kept[last[: int(np.searchsorted(np.cumsum(weights[last], dtype=np.float64), missing)) + 1]] = True
    return np.flatnonzero(kept)


def _drawn(weights: FloatArray, part: float) -> int:
    """The place where the running sum passes `part` of the whole."""
    totals = np.cumsum(weights, dtype=np.float64)
    passed = min(part * totals[-1], np.nextafter(totals[-1], 0.0))  # a product may be rounded up to the whole
    return int(np.searchsorted(totals, passed, side="right"))
