"""The choice of tokens on a device: one program a row, which never sorts.

The k-th largest logit, and the least weight that the likeliest keep, are found by bisection over the bits of floats,
whose order is that of the values: 32 times a count, or a sum, over the row, which stays in the second-level cache.
"""

import triton
import triton.language as tl

from residency.kernels.device import Tensor
from residency.kernels.device_language import power_of_two

_MOST_BLOCK = 4096
_LEAST_TEMPERATURE = 1e-30


def draw(logits: Tensor, draws: Tensor, out: Tensor) -> None:
    """out (rows,) = the token of each row of logits (rows, vocabulary), by draws (rows, 5): temperature, top_k, top_p,
    min_p and part. See sample/reference.py.
    """
    vocabulary = logits.shape[1]
    block = min(_MOST_BLOCK, power_of_two(vocabulary))
    _draw[(len(logits),)](
        logits, draws, out, vocabulary, logits.stride(0), _LEAST_TEMPERATURE, BLOCK=block, num_warps=8
    )


@triton.jit
def _ordered(x):
    """Integers in the order of the floats x."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _load(row, start, vocabulary, BLOCK: tl.constexpr):
    token = start + tl.arange(0, BLOCK)
    return token, tl.load(row + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)


@triton.jit
def _weights(logits, largest, temperature, floor, least):
    """exp((logit - largest) / temperature) of what is kept: logits from the ordered `floor`, weights from `least`."""
    weights = tl.exp((logits - largest) / temperature)
    return tl.where((_ordered(logits) >= floor) & (weights >= least), weights, 0.0)


@triton.jit
def _draw(logits, draws, out, vocabulary, stride, least_temperature, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64)
    row, word = logits + index * stride, draws + index * 5
    temperature, top_k, top_p = tl.load(word), tl.load(word + 1), tl.load(word + 2)
    min_p, part = tl.load(word + 3), tl.load(word + 4)
    largest, likeliest = _likeliest(row, vocabulary, BLOCK)
    if temperature == 0.0:
        tl.store(out + index, likeliest.to(tl.int64))
    else:
        heat = tl.maximum(temperature, least_temperature)
        floor = _kth_largest(row, vocabulary, largest, top_k, BLOCK)
        total = _total(row, vocabulary, largest, heat, floor, min_p, BLOCK)
        least = _least_kept(row, vocabulary, largest, heat, floor, min_p, top_p * total, BLOCK)
        tl.store(out + index, _passed(row, vocabulary, largest, heat, floor, least, part, BLOCK).to(tl.int64))


@triton.jit
def _likeliest(row, vocabulary, BLOCK: tl.constexpr):
    """The largest logit, and the first token that has it."""
    largest = tl.full((), float("-inf"), tl.float32)
    token = tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        tokens, values = _load(row, start, vocabulary, BLOCK)
        most = tl.max(values)
        first = tl.min(tl.where(values == most, tokens, vocabulary))
        token = tl.where(most > largest, first, token)
        largest = tl.maximum(largest, most)
    return largest, token


@triton.jit
def _kth_largest(row, vocabulary, largest, top_k, BLOCK: tl.constexpr):
    """The largest ordered integer that at least top_k logits reach; the least there is where there are not so many."""
    low = tl.full((), -2147483648, tl.int64)
    high = _ordered(largest).to(tl.int64)
    if top_k < vocabulary:
        while low < high:
            middle = (low + high + 1) >> 1
            reached = tl.full((), 0.0, tl.float32)
            for start in range(0, vocabulary, BLOCK):
                tokens, values = _load(row, start, vocabulary, BLOCK)
                reached += tl.sum(((_ordered(values) >= middle) & (tokens < vocabulary)).to(tl.float32))
            low = tl.where(reached >= top_k, middle, low)
            high = tl.where(reached >= top_k, high, middle - 1)
    return low


@triton.jit
def _total(row, vocabulary, largest, temperature, floor, least, BLOCK: tl.constexpr):
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, BLOCK):
        _, values = _load(row, start, vocabulary, BLOCK)
        total += tl.sum(_weights(values, largest, temperature, floor, least))
    return total


@triton.jit
def _least_kept(row, vocabulary, largest, temperature, floor, min_p, goal, BLOCK: tl.constexpr):
    """The largest weight such that those that reach it add up to `goal`."""
    low, high = _ordered(min_p).to(tl.int64), _ordered(tl.full((), 1.0, tl.float32)).to(tl.int64)
    if goal < _total(row, vocabulary, largest, temperature, floor, min_p, BLOCK):
        while low < high:
            middle = (low + high + 1) >> 1
            least = middle.to(tl.int32).to(tl.float32, bitcast=True)  # weights are positive: their bits are in order
            enough = _total(row, vocabulary, largest, temperature, floor, least, BLOCK) >= goal
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
    return low.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _passed(row, vocabulary, largest, temperature, floor, least, part, BLOCK: tl.constexpr):
    """The token at which the running sum passes its part; the last that is kept where rounding leaves none."""
    goal = part * _total(row, vocabulary, largest, temperature, floor, least, BLOCK)
    before = tl.full((), 0.0, tl.float32)
    found = tl.full((), 2147483647, tl.int32)
    last = tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        tokens, values = _load(row, start, vocabulary, BLOCK)
        weights = _weights(values, largest, temperature, floor, least)
        passed = (before + tl.cumsum(weights, 0) > goal) & (weights > 0)
        found = tl.minimum(found, tl.min(tl.where(passed, tokens, 2147483647)))
        last = tl.maximum(last, tl.max(tl.where(weights > 0, tokens, 0)))
        before += tl.sum(weights)
    return tl.where(found < 2147483647, found, last)
