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


def test_an_echo_has_the_log_probabilities_of_the_prompt_before_the_answers(client: openai.OpenAI) -> None:
    alone = complete(client, max_tokens=3, logprobs=1).choices[0].logprobs
    echoed = complete(client, max_tokens=3, logprobs=1, echo=True).choices[0].logprobs
    assert alone and echoed and echoed.tokens and echoed.token_logprobs and alone.token_logprobs
    assert echoed.tokens[:5] == list("hello")
    assert echoed.token_logprobs[0] is None
    assert echoed.token_logprobs[5:] == alone.token_logprobs


def test_a_prompts_token_has_the_log_probability_that_an_answer_would_give_it(client: openai.OpenAI) -> None:
    """The answer's first token, once as an answer and once as the prompt's last."""
    prompt = list(b"hello, and so on for more tokens than rows of logits are kept")
    answered = complete(client, prompt=prompt, max_tokens=1, logprobs=1, logit_bias={"65": 100}).choices[0].logprobs
    scored = complete(client, prompt=[*prompt, 65], max_tokens=0, logprobs=1, echo=True).choices[0].logprobs
    assert answered and scored and answered.token_logprobs and scored.token_logprobs
    assert scored.token_logprobs[len(prompt)] == answered.token_logprobs[0]


def test_no_token_is_answered_where_none_is_asked_for(client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=0, echo=True, logprobs=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "length")
    assert answer.usage and answer.usage.completion_tokens == 0


def test_a_stream_has_the_log_probabilities_of_its_echo(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"max_tokens": 4, "echo": True, "logprobs": 2}
    chunks = list(complete(client, stream=True, **asked))
    whole = complete(client, **asked).choices[0].logprobs
    found = [value for chunk in chunks for value in chunk.choices[0].logprobs.token_logprobs]  # type: ignore[attr-defined]
    assert whole and found == whole.token_logprobs


def test_log_probabilities_of_more_than_can_be_written_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="33600 log probabilities of prompts are asked for"):
        complete(client, prompt=[[65] * 100] * 16, echo=True, logprobs=20)


def test_the_first_prompt_that_is_scored_says_what_later_ones_say(client: openai.OpenAI) -> None:
    """Nothing of it comes from the cache."""
    prompt = "the same words, longer than a page, again and again"
    first, again = (complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=1) for _ in range(2))
    assert first.choices[0].logprobs == again.choices[0].logprobs


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
