"""Completions through the official client."""

from typing import Any

import openai
import pytest
from openai.types import Completion

WHOLE = {"ignore_eos": True}


def complete(client: openai.OpenAI, **asked: Any) -> Completion:
    """What "hello" goes on with, unless something else is asked."""
    answer: Completion = client.completions.create(
        **{"model": "small", "prompt": "hello", "temperature": 0, "extra_body": WHOLE, **asked}
    )
    return answer


def test_sixteen_tokens_come_where_no_number_is_asked_for(client: openai.OpenAI) -> None:
    answer = complete(client)
    assert answer.usage and answer.usage.completion_tokens == 16


def test_a_prompt_of_tokens_is_the_text_that_they_stand_for(client: openai.OpenAI) -> None:
    assert complete(client, prompt=list(b"hello")).choices[0].text


def test_each_of_several_prompts_has_its_answers(client: openai.OpenAI) -> None:
    alone = [complete(client, prompt=prompt, max_tokens=9).choices[0].text for prompt in ("hello", "world")]
    together = complete(client, prompt=["hello", "world"], max_tokens=9)
    assert [choice.text for choice in together.choices] == alone


def test_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    assert complete(client, echo=True).choices[0].text.startswith("hello")


def test_the_pieces_of_a_stream_join_to_the_answer(client: openai.OpenAI) -> None:
    chunks = client.completions.create(
        model="small", prompt="hello", temperature=0, stream=True, echo=True, extra_body=WHOLE
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == complete(client, echo=True).choices[0].text


def test_log_probabilities_stand_beside_their_tokens(client: openai.OpenAI) -> None:
    logprobs = complete(client, max_tokens=6, logprobs=2).choices[0].logprobs
    assert logprobs and len(logprobs.tokens or ()) == len(logprobs.token_logprobs or ()) == 6


def test_log_probabilities_of_an_echo_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="echo together with logprobs is not supported"):
        complete(client, echo=True, logprobs=1)


def test_a_token_that_the_model_does_not_have_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the token 320 is not one of the model's 320"):
        complete(client, prompt=[320])


def test_an_empty_prompt_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        complete(client, prompt="")


def test_a_bias_of_a_token_that_the_model_does_not_have_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the token 999 is not one of the model's 320"):
        complete(client, logit_bias={"999": 1})


def test_a_prompt_that_was_asked_before_is_in_the_cache(client: openai.OpenAI) -> None:
    prompt = "a prompt that is longer than one page of the cache"
    complete(client, prompt=prompt)
    usage = complete(client, prompt=prompt).usage
    assert usage and usage.prompt_tokens_details and (usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_another_salt_finds_nothing_in_the_cache(client: openai.OpenAI) -> None:
    prompt = "another prompt that is longer than one page of the cache"
    complete(client, prompt=prompt, extra_body={**WHOLE, "cache_salt": "mine"})
    usage = complete(client, prompt=prompt, extra_body={**WHOLE, "cache_salt": "yours"}).usage
    assert usage and usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens == 0
