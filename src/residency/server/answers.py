"""From an answer's tokens to its text: whole characters, nothing of a stop string; and log probabilities."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from residency.engine.generation import TokenEvent
from residency.engine.text import StreamDecoder, Tokenizer
from residency.server.stops import StopStrings

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A token whose text has begun to be shown, with its log probability and those of the likeliest."""

    token: int
    start_character: int  # in the answer's text
    logprob: float
    top_tokens: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]


class Piece(NamedTuple):
    """What an answer grew by. A tuple, for each token makes one."""

    text: str = ""
    tokens: tuple[Shown, ...] = ()  # only where log probabilities were asked for
    finish_reason: FinishReason | None = None


class Answer:
    """One answer as its tokens come."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stops: Sequence[str],
        starts_text: bool,
        skip_special: bool = True,
        is_empty: bool = False,
    ) -> None:
        """starts_text and skip_special: see StreamDecoder. is_empty: no token is wanted; the engine samples one."""
        self._eos_ids = tokenizer.eos_ids
        self._decoder = StreamDecoder(tokenizer, starts_text=starts_text, skip_special=skip_special)
        self._is_empty = is_empty
        self._is_plain = not (is_empty or any(stops))
        self._stops = StopStrings(stops)
        self._decoded_characters = 0
        self._shown_characters = 0
        self._waiting: deque[Shown] = deque()  # tokens whose text is held back
        self.num_tokens = 0
        self.has_ended = False

    def is_text_alone(self, event: TokenEvent) -> bool:
        """Whether nothing but text can come of the event: of a token before the last, without stop strings or log
        probabilities.
        """
        return self._is_plain and event.finish_reason is None and event.logprob is None

    def text_of(self, event: TokenEvent) -> str:
        """What such an event adds. It is taken."""
        assert event.token is not None, "an event without a token ends its answer"
        self.num_tokens += 1
        return self._decoder.feed(event.token)

    def take(self, event: TokenEvent) -> Piece:
        """What the event adds. After a piece with a finish reason there is nothing more."""
        if self._is_empty:
            self.has_ended = True
            return Piece(finish_reason="length")
        text, is_last = "", event.is_last
        if event.token is not None:
            self.num_tokens += 1
            at_end = is_last and event.finish_reason == "stop" and event.token in self._eos_ids
            if event.logprob is not None and not at_end:
                self._waiting.append(_shown(event, event.token, event.logprob, self._decoded_characters))
            text = "" if at_end else self._decoder.feed(event.token)
        if is_last:
            text += self._decoder.flush()
        self._decoded_characters += len(text)
        text = self._stops.feed(text)
        if is_last:
            text += self._stops.flush()
        self._shown_characters += len(text)
        finish: FinishReason | None = None
        if self._stops.has_stopped:
            finish = "stop"
        elif is_last:
            finish = "length" if event.finish_reason == "length" else "stop"
        self.has_ended = finish is not None
        tokens = self._tokens_shown(everything=self.has_ended and not self._stops.has_stopped) if self._waiting else ()
        return Piece(text=text, tokens=tokens, finish_reason=finish)

    def _tokens_shown(self, *, everything: bool) -> tuple[Shown, ...]:
        tokens = []
        while self._waiting and (everything or self._waiting[0].start_character < self._shown_characters):
            tokens.append(self._waiting.popleft())
        return tuple(tokens)


def _shown(event: TokenEvent, token: int, logprob: float, start_character: int) -> Shown:
    return Shown(
        token=token,
        start_character=start_character,
        logprob=logprob,
        top_tokens=np.array([each.token for each in event.top_logprobs], np.int32),
        top_logprobs=np.array([each.logprob for each in event.top_logprobs], np.float32),
    )
