"""/v1/completions: from the request to a job, and from answers to what is sent."""

from collections.abc import Sequence
from dataclasses import dataclass

from residency.engine.text import Tokenizer
from residency.server.answers import Answer
from residency.server.chat import schema_of
from residency.server.choices import Choice, Choices, Delta, Submission
from residency.server.jobs import Job, generation_options, with_masks
from residency.server.model import Model
from residency.server.problems import Problem, Refused
from residency.server.requests import CompletionRequest
from residency.server.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    completion_logprobs,
    prompt_logprobs,
    usage_body,
)
from residency.server.watch import Watch

DEFAULT_MAX_TOKENS = 16  # OpenAI's
_PROMPT_LOGPROBS = 1 << 14  # of a request's prompts, the likeliest tokens' included: some 4 MB while they are written


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A prompt that answers begin with."""

    text: str
    tokens: Sequence[int]


async def completion_job(asked: CompletionRequest, model: Model, watch: Watch) -> Job:
    """The texts, ready to be gone on with. What cannot be answered raises as in `problems`."""
    submissions: list[Submission] = []
    echoes: list[Echo | None] = []
    constraint = await model.compiled(schema_of(asked.response_format))
    for prompt in asked.prompts:
        tokens = await model.prompts.of_text(prompt) if isinstance(prompt, str) else model.prompts.checked(prompt)
        options = generation_options(
            asked,
            prompt_tokens=len(tokens),
            context_tokens=model.context_tokens,
            max_tokens=max(1, DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens),
            logprobs=asked.logprobs,
            prompt_logprobs=asked.logprobs if asked.echo else None,
        )
        submissions += with_masks(tokens, options, constraint and constraint.copy())
        text = prompt if isinstance(prompt, str) else model.prompts.tokenizer.decode(tokens)
        echoes += [Echo(text=text, tokens=tokens) if asked.echo else None] * (asked.n or 1)
    _check_logprobs(asked, echoes, model.context_tokens)
    tokenizer = model.prompts.tokenizer

    def choice(index: int) -> Choice:
        answer = Answer(tokenizer, stops=asked.stops, starts_text=False, is_empty=asked.max_tokens == 0)
        return Choice(index=index, answer=answer)

    return Job(
        model=asked.model,
        id_prefix="cmpl",
        choices=Choices(submissions=submissions, make=choice),
        writer=CompletionWriter(tokenizer, echoes=echoes, with_logprobs=asked.logprobs is not None),
        streams=bool(asked.stream),
        includes_usage=asked.includes_usage,
        watch=watch,
    )


def most_prompt_logprobs(context_tokens: int) -> int:
    """What one request may ask for: always a whole context, each token beside the likeliest."""
    return max(_PROMPT_LOGPROBS, 2 * context_tokens)


def _check_logprobs(asked: CompletionRequest, echoes: Sequence[Echo | None], context_tokens: int) -> None:
    """Refused where the log probabilities of prompts would be too many to be written."""
    count = (1 + (asked.logprobs or 0)) * sum(len(echo.tokens) for echo in echoes if echo is not None)
    most = most_prompt_logprobs(context_tokens)
    if asked.logprobs is not None and count > most:
        message = f"{count} log probabilities of prompts are asked for, and the most is {most}; send fewer prompts."
        raise Refused(Problem(status=400, message=message, param="logprobs"))


class CompletionWriter:
    """Writes completions."""

    def __init__(self, tokenizer: Tokenizer, *, echoes: Sequence[Echo | None], with_logprobs: bool) -> None:
        """echoes: for each answer the prompt that it begins with, if any."""
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._with_logprobs = with_logprobs
        self._begun: set[int] = set()

    def whole(self, job: Job, deltas: Sequence[Delta]) -> Completion:
        """The completion."""
        body = self._body(job, [self._choice(delta) for delta in deltas])
        return {**body, "usage": usage_body(job.choices.usage)}

    def chunk(self, job: Job, delta: Delta) -> Completion:
        """One answer's growth."""
        body = self._body(job, [self._choice(delta)])
        if job.includes_usage:
            body["usage"] = None
        return body

    def usage(self, job: Job) -> Completion:
        """The stream's last chunk."""
        return {**self._body(job, []), "usage": usage_body(job.choices.usage)}

    def _body(self, job: Job, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": job.answer_id,
            "object": "text_completion",
            "created": job.created,
            "model": job.model,
            "choices": choices,
        }

    def _choice(self, delta: Delta) -> CompletionChoice:
        echo = self._echoes[delta.index] if delta.index not in self._begun else None
        self._begun.add(delta.index)
        return {
            "index": delta.index,
            "text": delta.text if echo is None else echo.text + delta.text,
            "logprobs": self._logprobs(delta, echo) if self._with_logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    def _logprobs(self, delta: Delta, echo: Echo | None) -> CompletionLogprobs:
        """Those of the answer's tokens, after those of the prompt where the answer begins with it."""
        whole_echo = self._echoes[delta.index]
        offset = 0 if whole_echo is None else len(whole_echo.text)
        found = completion_logprobs(self._tokenizer, delta.tokens, text_offset=offset)
        if echo is None or delta.prompt_logprobs is None:
            return found
        return prompt_logprobs(self._tokenizer, echo.tokens, delta.prompt_logprobs, found)
