"""Tools through the official client, on a model whose template has a place for them."""

import json
from collections.abc import Iterator
from typing import Any

import gguf
import openai
import pytest

from support.engines import plan_of
from support.gguf_files import CHAT_TEMPLATE, write_gguf
from support.models import small_model
from support.servers import running_server

TEMPLATE = "{% for tool in tools or [] %}<tools>{{ tool | tojson }}</tools> use <tool_call>{% endfor %}" + CHAT_TEMPLATE
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}


def with_tools(writer: gguf.GGUFWriter) -> None:
    del writer.kv_data[0]["tokenizer.chat_template"]
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Talks to a server of that model."""
    path = write_gguf(
        tmp_path_factory.mktemp("models") / "tools.gguf",
        small_model("qwen3", context_tokens=1024),
        "Q8_0",
        edit=with_tools,
    )
    plan = plan_of(path, context_tokens=1024, chunk_tokens=64, max_sequences=2)
    with (
        running_server(plan) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened,
    ):
        yield opened


def ask(client: openai.OpenAI, **asked: Any) -> Any:
    messages = [{"role": "user", "content": "Is it warm?"}]
    return client.chat.completions.create(
        **{"model": "small", "messages": messages, "tools": [WEATHER], "max_tokens": 100, "seed": 1, **asked}
    )


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_required_comes_with_arguments_of_its_schema(client: openai.OpenAI, choice: Any) -> None:
    (call,) = ask(client, tool_choice=choice).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_an_answer_that_calls_ends_with_tool_calls(client: openai.OpenAI) -> None:
    assert ask(client, tool_choice="required").choices[0].finish_reason == "tool_calls"


def test_a_stream_has_the_same_call(client: openai.OpenAI) -> None:
    deltas = [chunk.choices[0].delta for chunk in ask(client, tool_choice="required", stream=True)]
    (called,) = [call for delta in deltas for call in delta.tool_calls or ()]
    (call,) = ask(client, tool_choice="required").choices[0].message.tool_calls
    assert called.function.arguments == call.function.arguments


def test_text_of_a_call_is_not_streamed_as_text(client: openai.OpenAI) -> None:
    deltas = [chunk.choices[0].delta for chunk in ask(client, tool_choice="required", stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == ""


def test_the_model_reads_of_its_tools(client: openai.OpenAI) -> None:
    with_them, without = (ask(client, max_tokens=1, **asked).usage for asked in ({}, {"tool_choice": "none"}))
    assert with_them.prompt_tokens > without.prompt_tokens + 50


def test_answers_of_tools_are_taken(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"},
    ]
    assert ask(client, messages=messages, max_tokens=3).choices[0].finish_reason in ("stop", "length")


def test_parameters_may_refer_to_definitions_of_their_own(client: openai.OpenAI) -> None:
    city = {"$defs": {"city": {"enum": ["Oslo"]}}, "properties": {"city": {"$ref": "#/$defs/city"}}}
    parameters = {"type": "object", "required": ["city"], "additionalProperties": False, **city}
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("a", "b")]
    (call,) = ask(client, tools=tools, tool_choice="required").choices[0].message.tool_calls
    assert call.function.name in "ab" and json.loads(call.function.arguments) == {"city": "Oslo"}


def test_a_choice_of_no_tool_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tool_choice names other, which is none of the tools"):
        ask(client, tool_choice={"type": "function", "function": {"name": "other"}})
