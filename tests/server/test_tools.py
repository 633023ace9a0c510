"""Tool calls in the text of answers."""

import json

import pytest

from residency.server.tools import Parsed, ToolFormat, ToolParser, tool_format

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Oslo"}}'


def parsed(form: ToolFormat, text: str, *, piece_characters: int = 3) -> Parsed:
    """What the text is, given in pieces."""
    parser = ToolParser(form, ["weather"])
    found = [parser.feed(text[at : at + piece_characters]) for at in range(0, len(text), piece_characters)]
    found.append(parser.flush())
    return Parsed(text="".join(each.text for each in found), calls=tuple(call for each in found for call in each.calls))


@pytest.mark.parametrize("piece_characters", [1, 3, 1000])
def test_a_call_is_told_from_what_is_said_before_it(piece_characters: int) -> None:
    found = parsed("hermes", f"Let me see.\n{CALL}", piece_characters=piece_characters)
    assert found.text == "Let me see." and [call.name for call in found.calls] == ["weather"]


def test_arguments_are_json_text() -> None:
    assert json.loads(parsed("hermes", CALL).calls[0].arguments) == {"city": "Oslo"}


def test_several_calls_are_several() -> None:
    assert len(parsed("hermes", f"{CALL}\n{CALL}").calls) == 2


def test_several_calls_have_different_ids() -> None:
    assert len({call.call_id for call in parsed("hermes", f"{CALL}\n{CALL}").calls}) == 2


def test_a_call_without_its_end_mark_is_a_call_if_it_is_complete() -> None:
    assert parsed("hermes", CALL.removesuffix("</tool_call>")).calls[0].name == "weather"


@pytest.mark.parametrize(
    "text",
    [
        "x <tool_call>{not json}</tool_call> y",
        "<tool_call>",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        "a <tool",
        "1 < 2",
        "[]",
        "lines\n\nand lines\n",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parsed("hermes", text) == Parsed(text=text)


def test_a_llama_answer_that_is_a_call_is_one() -> None:
    assert json.loads(parsed("llama3", LLAMA_CALL).calls[0].arguments) == {"city": "Oslo"}


def test_llama_calls_after_one_another_are_several() -> None:
    assert len(parsed("llama3", f"<|python_tag|>{LLAMA_CALL}; {LLAMA_CALL}").calls) == 2


@pytest.mark.parametrize("text", ["Hello", '{"name": "other"}', "{", "", "[1]"])
def test_a_llama_answer_that_is_no_call_stays_text(text: str) -> None:
    assert parsed("llama3", text) == Parsed(text=text)


def test_a_llama_answer_that_begins_as_text_is_shown_at_once() -> None:
    assert ToolParser("llama3", ["weather"]).feed("The").text == "The"


@pytest.mark.parametrize(
    ("source", "form"),
    [("write <tool_call> tags", "hermes"), ('{"name": n, "parameters": p}', "llama3"), ("{{ messages }}", None)],
)
def test_the_template_says_how_calls_are_written(source: str, form: ToolFormat | None) -> None:
    assert tool_format(source) == form
