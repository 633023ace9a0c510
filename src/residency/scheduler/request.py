"""What somebody wants generated."""

from dataclasses import dataclass, field

from residency.ledger import PageKey


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt of so many tokens, and how many are wanted after it at most."""

    request_id: int
    prompt_tokens: int
    wanted_tokens: int
    priority: int = 0  # smaller runs sooner; equals run in the order of their arrival
    num_answers: int = 1  # that it will fork into, when its prompt has been computed
    page_key: PageKey | None = None  # names pages of known tokens; without it no prefix is shared

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompt and of one answer at its longest."""
        return self.prompt_tokens + self.wanted_tokens


@dataclass(kw_only=True, eq=False, slots=True)
class Progress:
    """How far a request is. Its known tokens are the prompt's and those sampled since."""

    request: Request
    arrival: int
    known_tokens: int = field(init=False)
    computed_tokens: int = 0  # known tokens whose keys and values are in the cache
    writable_until: int = 0  # up to which token there are pages that the next ones are written to as they are
    cached_tokens: int = 0  # of the prompt's, those that others had computed
    num_answers: int = field(init=False)  # sequences that it is, or will be
    is_swapped: bool = False  # whether what was computed waits in the next tier

    def __post_init__(self) -> None:
        self.known_tokens = self.request.prompt_tokens
        self.num_answers = self.request.num_answers

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts those first that run sooner."""
        return self.request.priority, self.arrival, self.request.request_id

    @property
    def pending_tokens(self) -> int:
        """Known tokens still to be computed."""
        return self.known_tokens - self.computed_tokens

    @property
    def in_prompt(self) -> bool:
        """Whether the next token to be computed is the prompt's."""
        return self.computed_tokens < self.request.prompt_tokens

    @property
    def next_tokens(self) -> int:
        """Tokens that one step may compute: the prompt's, or those sampled since, never both."""
        return (self.request.prompt_tokens if self.in_prompt else self.known_tokens) - self.computed_tokens

    @property
    def sampled_tokens(self) -> int:
        """Tokens generated so far."""
        return self.known_tokens - self.request.prompt_tokens

    def restart(self) -> None:
        """Its pages are gone: begin anew."""
        self.computed_tokens = self.writable_until = 0
        if self.sampled_tokens == 0:
            self.cached_tokens = 0

    def fork(self, request: Request) -> "Progress":
        """Another answer to the same prompt, as far as this one. Both hold its pages: neither writes to them."""
        self.writable_until = 0
        twin = Progress(request=request, arrival=self.arrival)
        twin.known_tokens, twin.computed_tokens = self.known_tokens, self.computed_tokens
        twin.cached_tokens = self.cached_tokens
        return twin
