"""One answer while a loop computes it: its tokens, and how the next one is chosen."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from residency.engine.generation import FinishReason, GenerationOptions, TokenEvent
from residency.engine.sampler import FloatArray, Sampler, allowed_by
from residency.engine.scoring import ScoredPrompt, token_logprobs
from residency.errors import UsageError
from residency.scheduler import Request


@dataclass
class LoopAnswer:
    """One answer's tokens, the prompt's and the sampled ones, in an array with room for all."""

    request_id: int
    number: int
    options: GenerationOptions
    tokens: npt.NDArray[np.int64]
    prompt_tokens: int
    known_tokens: int
    sampler: Sampler
    page_tokens: int
    scored: ScoredPrompt | None
    cached_tokens: int = 0
    needs_logits_alone: bool = field(init=False)  # as all that is told of the next token, so that a device can choose
    is_greedy: bool = field(init=False)  # and it is the likeliest

    def __post_init__(self) -> None:
        asked = self.options
        tells = asked.logprobs is not None or asked.num_answers > 1 or asked.logit_mask is not None
        self.needs_logits_alone = self.sampler.needs_logits_alone and not tells
        self.is_greedy = self.needs_logits_alone and asked.sampling.temperature == 0.0

    def next(self, logits: FloatArray | int, eos_ids: frozenset[int]) -> TokenEvent:
        """The next token, which is known from now on: of these logits, or the one that a device chose. The answer's end
        where none can be sampled, for the logit mask fails or allows none.
        """
        try:
            token = logits if isinstance(logits, int) else self._sampled(logits)
        except Exception as error:  # one answer's fault ends no other
            return self.end("error", str(error))
        self.tokens[self.known_tokens] = token
        self.known_tokens += 1
        options = self.options
        reason: FinishReason | None = None
        if token in eos_ids and not options.ignore_eos:
            reason = "stop"
        elif self.known_tokens == len(self.tokens):
            reason = "length"
        event = TokenEvent(self.request_id, self.number, token, self.prompt_tokens, self.cached_tokens, reason)
        if options.logprobs is not None and not isinstance(logits, int):
            logprob, top = token_logprobs(logits, token, options.logprobs)
            event = event._replace(logprob=logprob, top_logprobs=top)
        if self.scored is not None and self.known_tokens == self.prompt_tokens + 1:
            event = event._replace(prompt_logprobs=self.scored.logprobs)
        return event

    def end(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """The answer's end without a token."""
        return TokenEvent(
            request_id=self.request_id,
            answer=self.number,
            token=None,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            finish_reason=reason,
            error=error,
        )

    def _sampled(self, logits: FloatArray) -> int:
        known = self.tokens[: self.known_tokens]
        allowed = self._allowed(known, len(logits))
        return self.sampler.sample(logits, known, prompt_tokens=self.prompt_tokens, allowed=allowed)

    def _allowed(self, known: npt.NDArray[np.int64], vocabulary: int) -> npt.NDArray[np.bool_] | None:
        if self.options.logit_mask is None:
            return None
        try:
            allowed = allowed_by(self.options.logit_mask(known[self.prompt_tokens :].tolist()), vocabulary)
        except Exception as error:  # it is the caller's code
            raise UsageError(f"the logit mask failed: {error}") from error
        if not allowed.any():
            raise UsageError("the logit mask allows no token.")
        return allowed

    def page_key(self, page: int) -> bytes:
        """How many of a page's tokens were sampled, the tokens, and for the first page the salt.

        Sampled tokens are computed in another way than the same ones in a prompt, with a result that may be rounded
        differently; what a request gets shall not depend on what is cached.
        """
        start, end = page * self.page_tokens, (page + 1) * self.page_tokens
        num_sampled = min(self.page_tokens, max(0, end - self.prompt_tokens))
        tokens = self.tokens[start:end].astype(np.int32).tobytes()
        salt = b"" if page else self.options.cache_salt.encode("utf-8", "surrogatepass")
        return num_sampled.to_bytes() + tokens + salt

    def request(self, sequence: int, num_answers: int = 1) -> Request:
        """What the scheduler is asked for."""
        return Request(
            request_id=sequence,
            prompt_tokens=self.prompt_tokens,
            wanted_tokens=self.options.max_tokens,
            priority=self.options.priority,
            num_answers=num_answers,
            page_key=self.page_key if self.options.shares_pages else None,
        )

    def twin(self, number: int) -> "LoopAnswer":
        """Another answer, of which nothing but the prompt is known."""
        sampler = Sampler(self.options.sampling, answer=number)
        return replace(self, number=number, tokens=self.tokens.copy(), known_tokens=self.prompt_tokens, sampler=sampler)
