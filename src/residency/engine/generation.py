"""What is asked of a generation, and what it gives token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from residency.engine.sampler import Sampling
from residency.errors import UsageError

MOST_LOGPROBS = 20

# The tokens of an answer so far, to the tokens that may come next: one bit each, the lowest of the first word for
# token 0, in int32 words. Called once for each token, in the loop's thread.
LogitMask = Callable[[Sequence[int]], npt.NDArray[np.int32]]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How a prompt is answered."""

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    num_answers: int = 1  # of the same prompt, which is computed once; a seed gives each its own text
    ignore_eos: bool = False  # go on after an end-of-text token
    logprobs: int | None = None  # with each token its log probability, and those of so many likeliest tokens
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, all of which are computed then
    use_prefix_cache: bool = True  # whether pages are shared with earlier and later prompts that begin alike
    cache_salt: str = ""  # only requests of equal salts share pages
    priority: int = 0  # smaller runs sooner
    logit_mask: LogitMask | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"{self.max_tokens} tokens cannot be asked for; ask for at least 1.")
        if self.num_answers < 1:
            raise UsageError(f"{self.num_answers} answers cannot be asked for; ask for at least 1.")
        for num_likeliest in (self.logprobs, self.prompt_logprobs):
            if num_likeliest is not None and not 0 <= num_likeliest <= MOST_LOGPROBS:
                raise UsageError(f"{num_likeliest} logprobs cannot be asked for; ask for 0 to {MOST_LOGPROBS}.")

    @property
    def shares_pages(self) -> bool:
        """Whether what others have computed is taken over: not where every token's logits are wanted."""
        return self.use_prefix_cache and self.prompt_logprobs is None


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token and the logarithm of its probability, before temperature and filters."""

    token: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class PromptLogprobs:
    """The logarithms of the probabilities of a prompt's tokens, each after those before it, the first one's left out.

    In a row of `top_tokens` and `top_logprobs` are those that were likeliest in its place, the likeliest first.
    """

    logprobs: npt.NDArray[np.float32]  # (tokens - 1,)
    top_tokens: npt.NDArray[np.int32]  # (tokens - 1, so many as were asked for)
    top_logprobs: npt.NDArray[np.float32]  # likewise

    @staticmethod
    def room_for(prompt_tokens: int, num_likeliest: int) -> "PromptLogprobs":
        """Arrays to be filled."""
        shape = prompt_tokens - 1, num_likeliest
        return PromptLogprobs(
            logprobs=np.empty(shape[0], np.float32),
            top_tokens=np.empty(shape, np.int32),
            top_logprobs=np.empty(shape, np.float32),
        )


class TokenEvent(NamedTuple):
    """A token of one answer, or the answer's end without one. A tuple, for many are made in each step.

    An end-of-text token comes as the last one, with the reason "stop". An answer that is cancelled or fails ends with
    an event that has no token, and `error` says what happened.
    """

    request_id: int
    answer: int  # from 0 to num_answers - 1
    token: int | None
    prompt_tokens: int
    cached_tokens: int  # of the prompt's: those whose keys and values were shared, not computed
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()  # the likeliest first
    prompt_logprobs: PromptLogprobs | None = None  # with an answer's first token, where they were asked for
    error: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether the answer ends here."""
        return self.finish_reason is not None
