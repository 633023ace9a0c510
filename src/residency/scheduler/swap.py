"""Whether a sequence that must give its pages up is computed again later, or kept in the next tier meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SwapCost:
    """What the cost model says of both ways. W. Kwon et al. (PagedAttention, SOSP 2023) compare them."""

    prefill_tokens_per_second: float
    copy_bytes_per_second: float  # to the next tier, and from there
    page_bytes: Sequence[int]  # of a page in all layers of each KV group

    def pays(self, *, computed_tokens: int, held_pages: Sequence[int]) -> bool:
        """Whether copying so many pages of each group there and back is quicker than computing the tokens again."""
        held_bytes = sum(pages * num_bytes for pages, num_bytes in zip(held_pages, self.page_bytes, strict=True))
        return 2 * held_bytes / self.copy_bytes_per_second < computed_tokens / self.prefill_tokens_per_second
