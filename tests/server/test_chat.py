"""Chat through the official client."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

SAID: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
WHOLE = {"ignore_eos": True}


def chat(client: openai.OpenAI, **asked: Any) -> ChatCompletion:
    """An answer to SAID, unless something else is asked."""
    answer: ChatCompletion = client.chat.completions.create(**{"model": "small", "messages": SAID, **asked})
    return answer


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def test_an_answer_has_as_many_tokens_as_were_asked_for(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=7, extra_body=WHOLE)
    assert answer.usage and answer.usage.completion_tokens == 7


def test_an_answer_that_was_cut_says_so(client: openai.OpenAI) -> None:
    assert chat(client, max_tokens=3, extra_body=WHOLE).choices[0].finish_reason == "length"


def test_max_completion_tokens_is_max_tokens(client: openai.OpenAI) -> None:
    answer = chat(client, max_completion_tokens=5, extra_body=WHOLE)
    assert answer.usage and answer.usage.completion_tokens == 5


def test_the_pieces_of_a_stream_join_to_the_answer(client: openai.OpenAI) -> None:
    asked = {"temperature": 0, "max_tokens": 30}
    chunks = client.chat.completions.create(model="small", messages=SAID, stream=True, **asked)  # type: ignore[call-overload]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == text_of(chat(client, **asked))


def test_a_stream_ends_with_its_reason(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="small", messages=SAID, stream=True, max_tokens=5))
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_a_stream_ends_with_its_usage_where_that_was_asked_for(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="small",
        messages=SAID,
        stream=True,
        max_tokens=5,
        stream_options={"include_usage": True},
        extra_body=WHOLE,
    )
    usage = [chunk.usage for chunk in chunks][-1]
    assert usage and usage.completion_tokens == 5


def test_equal_seeds_give_equal_answers(client: openai.OpenAI) -> None:
    first, second = (text_of(chat(client, seed=5, max_tokens=30)) for _ in range(2))
    assert first == second


def test_a_negative_seed_is_a_seed(client: openai.OpenAI) -> None:
    first, second = (text_of(chat(client, seed=-5, max_tokens=30)) for _ in range(2))
    assert first == second


def test_n_answers_differ(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, seed=1, max_tokens=30, extra_body=WHOLE)
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    whole = text_of(chat(client, temperature=0, max_tokens=40, extra_body=WHOLE))
    stop = whole[10:13]
    answer = chat(client, temperature=0, max_tokens=40, stop=stop, extra_body=WHOLE)
    assert text_of(answer) == whole[: whole.index(stop)]


def test_no_part_of_a_stop_string_is_streamed(client: openai.OpenAI) -> None:
    whole = text_of(chat(client, temperature=0, max_tokens=40, extra_body=WHOLE))
    stop = whole[10:13]
    chunks = client.chat.completions.create(
        model="small", messages=SAID, stream=True, temperature=0, max_tokens=40, stop=[stop], extra_body=WHOLE
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole[: whole.index(stop)]


def test_a_biased_token_is_the_only_one_that_comes(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0, max_tokens=5, logit_bias={"65": 100})
    assert len(set(text_of(answer))) == 1


def test_log_probabilities_come_with_the_likeliest(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3, extra_body=WHOLE)
    logprobs = answer.choices[0].logprobs
    assert logprobs and [len(each.top_logprobs) for each in logprobs.content or ()] == [3] * 4


def test_without_temperature_the_likeliest_token_comes(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0, max_tokens=4, logprobs=True, top_logprobs=1, extra_body=WHOLE)
    logprobs = answer.choices[0].logprobs
    assert logprobs and all(each.top_logprobs[0].bytes == each.bytes for each in logprobs.content or ())


def test_log_probabilities_are_of_the_tokens_that_are_shown(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0, max_tokens=12, logprobs=True, extra_body=WHOLE)
    logprobs = answer.choices[0].logprobs
    data = b"".join(bytes(each.bytes or ()) for each in (logprobs and logprobs.content) or ())
    assert data.decode("utf-8", "replace") == text_of(answer)


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    answer = chat(client, seed=1, max_tokens=150, response_format=schema({"type": "object", "maxProperties": 0}))
    assert json.loads(text_of(answer)) == {}


def test_an_answer_keeps_to_its_schema(client: openai.OpenAI) -> None:
    wanted = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = chat(client, seed=1, max_tokens=150, response_format=schema(wanted))
    value = json.loads(text_of(answer))
    assert value["colour"] in ("red", "green") and 0 <= value["count"] <= 99


def test_several_answers_keep_to_one_schema(client: openai.OpenAI) -> None:
    answer = chat(client, seed=1, n=3, max_tokens=40, response_format=schema({"enum": ["red", "green"]}))
    assert all(json.loads(choice.message.content or "") in ("red", "green") for choice in answer.choices)


def test_a_schema_that_is_none_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="The JSON schema cannot be used"):
        chat(client, response_format=schema({"type": "colour"}))


def test_a_prompt_that_fills_the_context_is_refused_with_how_many_are_too_many(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="too many") as refusal:
        chat(client, messages=[{"role": "user", "content": "x" * 400}])
    assert refusal.value.code == "context_length_exceeded"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        chat(client, model="large")


def test_an_unknown_field_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'temprature': is not a field that this server knows"):
        chat(client, extra_body={"temprature": 1})


def test_a_value_out_of_its_range_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(client, temperature=9)
    assert refusal.value.param == "temperature"


def test_parts_of_a_content_are_joined(client: openai.OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    asked = {"temperature": 0, "max_tokens": 8}
    assert text_of(chat(client, messages=parts, **asked)) == text_of(chat(client, **asked))


def schema(wanted: dict[str, Any]) -> dict[str, Any]:
    """The response format of a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": True}}
