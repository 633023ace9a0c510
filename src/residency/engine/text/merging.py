"""The one loop behind both kinds of tokenizer: join the best neighbours until none can be joined.

Byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909. SentencePiece's BPE: Kudo and Richardson 2018,
arXiv:1808.06226.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T", int, bytes)


class Joined(NamedTuple, Generic[T]):
    """What two neighbours become, and how soon: lower priorities first, then from left to right."""

    priority: float
    symbol: T


def merge(symbols: list[T], join: Callable[[T, T], Joined[T] | None]) -> list[T]:
    """`symbols` after every join that `join` allows, best first. O(n log n) joins for n symbols; consumes the list."""
    num_symbols = len(symbols)
    if num_symbols < 2:
        return symbols
    following = list(range(1, num_symbols + 1))
    preceding = list(range(-1, num_symbols - 1))
    alive = [True] * num_symbols
    queue: list[tuple[float, int, T, T, T]] = []
    for i in range(num_symbols - 1):
        if joined := join(symbols[i], symbols[i + 1]):
            queue.append((joined.priority, i, symbols[i], symbols[i + 1], joined.symbol))
    heapify(queue)
    while queue:
        _, i, left, right, symbol = heappop(queue)
        j = following[i]
        if not alive[i] or j == num_symbols or symbols[i] != left or symbols[j] != right:
            continue  # an earlier join took one of the two
        symbols[i] = symbol
        alive[j] = False
        following[i] = after = following[j]
        if after < num_symbols:
            preceding[after] = i
            if joined := join(symbol, symbols[after]):
                heappush(queue, (joined.priority, i, symbol, symbols[after], joined.symbol))
        before = preceding[i]
        if before >= 0 and (joined := join(symbols[before], symbol)):
            heappush(queue, (joined.priority, before, symbols[before], symbol, joined.symbol))
    return [symbol for symbol, lives in zip(symbols, alive, strict=True) if lives]
