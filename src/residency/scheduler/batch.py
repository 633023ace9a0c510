"""One step's work."""

from dataclasses import dataclass
from typing import NamedTuple

from residency.ledger import PageCopy


class BatchEntry(NamedTuple):
    """Consecutive tokens of one request. A tuple, for many are made in each step."""

    request_id: int
    start_token: int  # position of the first
    num_tokens: int
    of_prompt: bool  # whether they are the prompt's, all of them; else none is
    needs_logits: bool  # whether the last of them is the request's last known token, so that a new one is sampled
    cached_tokens: int = 0  # of the prompt's, those that others had computed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step computes. Pages for all entries are held; requests in `preempted` have lost theirs.

    Entries of prompts come last, as their products are computed in another way.
    """

    entries: tuple[BatchEntry, ...]
    preempted: tuple[int, ...] = ()
    copies: tuple[PageCopy, ...] = ()  # to be made in this order, before anything is computed

    @property
    def num_tokens(self) -> int:
        """Tokens of all entries."""
        return sum([entry.num_tokens for entry in self.entries])
