"""The answers to one request side by side: their text, calls and log probabilities as they grow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from residency.engine.generation import GenerationOptions, PromptLogprobs, TokenEvent
from residency.server.answers import Answer, FinishReason, Shown
from residency.server.tools import Call, Parsed, ToolParser

Submission = tuple[Sequence[int], GenerationOptions]


@dataclass(slots=True)
class Delta:
    """What one answer grew by since the last look."""

    index: int
    text: str = ""
    calls: tuple[Call, ...] = ()
    tokens: tuple[Shown, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_logprobs: PromptLogprobs | None = None  # with the first, where they were asked for

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.text or self.calls or self.tokens or self.finish_reason or self.prompt_logprobs)

    def add(self, later: "Delta") -> None:
        """Grow by what the answer grew by after this."""
        self.text += later.text
        self.calls += later.calls
        self.tokens += later.tokens
        self.finish_reason = later.finish_reason
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs


@dataclass(kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(kw_only=True)
class Choice:
    """One answer and what reads it."""

    index: int
    answer: Answer
    parser: ToolParser | None = None
    called: bool = False
    has_grown: bool = False

    def take(self, event: TokenEvent) -> Delta:
        """What the event brings."""
        text, tokens, finish_reason = self.answer.take(event)
        delta = Delta(self.index, text, (), tokens, finish_reason, event.prompt_logprobs)
        if self.parser is not None:
            self._parse(self.parser, delta)
        return delta

    def _parse(self, parser: ToolParser, delta: Delta) -> None:
        parsed = parser.feed(delta.text)
        if delta.finish_reason is not None:
            rest = parser.flush()
            parsed = Parsed(text=parsed.text + rest.text, calls=parsed.calls + rest.calls)
        self.called = self.called or bool(parsed.calls)
        delta.text, delta.calls = parsed.text, parsed.calls
        if self.called and delta.finish_reason == "stop":
            delta.finish_reason = "tool_calls"


@dataclass(kw_only=True)
class Choices:
    """All answers to one request. Answer `a` of submission `s` has the index s * (answers of a submission) + a."""

    submissions: Sequence[Submission]
    make: Callable[[int], Choice]

    def __post_init__(self) -> None:
        self._per_submission = self.submissions[0][1].num_answers
        self._choices = [self.make(index) for index in range(len(self.submissions) * self._per_submission)]
        prompts = {id(tokens): len(tokens) for tokens, _ in self.submissions}  # those of one prompt count it once
        self._open_answers = len(self._choices)
        self._prompt_tokens = sum(prompts.values())
        self._cached: dict[int, int] = {}  # by prompt, as its first answer told

    def __len__(self) -> int:
        return len(self._choices)

    @property
    def have_ended(self) -> bool:
        """Whether all answers are complete."""
        return self._open_answers == 0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(choice.answer.num_tokens for choice in self._choices),
            cached_tokens=sum(self._cached.values()),
        )

    def place_of(self, index: int) -> tuple[int, int]:
        """The submission, and its answer, that has the index."""
        return divmod(index, self._per_submission)

    def take(self, events: Sequence[tuple[int, TokenEvent]]) -> list[Delta]:
        """What the events, each with the number of its submission, bring: a delta for each answer that grew."""
        grown: dict[int, Delta] = {}
        for part, event in events:
            choice = self._choices[part * self._per_submission + event.answer]
            if choice.answer.has_ended:
                continue
            self._cached.setdefault(id(self.submissions[part][0]), event.cached_tokens)
            delta = choice.take(event)
            if choice.index in grown:
                grown[choice.index].add(delta)
            else:
                grown[choice.index] = delta
            self._open_answers -= choice.answer.has_ended
        deltas = [delta for delta in grown.values() if not delta.is_empty]
        for delta in deltas:
            self._choices[delta.index].has_grown = True
        return deltas

    def text_alone(self, events: Sequence[tuple[int, TokenEvent]]) -> tuple[int, str] | None:
        """The index of the one answer that grew, not for the first time, and the text that it grew by, where no more
        came of the events: so it is of most tokens. Else None, and the events are to be taken.
        """
        part, first = events[0]
        choice = self._choices[part * self._per_submission + first.answer]
        if not choice.has_grown or choice.parser is not None:
            return None
        for other, event in events:
            if other != part or event.answer != first.answer or not choice.answer.is_text_alone(event):
                return None
        return choice.index, "".join([choice.answer.text_of(event) for _, event in events])
