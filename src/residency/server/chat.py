"""/v1/chat/completions: from the request to a job, and from answers to what is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from residency.engine.text import Tokenizer
from residency.server.answers import Answer
from residency.server.choices import Choice, Choices, Delta
from residency.server.grammar import ANY_OBJECT
from residency.server.jobs import Job, generation_options, with_masks
from residency.server.model import Model
from residency.server.problems import Problem, Refused
from residency.server.requests import ChatRequest, JsonObjectFormat, JsonSchemaFormat, NamedTool, ResponseFormat, Tool
from residency.server.responses import (
    AnswerMessage,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    MessageDelta,
    call_body,
    chat_logprobs,
    usage_body,
)
from residency.server.tools import ToolParser, call_grammar
from residency.server.watch import Watch


async def chat_job(asked: ChatRequest, model: Model, watch: Watch) -> Job:
    """The conversation, ready to run. What cannot be answered raises as in `problems`."""
    tools = _tools(asked, model)
    tokens = await model.prompts.of_chat(asked.messages, tools, asked.chat_template_kwargs)
    options = generation_options(
        asked,
        prompt_tokens=len(tokens),
        context_tokens=model.context_tokens,
        max_tokens=asked.wanted_tokens,
        logprobs=asked.num_logprobs,
    )
    constraint = await model.compiled(_grammar(asked, tools, model))
    choices = Choices(
        submissions=with_masks(tokens, options, constraint), make=lambda index: _choice(index, asked, tools, model)
    )
    return Job(
        model=asked.model,
        id_prefix="chatcmpl",
        choices=choices,
        writer=ChatWriter(model.prompts.tokenizer, with_logprobs=bool(asked.logprobs)),
        streams=bool(asked.stream),
        includes_usage=asked.includes_usage,
        watch=watch,
    )


def schema_of(asked: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The JSON schema that an answer must keep to, if any."""
    match asked:
        case JsonObjectFormat():
            return ANY_OBJECT
        case JsonSchemaFormat():
            return asked.json_schema.schema_
    return None


def _tools(asked: ChatRequest, model: Model) -> list[Tool]:
    """The tools that the model is told of. Refused where its template has no place for them."""
    if not asked.tools or asked.tool_choice == "none":
        return []
    if model.tool_form is None:
        message = "This model's chat template knows no tool calls that this server reads; leave tools away."
        raise Refused(Problem(status=400, message=message, param="tools", code="tools_not_supported"))
    if isinstance(asked.tool_choice, NamedTool):
        return [tool for tool in asked.tools if tool.function.name == asked.tool_choice.function.name]
    return asked.tools


def _grammar(asked: ChatRequest, tools: Sequence[Tool], model: Model) -> str | Mapping[str, Any] | None:
    """What an answer is held to: a call where one is required, else the response format."""
    must_call = asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedTool)
    if tools and must_call and model.tool_form is not None:
        functions = [{"name": tool.function.name, "parameters": tool.function.parameters} for tool in tools]
        return call_grammar(model.tool_form, functions)
    return schema_of(asked.response_format)


def _choice(index: int, asked: ChatRequest, tools: Sequence[Tool], model: Model) -> Choice:
    parser = None
    if tools and model.tool_form is not None:
        parser = ToolParser(model.tool_form, {tool.function.name: tool.function.parameters or {} for tool in tools})
    answer = Answer(model.prompts.tokenizer, stops=asked.stops, starts_text=True, skip_special=parser is None)
    return Choice(index=index, answer=answer, parser=parser)


@dataclass(kw_only=True)
class _Begun:
    """What a stream has said of one answer."""

    calls: int = 0


class ChatWriter:
    """Writes chat completions."""

    def __init__(self, tokenizer: Tokenizer, *, with_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._begun: dict[int, _Begun] = {}

    def whole(self, job: Job, deltas: Sequence[Delta]) -> ChatCompletion:
        """The completion."""
        return {
            "id": job.answer_id,
            "object": "chat.completion",
            "created": job.created,
            "model": job.model,
            "choices": [
                {
                    "index": delta.index,
                    "message": _message(delta),
                    "logprobs": self._logprobs(delta),
                    "finish_reason": delta.finish_reason or "stop",
                }
                for delta in deltas
            ],
            "usage": usage_body(job.choices.usage),
        }

    def chunk(self, job: Job, delta: Delta) -> ChatChunk:
        """One answer's growth; its first says who speaks."""
        grown: MessageDelta = {}
        if delta.index not in self._begun:
            self._begun[delta.index] = _Begun()
            grown = {"role": "assistant", "content": ""}
        if delta.text:
            grown["content"] = delta.text
        if delta.calls:
            begun = self._begun[delta.index]
            places = range(begun.calls, begun.calls + len(delta.calls))
            grown["tool_calls"] = [
                {**call_body(call), "index": place} for place, call in zip(places, delta.calls, strict=True)
            ]
            begun.calls += len(delta.calls)
        choice: ChatChunkChoice = {
            "index": delta.index,
            "delta": grown,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        return self._chunk(job, [choice])

    def usage(self, job: Job) -> ChatChunk:
        """The stream's last chunk."""
        return {**self._chunk(job, []), "usage": usage_body(job.choices.usage)}

    def _chunk(self, job: Job, choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk: ChatChunk = {
            "id": job.answer_id,
            "object": "chat.completion.chunk",
            "created": job.created,
            "model": job.model,
            "choices": choices,
        }
        if job.includes_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, delta.tokens) if self._with_logprobs else None


def _message(delta: Delta) -> AnswerMessage:
    text = delta.text if delta.text or not delta.calls else None
    message: AnswerMessage = {"role": "assistant", "content": text, "refusal": None}
    if delta.calls:
        message["tool_calls"] = [call_body(call) for call in delta.calls]
    return message
