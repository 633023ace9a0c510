"""What somebody wants generated."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt of so many tokens, and how many are wanted after it at most."""

    request_id: int
    prompt_tokens: int
    wanted_tokens: int
    priority: int = 0  # smaller runs sooner; equals run in the order of their arrival


@dataclass(kw_only=True)
class Progress:
    """How far a request is. Its known tokens are the prompt's and those sampled since."""

    request: Request
    arrival: int
    known_tokens: int = field(init=False)
    computed_tokens: int = 0  # known tokens whose keys and values are in the cache

    def __post_init__(self) -> None:
        self.known_tokens = self.request.prompt_tokens

    @property
    def order(self) -> tuple[int, int]:
        """Sorts those first that run sooner."""
        return self.request.priority, self.arrival

    @property
    def pending_tokens(self) -> int:
        """Known tokens still to be computed."""
        return self.known_tokens - self.computed_tokens

    @property
    def in_prompt(self) -> bool:
        """Whether the next token to be computed is the prompt's."""
        return self.computed_tokens < self.request.prompt_tokens

    def next_tokens(self, free_tokens: int) -> int:
        """Tokens that a step with room for so many computes: the prompt's, or those sampled since, never both."""
        end_token = self.request.prompt_tokens if self.in_prompt else self.known_tokens
        return min(end_token - self.computed_tokens, free_tokens)

    @property
    def sampled_tokens(self) -> int:
        """Tokens generated so far."""
        return self.known_tokens - self.request.prompt_tokens
