"""How prompts share a step's tokens."""

from collections.abc import Callable, Sequence

from residency.scheduler.request import Progress


def shares_of_prompts(
    prompts: Sequence[Progress],
    free_tokens: int,
    *,
    page_tokens: int,
    waits: Callable[[Progress, Progress], bool],
) -> Sequence[tuple[Progress, int]]:
    """Which of `prompts`, in order, advance, and by how many of `free_tokens`.

    Half of the tokens are the first prompt's, so that none starves; the rest goes to those with the least left, so that
    a short one is not held up by a long one, and what is then left over to the first again: but not where another ends,
    which would wait the longer for its first token. A prompt that `waits` for one that advances does not. Where a
    prompt does not end and shares its pages, it stops at the end of a page.
    """
    if not prompts or free_tokens < 1:
        return ()
    first = prompts[0]
    shares: dict[Progress, int] = {first: min(first.next_tokens, -(-free_tokens // 2))}
    left_tokens = free_tokens - shares[first]
    for progress in sorted(prompts, key=lambda each: each.pending_tokens - shares.get(each, 0)):
        if left_tokens == 0:
            break
        if progress is first:
            may_advance = not any(shares[other] == other.pending_tokens for other in shares if other is not first)
        else:
            may_advance = not any(waits(progress, other) for other in shares)
        if may_advance:
            more_tokens = min(progress.next_tokens - shares.get(progress, 0), left_tokens)
            shares[progress] = shares.get(progress, 0) + more_tokens
            left_tokens -= more_tokens
    return [(progress, _whole_pages(progress, shares[progress], page_tokens)) for progress in shares]


def _whole_pages(progress: Progress, num_tokens: int, page_tokens: int) -> int:
    """As many of the tokens as end a page, if any do, where they do not end the prompt."""
    if num_tokens == progress.next_tokens or progress.request.page_key is None:
        return num_tokens
    end = (progress.computed_tokens + num_tokens) // page_tokens * page_tokens
    return end - progress.computed_tokens if end > progress.computed_tokens else num_tokens
