"""The document that describes the server (OpenAPI 3.1), made from the types that it reads and writes."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from residency import __version__
from residency.server.problems import ProblemBody
from residency.server.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from residency.server.responses import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Health,
    ModelCard,
    ModelList,
    Text,
    TokenizerInfo,
    Tokens,
)

_OBJECT: dict[str, Any] = {"type": "object"}
_PROBLEMS = {
    "400": "The request cannot be answered as it is.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "503": "The server is full or ending; Retry-After says when to come again.",
}


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """One path and method."""

    path: str
    summary: str
    answer: Any  # a type, or None for any object
    asks: Any = None  # a type; None for GET
    events: Any = None  # the type of streamed objects
    text: bool = False  # the answer is plain text


_OPERATIONS = (
    _Operation(
        path="/v1/chat/completions",
        summary="Go on with a conversation.",
        asks=ChatRequest,
        answer=ChatCompletion,
        events=ChatChunk,
    ),
    _Operation(
        path="/v1/completions",
        summary="Go on with a text.",
        asks=CompletionRequest,
        answer=Completion,
        events=Completion,
    ),
    _Operation(path="/v1/models", summary="The models that are served.", answer=ModelList),
    _Operation(path="/v1/models/{model}", summary="One model.", answer=ModelCard),
    _Operation(
        path="/tokenize", summary="The tokens of a text or a conversation.", asks=TokenizeRequest, answer=Tokens
    ),
    _Operation(path="/detokenize", summary="The text of tokens.", asks=DetokenizeRequest, answer=Text),
    _Operation(path="/tokenizer_info", summary="The tokens around a text, and the template.", answer=TokenizerInfo),
    _Operation(path="/health", summary="Whether the server is well (200) or not (503).", answer=Health),
    _Operation(path="/metrics", summary="Counts and times, for Prometheus.", answer=None, text=True),
    _Operation(path="/plan", summary="The plan that the server runs.", answer=None),
    _Operation(path="/memory", summary="Where every byte lives now.", answer=None),
    _Operation(path="/openapi.json", summary="This document.", answer=None),
)


@cache
def document() -> dict[str, Any]:
    """The document."""
    types = {each for op in _OPERATIONS for each in (op.asks, op.answer, op.events) if each} | {ProblemBody}
    inputs: list[Any] = [
        (each, "validation" if each.__name__.endswith("Request") else "serialization", TypeAdapter(each))
        for each in sorted(types, key=lambda each: str(each.__name__))
    ]
    _, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for operation in _OPERATIONS:
        paths[operation.path] = {"post" if operation.asks else "get": _described(operation)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "residency",
            "version": __version__,
            "description": "A language model inside a memory budget, behind OpenAI's interface.",
        },
        "paths": paths,
        "components": {
            "schemas": shared.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _described(operation: _Operation) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _reference(operation.answer)}}
    if operation.text:
        content = {"text/plain": {"schema": {"type": "string"}}}
    if operation.events:
        content["text/event-stream"] = {"schema": _event(operation.events)}
    described: dict[str, Any] = {
        "operationId": operation.path.strip("/").replace("/", "_").replace(".", "_").replace("{", "").replace("}", ""),
        "summary": operation.summary,
        "responses": {"200": {"description": "Done.", "content": content}, **_problems(operation)},
    }
    if operation.asks:
        body = {"application/json": {"schema": _reference(operation.asks)}}
        described["requestBody"] = {"required": True, "content": body}
    if "{model}" in operation.path:
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return described


def _event(type_: Any) -> dict[str, Any]:
    chunk = {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(type_)}
    data = {"anyOf": [{"const": "[DONE]"}, chunk], "description": "A chunk as JSON; of the last event [DONE]."}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _problems(operation: _Operation) -> dict[str, Any]:
    schema = _reference(Health if operation.answer is Health else ProblemBody)
    answers = {
        status: {"description": text, "content": {"application/json": {"schema": _reference(ProblemBody)}}}
        for status, text in _PROBLEMS.items()
    }
    answers["503"]["content"] = {"application/json": {"schema": schema}}
    return answers


def _reference(type_: Any) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{type_.__name__}"} if type_ else _OBJECT
