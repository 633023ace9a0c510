"""/v1/completions: from the request to a job, and from answers to what is sent."""

from collections.abc import Sequence

from residency.engine.text import Tokenizer
from residency.server.answers import Answer
from residency.server.chat import schema_of
from residency.server.choices import Choice, Choices, Delta, Submission
from residency.server.jobs import Job, generation_options, with_masks
from residency.server.model import Model
from residency.server.problems import Problem, Refused
from residency.server.requests import CompletionRequest
from residency.server.responses import Completion, CompletionChoice, completion_logprobs, usage_body
from residency.server.watch import Watch

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def completion_job(asked: CompletionRequest, model: Model, watch: Watch) -> Job:
    """The texts, ready to be gone on with. What cannot be answered raises as in `problems`."""
    if asked.echo and asked.logprobs is not None:
        message = "echo together with logprobs is not supported; leave one of them away."
        raise Refused(Problem(status=400, message=message, param="logprobs"))
    submissions: list[Submission] = []
    echoed: list[str] = []
    constraint = await model.compiled(schema_of(asked.response_format))
    for prompt in asked.prompts:
        tokens = await model.prompts.of_text(prompt) if isinstance(prompt, str) else model.prompts.checked(prompt)
        options = generation_options(
            asked,
            prompt_tokens=len(tokens),
            context_tokens=model.context_tokens,
            max_tokens=asked.max_tokens or DEFAULT_MAX_TOKENS,
            logprobs=asked.logprobs,
        )
        submissions += with_masks(tokens, options, constraint and constraint.copy())
        text = prompt if isinstance(prompt, str) else model.prompts.tokenizer.decode(tokens)
        echoed += [text if asked.echo else ""] * (asked.n or 1)
    tokenizer = model.prompts.tokenizer

    def choice(index: int) -> Choice:
        return Choice(index=index, answer=Answer(tokenizer, stops=asked.stops, starts_text=False))

    return Job(
        model=asked.model,
        id_prefix="cmpl",
        choices=Choices(submissions=submissions, make=choice),
        writer=CompletionWriter(tokenizer, echoed=echoed, with_logprobs=asked.logprobs is not None),
        streams=bool(asked.stream),
        includes_usage=asked.includes_usage,
        watch=watch,
    )


class CompletionWriter:
    """Writes completions."""

    def __init__(self, tokenizer: Tokenizer, *, echoed: Sequence[str], with_logprobs: bool) -> None:
        """echoed: for each answer the prompt that it begins with, or nothing."""
        self._tokenizer = tokenizer
        self._echoed = echoed
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
        echoed = "" if delta.index in self._begun else self._echoed[delta.index]
        self._begun.add(delta.index)
        tokenizer, tokens = self._tokenizer, delta.tokens
        return {
            "index": delta.index,
            "text": echoed + delta.text,
            "logprobs": completion_logprobs(tokenizer, tokens) if self._with_logprobs else None,
            "finish_reason": delta.finish_reason,
        }
