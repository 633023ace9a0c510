"""What a service counts."""

from dataclasses import dataclass
from typing import NamedTuple


class LoopCounts(NamedTuple):
    """The state of a loop between two steps. Pages are of all groups of layers together. A tuple, for each step makes
    one.
    """

    running: int = 0  # sequences that hold pages
    waiting: int = 0  # sequences that hold none
    pages: int = 0
    used_pages: int = 0  # that somebody holds
    shared_pages: int = 0  # that more than one holds
    cached_pages: int = 0  # that nobody holds, kept for prompts that begin with them
    kept_pages: int = 0  # of prompts, in the store
    kept_slots: int = 0  # that it has room for
    kv_used_bytes: int = 0  # of the pages that somebody holds
    kv_tokens: int = 0  # of the sequences that hold pages, a shared one counted for each
    preemptions: int = 0  # of all time, as are those below
    swapped_pages: int = 0  # copied out
    saved_pages: int = 0  # of prompts, copied to the store
    loaded_pages: int = 0  # and from there
    failed_copies: int = 0  # to and from disk; what they lost was computed anew
    prompt_tokens: int = 0  # of prompts that are complete
    prefix_hit_tokens: int = 0  # of those, the ones that were shared and not computed
    computed_tokens: int = 0  # of all steps, those computed again after a preemption included
    sampled_tokens: int = 0
    steps: int = 0
    read_bytes: int = 0  # weights, keys and values


@dataclass(frozen=True, kw_only=True)
class ServiceMetrics:
    """A service at one time."""

    loop: LoopCounts
    queued: int  # requests that wait, those that the loop has not seen yet included
    queue_limit: int
    requests: int  # taken in so far
    refused: int  # because the queue was full
    ended: dict[str, int]  # answers by how they ended
    step_seconds: float  # of all steps together
    last_step_seconds: float
    compute_seconds: float  # of those, what the kernels took; the rest is scheduling, sampling and delivering
    read_bytes_per_second: float  # of late
    bandwidth_share: float  # of what this machine's memory was measured to give, of late
    healthy: bool
