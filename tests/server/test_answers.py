"""Tokens become text, with what holds beside it."""

from typing import Any

import pytest

from residency.engine.generation import TokenEvent, TokenLogprob
from residency.server.answers import Answer, Piece
from support.byte_tokenizer import END, ByteTokenizer


def event(token: int | None, **changes: Any) -> TokenEvent:
    return TokenEvent(
        **{"request_id": 0, "answer": 0, "token": token, "prompt_tokens": 1, "cached_tokens": 0, **changes}
    )


def pieces(text: str, *, stops: tuple[str, ...] = (), logprobs: bool = False, cut: bool = False) -> list[Piece]:
    """What an answer of this text's bytes shows; with `cut`, it ends for its length."""
    answer = Answer(ByteTokenizer(), stops=stops, starts_text=True)
    given = {"logprob": -1.0, "top_logprobs": (TokenLogprob(token=65, logprob=-1.0),)} if logprobs else {}
    data = text.encode()
    events = [event(byte, **given) for byte in data[:-1]]
    events += [event(data[-1], finish_reason="length", **given)] if cut else [event(data[-1], **given)]
    events += [] if cut else [event(END, finish_reason="stop", **given)]
    shown = []
    for each in events:
        shown.append(answer.take(each))
        if answer.has_ended:
            break
    return shown


def test_half_a_character_is_never_shown() -> None:
    assert [piece.text for piece in pieces("é")] == ["", "é", ""]


def test_a_character_that_was_cut_is_shown_as_one_that_is_missing() -> None:
    answer = Answer(ByteTokenizer(), stops=(), starts_text=True)
    assert answer.take(event("é".encode()[0], finish_reason="length")).text == "�"


def test_the_end_token_has_no_text() -> None:
    assert "".join(piece.text for piece in pieces("ab")) == "ab"


def test_an_answer_ends_at_its_stop_string() -> None:
    shown = pieces("one two three", stops=("two",))
    assert ("".join(piece.text for piece in shown), shown[-1].finish_reason) == ("one ", "stop")


def test_an_answer_that_was_cut_shows_what_was_held_back() -> None:
    assert "".join(piece.text for piece in pieces("one tw", stops=("two",), cut=True)) == "one tw"


@pytest.mark.parametrize(("stops", "count"), [((), 7), (("two",), 4)])
def test_log_probabilities_are_of_tokens_that_are_shown(stops: tuple[str, ...], count: int) -> None:
    shown = pieces("one two", stops=stops, logprobs=True)
    assert sum(len(piece.tokens) for piece in shown) == count


def test_a_token_stands_where_its_text_begins() -> None:
    shown = [token for piece in pieces("aéb", logprobs=True) for token in piece.tokens]
    assert [token.start_character for token in shown] == [0, 1, 1, 2]
