"""Memory that pages of the KV cache leave unused: lent to weights that would stream, and called back by pages.

What the plan keeps stays in any case. Of what it streams, spans are lent memory in an order of which every beginning is
spread evenly over the step (multiples of the golden ratio, modulo 1), so that a change moves no more than it has to.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from residency.planner.streaming import Streaming

_GOLDEN_RATIO = (5**0.5 - 1) / 2

# To lend costs reading what is lent, and once more what the buffers held; each step then reads so much less. That pays
# after two steps where as much is lent as the buffers hold, and is not done where memory was called back of late.
_LEAST_SPANS = 2
_CALM_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Lending:
    """What may be lent in a plan whose weights stream."""

    streaming: Streaming  # the plan's
    pool_bytes: int  # of all pages
    reserve_bytes: int  # pages that are never lent: what a step may take at once

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The spans that stream, in the order in which they are lent memory; the last one always streams."""
        ranks = sorted(range(len(self.streaming.streamed)), key=lambda number: number * _GOLDEN_RATIO % 1)
        return tuple(self.streaming.streamed[number] for number in ranks[:-1])

    @cached_property
    def most_bytes(self) -> int:
        """All that can be lent."""
        return sum(self.streaming.span_bytes[span] for span in self.order)

    def patience_steps(self, *, page_bytes: int, chunk_share: float) -> int:
        """For how many steps a page of a prefix that nobody uses stays, where its tokens are this share of a chunk.

        Until keeping it has cost what computing it anew would: each step reads as many bytes more as the page has, and
        a chunk of a prompt reads all that streams. Whoever waits so long pays at most twice what he would who knew the
        future (A. Karlin et al.: Competitive snoopy caching, Algorithmica 3, 1988).
        """
        return max(_CALM_STEPS, round(chunk_share * self.streaming.streamed_bytes / page_bytes))

    def with_lent(self, num_bytes: int) -> Streaming:
        """What streams with so many bytes more for what stays: whole spans of them are used."""
        sizes = accumulate(self.streaming.span_bytes[span] for span in self.order)
        count = sum(size <= num_bytes for size in sizes)
        lent = set(self.order[:count])
        return replace(self.streaming, streamed=tuple(span for span in self.streaming.streamed if span not in lent))

    def lent_bytes(self, *, used_bytes: int, lent_bytes: int, calm_steps: int) -> int:
        """How much to lend from now on, where pages take `used_bytes`, so much is lent, and for so many steps nothing
        was called back. What pages need is called back at once, with the reserve.
        """
        free_bytes = self.pool_bytes - used_bytes
        offer_bytes = max(0, free_bytes - self.reserve_bytes)
        if lent_bytes > free_bytes:
            return offer_bytes
        worthwhile = offer_bytes - lent_bytes >= _LEAST_SPANS * self.streaming.slot_bytes
        return offer_bytes if worthwhile and calm_steps >= _CALM_STEPS else lent_bytes
