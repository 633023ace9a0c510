"""What clients receive, in OpenAI's shapes. The types are what the served document describes."""

from collections.abc import Sequence
from typing import Literal, NotRequired

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict  # as pydantic wants it before Python 3.12

from residency.engine.generation import PromptLogprobs
from residency.engine.text import StreamDecoder, Tokenizer
from residency.server.answers import FinishReason, Shown
from residency.server.choices import Usage
from residency.server.tools import Call


class CachedTokens(TypedDict):
    """Tokens of the prompt whose keys and values were in the cache."""

    cached_tokens: int


class UsageBody(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class LikelyToken(TypedDict):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(LikelyToken):
    """A token that came, and those that were likeliest."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    """Log probabilities in a chat."""

    content: list[ChatToken]


class CalledFunction(TypedDict):
    """A function and its arguments, a JSON object as text."""

    name: str
    arguments: str


class ToolCallBody(TypedDict):
    """A call of one of the client's tools."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: NotRequired[int]  # in streams


class AnswerMessage(TypedDict):
    """An answer in a chat."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCallBody]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class MessageDelta(TypedDict, total=False):
    """What a message grew by."""

    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCallBody]


class ChatChunkChoice(TypedDict):
    """What one answer grew by."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(TypedDict):
    """A piece of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageBody | None]


class CompletionLogprobs(TypedDict):
    """Log probabilities in a completion, token by token."""

    tokens: list[str]
    token_logprobs: list[float | None]  # none of a prompt's first
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One text, or what it grew by."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(TypedDict):
    """A completion, or a piece of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[UsageBody | None]


class ModelCard(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokens(TypedDict):
    """A text's tokens."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(TypedDict):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(TypedDict):
    """What clients that write prompts of tokens themselves ask for, as vLLM's servers tell it."""

    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


class Health(TypedDict):
    """How the server is."""

    status: Literal["ok", "ending", "failed"]


def usage_body(usage: Usage) -> UsageBody:
    """Tokens as they are sent."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def call_body(call: Call) -> ToolCallBody:
    """A call as it is sent."""
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Shown]) -> ChatLogprobs:
    """Log probabilities as a chat has them."""
    content: list[ChatToken] = []
    for shown in tokens:
        top = [_likely(tokenizer, int(t), float(p)) for t, p in zip(shown.top_tokens, shown.top_logprobs, strict=True)]
        content.append({**_likely(tokenizer, shown.token, shown.logprob), "top_logprobs": top})
    return {"content": content}


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[Shown], *, text_offset: int = 0) -> CompletionLogprobs:
    """Log probabilities as a completion has them. text_offset: characters before the answer."""
    return {
        "tokens": [_text_of(tokenizer, shown.token) for shown in tokens],
        "token_logprobs": [shown.logprob for shown in tokens],
        "top_logprobs": [
            _top(tokenizer, shown.token, shown.logprob, shown.top_tokens, shown.top_logprobs) for shown in tokens
        ],
        "text_offset": [text_offset + shown.start_character for shown in tokens],
    }


def prompt_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], found: PromptLogprobs, rest: CompletionLogprobs
) -> CompletionLogprobs:
    """Those of a prompt that the completion begins with, and of the `rest`."""
    decoder, offsets, num_characters = StreamDecoder(tokenizer), [], 0
    for token in tokens:
        offsets.append(num_characters)
        num_characters += len(decoder.feed(token))
    rows = zip(tokens[1:], found.logprobs.tolist(), found.top_tokens, found.top_logprobs, strict=True)
    return {
        "tokens": [_text_of(tokenizer, token) for token in tokens] + rest["tokens"],
        "token_logprobs": [None, *found.logprobs.tolist(), *rest["token_logprobs"]],
        "top_logprobs": [None, *(_top(tokenizer, *row) for row in rows), *rest["top_logprobs"]],
        "text_offset": offsets + rest["text_offset"],
    }


def _text_of(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _top(
    tokenizer: Tokenizer,
    token: int,
    logprob: float,
    top_tokens: npt.NDArray[np.int32],
    top_logprobs: npt.NDArray[np.float32],
) -> dict[str, float]:
    """The likeliest tokens, and the one that came, which may be none of them."""
    pairs = zip(reversed(top_tokens.tolist()), reversed(top_logprobs.tolist()), strict=True)
    likely = {_text_of(tokenizer, each): value for each, value in pairs}  # of two with one text, the likelier
    return likely | {_text_of(tokenizer, token): logprob}


def _likely(tokenizer: Tokenizer, token: int, logprob: float) -> LikelyToken:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}
