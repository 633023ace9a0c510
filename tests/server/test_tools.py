"""Tool calls in the text of answers, in every form that is read."""

import json

import pytest

from residency.server.tool_forms import FORMS, ToolForm, tool_form
from residency.server.tools import Parsed, ToolParser, call_grammar

FORM = {form.name: form for form in FORMS}
FUNCTIONS = {"weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}, "time": {}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}'
WRITTEN = {
    "hermes": CALL,
    "llama3": LLAMA_CALL,
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]',
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]',
    "phi4_mini": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]<|/tool_call|>',
    "qwen3_coder": (
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    ),
    "glm4": (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Oslo", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Oslo", "days": 3}<|tool_call_end|><|tool_calls_section_end|>'
    ),
    "pythonic": '[weather(city="Oslo", days=3)]',
}
MARKED = sorted(name for name, form in FORM.items() if form.begins)
WHOLE = sorted(name for name, form in FORM.items() if not form.begins)


def parsed(form: str, text: str, *, piece_characters: int = 3) -> Parsed:
    """What the text is, given in pieces."""
    parser = ToolParser(FORM[form], FUNCTIONS)
    found = [parser.feed(text[at : at + piece_characters]) for at in range(0, len(text), piece_characters)]
    found.append(parser.flush())
    return Parsed(text="".join(each.text for each in found), calls=tuple(call for each in found for call in each.calls))


def test_every_form_has_an_example_here() -> None:
    assert WRITTEN.keys() == FORM.keys()


@pytest.mark.parametrize("piece_characters", [1, 3, 1000])
@pytest.mark.parametrize("form", sorted(WRITTEN))
def test_a_call_is_read_with_its_arguments(form: str, piece_characters: int) -> None:
    found = parsed(form, WRITTEN[form], piece_characters=piece_characters)
    (call,) = found.calls
    assert (found.text, call.name, json.loads(call.arguments)) == ("", "weather", {"city": "Oslo", "days": 3})


@pytest.mark.parametrize("piece_characters", [1, 3, 1000])
@pytest.mark.parametrize("form", MARKED)
def test_a_call_is_told_from_what_is_said_before_it(form: str, piece_characters: int) -> None:
    found = parsed(form, f"Let me see.\n{WRITTEN[form]}", piece_characters=piece_characters)
    assert found.text == "Let me see." and [call.name for call in found.calls] == ["weather"]


@pytest.mark.parametrize("form", sorted(WRITTEN))
def test_a_call_of_what_the_client_does_not_have_stays_text(form: str) -> None:
    text = WRITTEN[form].replace("weather", "other")
    assert parsed(form, text) == Parsed(text=text)


@pytest.mark.parametrize("form", sorted(WRITTEN))
def test_a_call_that_breaks_off_stays_text(form: str) -> None:
    text = WRITTEN[form][: WRITTEN[form].index("Oslo")]
    assert parsed(form, text) == Parsed(text=text)


@pytest.mark.parametrize("form", WHOLE)
def test_an_answer_that_begins_as_text_is_shown_at_once(form: str) -> None:
    assert ToolParser(FORM[form], FUNCTIONS).feed("The").text == "The"


@pytest.mark.parametrize("form", MARKED)
def test_text_without_a_mark_is_shown_at_once(form: str) -> None:
    assert ToolParser(FORM[form], FUNCTIONS).feed("The").text == "The"


@pytest.mark.parametrize("form", sorted(WRITTEN))
def test_what_a_required_call_is_held_to_is_read(form: str) -> None:
    before, between, after = FORM[form].grammar
    (call,) = parsed(form, f'{before}weather{between}{{"city": "Oslo"}}{after}').calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})


@pytest.mark.parametrize("form", sorted(WRITTEN))
def test_a_required_call_has_a_grammar_that_compiles(form: str) -> None:
    llguidance = pytest.importorskip("llguidance")
    grammar = call_grammar(FORM[form], [{"name": name, "parameters": each} for name, each in FUNCTIONS.items()])
    assert llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(grammar)) == ""


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", f"{CALL}\n{CALL}"),
        ("llama3", f"<|python_tag|>{LLAMA_CALL}; {LLAMA_CALL}"),
        ("mistral", '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "weather", "arguments": {}}]'),
        ("mistral", "[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{}"),
        ("granite", '<|tool_call|>[{"name": "time", "arguments": {}}, {"name": "weather", "arguments": {}}]'),
        ("phi4_mini", 'functools[{"name": "time", "arguments": {}}, {"name": "weather", "arguments": {}}]'),
        ("qwen3_coder", WRITTEN["qwen3_coder"] * 2),
        ("deepseek_v3", WRITTEN["deepseek_v3"].replace("<｜tool▁calls▁end｜>", "") + WRITTEN["deepseek_v3"][20:]),
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
            "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        ("pythonic", "[time(), weather(city='Oslo')]"),
    ],
)
def test_several_calls_are_several(form: str, text: str) -> None:
    found = parsed(form, text)
    assert (found.text.strip(), len(found.calls)) == ("", 2)


def test_several_calls_have_different_ids() -> None:
    assert len({call.call_id for call in parsed("hermes", f"{CALL}\n{CALL}").calls}) == 2


def test_ids_of_mistral_calls_are_nine_letters_and_digits() -> None:
    """Its template refuses to quote others."""
    (call,) = parsed("mistral", WRITTEN["mistral"]).calls
    assert len(call.call_id) == 9 and call.call_id.isalnum()


def test_a_call_without_its_end_mark_is_a_call_if_it_is_complete() -> None:
    assert parsed("hermes", CALL.removesuffix("</tool_call>")).calls[0].name == "weather"


@pytest.mark.parametrize("value", ["123", "true", "[1]", '{"a": 1}'])
def test_what_a_schema_wants_as_a_string_stays_one(value: str) -> None:
    (call,) = parsed("qwen3_coder", WRITTEN["qwen3_coder"].replace("Oslo", value)).calls
    assert json.loads(call.arguments)["city"] == value


@pytest.mark.parametrize(
    "text",
    [
        "x <tool_call>{not json}</tool_call> y",
        "<tool_call>",
        "a <tool",
        "1 < 2",
        "[]",
        "lines\n\nand lines\n",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parsed("hermes", text) == Parsed(text=text)


@pytest.mark.parametrize("text", ["Hello", '{"name": "other"}', "{", "", "[1]", "[f(x)]", "[" * 300, "[" + "-" * 9999])
@pytest.mark.parametrize("form", WHOLE)
def test_an_answer_that_is_no_call_stays_text(form: str, text: str) -> None:
    assert parsed(form, text, piece_characters=1000) == Parsed(text=text)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("write <tool_call> tags", "hermes"),
        ("write <tool_call> with <function=name>", "qwen3_coder"),
        ("write <tool_call> with <arg_key>", "glm4"),
        ('{"name": n, "parameters": p}', "llama3"),
        ("{{ '<|python_tag|>' }}", "llama3"),
        ("[AVAILABLE_TOOLS] {{ tools }} [TOOL_CALLS]", "mistral"),
        ("<|start_of_role|>tools, <|tool_call|> followed by a list", "granite"),
        ("'<|tool|>' + message['tools'] + '<|/tool|>'", "phi4_mini"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ("'<｜tool▁calls▁begin｜>'", "deepseek_v3"),
        ("<|tool_calls_section_begin|>", "kimi_k2"),
        ("{{ messages }}", None),
    ],
)
def test_the_template_says_how_calls_are_written(source: str, name: str | None) -> None:
    form: ToolForm | None = tool_form(source)
    assert (form.name if form else None) == name
