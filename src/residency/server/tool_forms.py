"""The forms in which models write tool calls, as their chat templates teach them."""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PYTHON_TAG = "<|python_tag|>"
_DEEPSEEK = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_DEEPSEEK_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_DEEPSEEK_SEPARATOR = "<｜tool▁sep｜>"
_KIMI = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_KIMI_CALL = "<|tool_call_begin|>", "<|tool_call_end|>"
_KIMI_SEPARATOR = "<|tool_call_argument_begin|>"
_MISTRAL_CALL = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
_MOST_PYTHON_CHARACTERS = 1 << 14  # a parser of Python goes as deep as what it reads

Functions = Mapping[str, Mapping[str, Any]]  # the client's, by name, with the schemas of their parameters


@dataclass(frozen=True, kw_only=True)
class Written:
    """A call as the model wrote it."""

    name: str
    arguments: str  # JSON


Reader = Callable[[str, Functions], Sequence[Written]]  # ValueError, or nothing, for what is no call


@dataclass(frozen=True, kw_only=True)
class ToolForm:
    """One way of writing calls. `begins` of a call's text; none where a whole answer is calls or is none.

    The grammar's parts stand before the name, between the name and its arguments, and after them.
    """

    name: str
    marks: tuple[str, ...]  # what a chat template that teaches the form has, all of it
    begins: tuple[str, ...] = ()
    end: str | None = None  # None: the answer's end
    read: Reader
    grammar: tuple[str, str, str]
    short_ids: bool = False  # nine letters and digits, or the template refuses the call when it is quoted


def tool_form(template_source: str) -> ToolForm | None:
    """How the model writes calls, by what its chat template says; None where it knows no form that we read."""
    return next((form for form in FORMS if all(mark in template_source for mark in form.marks)), None)


def _json_calls(text: str, functions: Functions) -> Sequence[Written]:
    """A JSON object or a list of them, one after another, perhaps with semicolons between them."""
    values = list(_json_values(text.strip().removeprefix(PYTHON_TAG)))
    return [_of_object(each) for value in values for each in (value if isinstance(value, list) else [value])]


def _json_values(text: str) -> Iterator[Any]:
    decoder, place, text = json.JSONDecoder(), 0, text.strip()
    while place < len(text):
        value, end = decoder.raw_decode(text, place)
        yield value
        place = end + len(text[end:]) - len(text[end:].lstrip("; \n"))


def _of_object(value: Any) -> Written:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call is an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Written(name=value["name"], arguments=written)


def _marked_list(text: str, functions: Functions) -> Sequence[Written]:
    return _json_calls(text.strip().removesuffix("<|/tool_call|>"), functions)


def _mistral_calls(text: str, functions: Functions) -> Sequence[Written]:
    """A list of objects, or since version 11 of the tokenizer a name and its arguments."""
    text = text.strip()
    if text.startswith(("[", "{")):
        return _json_calls(text, functions)
    calls: list[Written] = []
    decoder, place = json.JSONDecoder(), 0
    while match := _MISTRAL_CALL.match(text, place):
        value, place = decoder.raw_decode(text, match.end())
        calls.append(Written(name=match[1], arguments=json.dumps(value, ensure_ascii=False)))
        place += len(text[place:]) - len(text[place:].lstrip().removeprefix("[TOOL_CALLS]"))
    if place < len(text):
        raise ValueError("something follows that is no call")
    return calls


def _deepseek_calls(text: str, functions: Functions) -> Sequence[Written]:
    """Version 3 writes function, separator, name and arguments between fences; 3.1 name, separator and arguments."""
    calls = []
    for part in _between(text, *_DEEPSEEK_CALL):
        name, _, arguments = part.removeprefix(f"function{_DEEPSEEK_SEPARATOR}").partition("\n```json")
        if arguments:
            arguments = arguments.partition("\n```")[0]
        else:
            name, _, arguments = part.partition(_DEEPSEEK_SEPARATOR)
        calls.append(Written(name=name.strip(), arguments=_checked(arguments)))
    return calls


def _kimi_calls(text: str, functions: Functions) -> Sequence[Written]:
    """functions.NAME:NUMBER, which is the call's id, separator, arguments."""
    calls = []
    for part in _between(text, *_KIMI_CALL):
        call_id, _, arguments = part.partition(_KIMI_SEPARATOR)
        name = call_id.strip().removeprefix("functions.").rpartition(":")[0]
        calls.append(Written(name=name, arguments=_checked(arguments)))
    return calls


def _xml_calls(text: str, functions: Functions) -> Sequence[Written]:
    if text.lstrip().startswith("{"):  # what a required call is held to
        return _json_calls(text, functions)
    if text.count("<function=") != text.count("</function>"):
        raise ValueError("a call has its end")
    calls = []
    for part in _between(text, "<function=", "</function>"):
        name, _, body = part.partition(">")
        values = {}
        for parameter in _between(body, "<parameter=", "</parameter>"):
            key, _, value = parameter.partition(">")
            values[key.strip()] = value.removeprefix("\n").removesuffix("\n")
        calls.append(_of_texts(name.strip(), values, functions))
    return calls


def _glm_calls(text: str, functions: Functions) -> Sequence[Written]:
    if text.lstrip().startswith("{"):
        return _json_calls(text, functions)
    if text.count("<arg_key>") != text.count("</arg_value>"):
        raise ValueError("an argument has its end")
    values = {}
    for part in _between(text, "<arg_key>", "</arg_value>"):
        key, _, value = part.partition("</arg_key>")
        values[key.strip()] = value.partition("<arg_value>")[2]
    return [_of_texts(text.partition("<arg_key>")[0].strip(), values, functions)]


def _between(text: str, begin: str, end: str) -> list[str]:
    """Each stretch from `begin` to `end`, or to the next begin or the end of all where that is missing."""
    return [part.partition(end)[0] for part in text.split(begin)[1:]]


def _of_texts(name: str, values: Mapping[str, str], functions: Functions) -> Written:
    """Arguments written as text: those that the schema wants as strings stay so, others are JSON where they can be."""
    properties = functions.get(name, {}).get("properties")
    arguments: dict[str, Any] = {}
    for key, text in values.items():
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        arguments[key] = text
        if not isinstance(schema, Mapping) or schema.get("type") != "string":
            try:
                arguments[key] = json.loads(text)
            except (ValueError, RecursionError):
                pass
    return Written(name=name, arguments=json.dumps(arguments, ensure_ascii=False))


def _python_calls(text: str, functions: Functions) -> Sequence[Written]:
    """A list of Python calls with literal arguments. SyntaxError for what is no Python."""
    if len(text) > _MOST_PYTHON_CHARACTERS:
        raise ValueError("too long")
    text = text.strip().removeprefix(PYTHON_TAG).removesuffix("<|python_end|>")
    if text.startswith("{"):
        return _json_calls(text, functions)
    parsed = ast.parse(text.strip(), mode="eval").body
    if not isinstance(parsed, ast.List):
        raise ValueError("calls stand in a list")
    return [_of_node(node) for node in parsed.elts]


def _of_node(node: ast.expr) -> Written:
    if not isinstance(node, ast.Call) or node.args or any(each.arg is None for each in node.keywords):
        raise ValueError("a call names its arguments")
    arguments = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
    return Written(name=ast.unparse(node.func), arguments=json.dumps(arguments, ensure_ascii=False))


def _checked(text: str) -> str:
    """The text; ValueError where it is no JSON."""
    json.loads(text)
    return text.strip()


def _object(before: str, key: str, after: str) -> tuple[str, str, str]:
    """The grammar of {"name": ..., KEY: ...}."""
    return f'{before}{{"name": "', f'", "{key}": ', f"}}{after}"


_TAGGED: dict[str, Any] = {
    "begins": ("<tool_call>",),
    "end": "</tool_call>",
    "grammar": _object("<tool_call>\n", "arguments", "\n</tool_call>"),
}
FORMS = (  # the first whose marks a template has
    ToolForm(
        name="deepseek_v3",
        marks=(_DEEPSEEK[0],),
        begins=(_DEEPSEEK[0],),
        end=_DEEPSEEK[1],
        read=_deepseek_calls,
        grammar=(
            f"{_DEEPSEEK[0]}<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            "\n```json\n",
            f"\n```<｜tool▁call▁end｜>{_DEEPSEEK[1]}",
        ),
    ),
    ToolForm(
        name="kimi_k2",
        marks=(_KIMI[0],),
        begins=(_KIMI[0],),
        end=_KIMI[1],
        read=_kimi_calls,
        grammar=(
            f"{_KIMI[0]}<|tool_call_begin|>functions.",
            ":0<|tool_call_argument_begin|>",
            f"<|tool_call_end|>{_KIMI[1]}",
        ),
    ),
    ToolForm(
        name="mistral",
        marks=("[TOOL_CALLS]",),
        begins=("[TOOL_CALLS]",),
        read=_mistral_calls,
        grammar=_object("[TOOL_CALLS][", "arguments", "]"),
        short_ids=True,
    ),
    ToolForm(name="qwen3_coder", marks=("<tool_call>", "<function="), read=_xml_calls, **_TAGGED),
    ToolForm(name="glm4", marks=("<tool_call>", "<arg_key>"), read=_glm_calls, **_TAGGED),
    ToolForm(name="hermes", marks=("<tool_call>",), read=_json_calls, **_TAGGED),
    ToolForm(
        name="granite",
        marks=("<|tool_call|>", "<|start_of_role|>"),
        begins=("<|tool_call|>",),
        read=_marked_list,
        grammar=_object("<|tool_call|>[", "arguments", "]"),
    ),
    ToolForm(
        name="phi4_mini",
        marks=("<|tool|>",),
        begins=("<|tool_call|>", "functools"),
        read=_marked_list,
        grammar=_object("<|tool_call|>[", "arguments", "]<|/tool_call|>"),
    ),
    ToolForm(
        name="pythonic",
        marks=("func_name1(params_name1",),
        read=_python_calls,
        grammar=_object("", "parameters", ""),
    ),
    ToolForm(name="llama3", marks=('"parameters"',), read=_json_calls, grammar=_object("", "parameters", "")),
    ToolForm(name="llama3", marks=(PYTHON_TAG,), read=_json_calls, grammar=_object("", "parameters", "")),
)
