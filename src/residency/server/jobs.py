"""A request that is ready to run: its prompts' tokens, how it is to be answered, and how the answer is written."""

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from residency.engine.generation import GenerationOptions, LogitMask
from residency.engine.sampler import Sampling
from residency.errors import ContextError
from residency.server.choices import Choices, Delta, Submission
from residency.server.generation import Generator, PartEvent
from residency.server.grammar import Constraint
from residency.server.problems import Refused
from residency.server.requests import GenerationRequest
from residency.server.streams import Write, event_bytes, text_bytes
from residency.server.watch import Watch

_TEXT = " text"  # with an answer's id, a text that occurs nowhere else


class Writer(Protocol):
    """Writes answers in the shape of one endpoint."""

    def whole(self, job: "Job", deltas: Sequence[Delta]) -> object:
        """The body of a whole answer; `deltas` has all that each answer grew by, in the order of their index."""

    def chunk(self, job: "Job", delta: Delta) -> object:
        """What a stream says of a delta."""

    def usage(self, job: "Job") -> object:
        """What a stream ends with where the number of tokens was asked for."""


@dataclass(kw_only=True)
class Job:
    """One request, from its tokens to its answer."""

    model: str
    id_prefix: str
    choices: Choices
    writer: Writer
    streams: bool
    includes_usage: bool
    watch: Watch
    created: int = field(default_factory=lambda: int(time.time()))
    answer_id: str = field(init=False)
    _around_text: dict[int, list[bytes]] = field(default_factory=dict)  # by answer: what its text comes between

    def __post_init__(self) -> None:
        self.answer_id = f"{self.id_prefix}-{uuid.uuid4().hex}"

    async def whole(self, generator: Generator) -> object:
        """The body, once all answers are complete."""
        grown = [Delta(index=index) for index in range(len(self.choices))]

        def add(deltas: Sequence[Delta]) -> None:
            for delta in deltas:
                grown[delta.index].add(delta)

        def add_text(index: int, text: str) -> None:
            grown[index].text += text

        await self._answer(generator, add, add_text)
        return self.writer.whole(self, grown)

    async def stream(self, generator: Generator, write: Write) -> None:
        """Write the stream's server-sent events as they come, those that came together at once."""

        def write_all(deltas: Sequence[Delta]) -> Awaitable[None] | None:
            return write(b"".join(map(self._event, deltas)))

        def write_text(index: int, text: str) -> Awaitable[None] | None:
            return write(text_bytes(text).join(self._around_text[index]))

        await self._answer(generator, write_all, write_text)
        if self.includes_usage and (pending := write(event_bytes(self.writer.usage(self)))) is not None:
            await pending

    def _event(self, delta: Delta) -> bytes:
        """What the writer says of a delta. What it would say of text alone is noted: the text comes between what is
        always the same.
        """
        event = event_bytes(self.writer.chunk(self, delta))  # the first may say more than later ones
        if delta.index not in self._around_text:
            later = event_bytes(self.writer.chunk(self, Delta(index=delta.index, text=self.answer_id + _TEXT)))
            self._around_text[delta.index] = later.split(text_bytes(self.answer_id + _TEXT))
        return event

    async def _answer(
        self,
        generator: Generator,
        grew: Callable[[Sequence[Delta]], Awaitable[None] | None],
        grew_text: Callable[[int, str], Awaitable[None] | None],
    ) -> None:
        """Run the request; `grew` is told what its answers grew by, or where that is text alone of one of which it has
        been told before, `grew_text`. Both may ask to be waited for.
        """
        choices = self.choices

        def take(events: Sequence[PartEvent]) -> Awaitable[None] | None:
            found = choices.text_alone(events)
            if found is not None:
                index, text = found
                if not text:
                    return None
                self.watch.saw_text(index)
                return grew_text(index, text)
            deltas = choices.take(events)
            for delta in deltas:
                if delta.finish_reason is not None:  # a stop string is nothing that the engine knows of
                    generation.finish(*choices.place_of(delta.index))
            self.watch.saw(deltas)
            return grew(deltas) if deltas else None

        with self.watch:
            async with generator.started(choices.submissions) as generation:
                try:
                    await generation.read(take, until=lambda: choices.have_ended)
                except Refused as refused:
                    raise self._reason(refused) from None
                finally:
                    self.watch.used(choices.usage)

    def _reason(self, refused: Refused) -> Exception:
        """Why the engine gave an answer up: a schema that became too complex is the client's fault, refused as such."""
        for _, options in self.choices.submissions:
            if isinstance(options.logit_mask, Constraint) and options.logit_mask.failure is not None:
                return options.logit_mask.failure
        return refused


def generation_options(
    asked: GenerationRequest,
    *,
    prompt_tokens: int,
    context_tokens: int,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> GenerationOptions:
    """What the engine is to do. Without a bound an answer may fill the context; ContextError where nothing is left."""
    room = context_tokens - prompt_tokens
    if room < 1:
        raise ContextError(
            f"the prompt has {prompt_tokens} tokens and the context {context_tokens}: {1 - room} too many; shorten it."
        )
    return GenerationOptions(
        max_tokens=room if max_tokens is None else min(room, max_tokens),
        sampling=_sampling(asked),
        num_answers=asked.n or 1,
        ignore_eos=asked.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        cache_salt=asked.cache_salt or "",
        priority=asked.priority,
    )


def with_masks(tokens: Sequence[int], options: GenerationOptions, constraint: Constraint | None) -> list[Submission]:
    """One submission of all answers; or, where each answer has a mask of its own, one for each. A mask says itself
    where the answer ends.
    """
    if constraint is None:
        return [(tokens, options)]
    options = replace(options, ignore_eos=False)
    submissions = []
    for answer in range(options.num_answers):
        sampling = options.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + answer) % 2**64)
        mask: LogitMask = constraint if answer == 0 else constraint.copy()
        submissions.append((tokens, replace(options, sampling=sampling, num_answers=1, logit_mask=mask)))
    return submissions


def _sampling(asked: GenerationRequest) -> Sampling:
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (asked.logit_bias or {}).items()},
        seed=None if asked.seed is None else asked.seed % 2**64,
    )
