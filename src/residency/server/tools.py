"""Tool calls in the text of an answer, in the forms that chat templates teach their models."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from residency.server.schemas import check_schema

ToolFormat = Literal["hermes", "llama3"]
_BEGIN, _END = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as templates write calls


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of one of the client's functions."""

    name: str
    arguments: str  # JSON
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What text turned out to be: something said, then calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def tool_format(template_source: str) -> ToolFormat | None:
    """How the model writes calls, by what its chat template says; None where it knows no form that we read.

    hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call> (Nous Hermes, Qwen 2.5 and 3). llama3: the answer
    is {"name": ..., "parameters": {...}} (Llama 3.1's JSON calls).
    """
    if _BEGIN in template_source and "<function=" not in template_source:
        return "hermes"
    if '"parameters"' in template_source or _PYTHON_TAG in template_source:
        return "llama3"
    return None


def call_grammar(form: ToolFormat, functions: Sequence[Mapping[str, Any]]) -> str:
    """A grammar (llguidance's Lark) of an answer that is one call of one of the `functions`, by their parameters.

    Refused where a function's parameters would cost too much.
    """
    key = "arguments" if form == "hermes" else "parameters"
    call = f'"{_BEGIN}\\n" call "\\n{_END}"' if form == "hermes" else "call"
    rules = [f"start: {call}", "call: " + " | ".join(f"call_{number}" for number in range(len(functions)))]
    for number, function in enumerate(functions):
        parameters = function.get("parameters") or _ANY_OBJECT
        check_schema(parameters)
        begin = json.dumps(f'{{"name": "{function["name"]}", "{key}": ')
        rules.append(f'call_{number}: {begin} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {json.dumps({**parameters, 'x-guidance': _COMPACT})}")
    return "\n".join(rules)


class ToolParser:
    """Takes an answer's text as it comes, and tells calls from what is said. Text that may be a call is held back."""

    def __init__(self, form: ToolFormat, names: Sequence[str]) -> None:
        self._form = form
        self._names = frozenset(names)
        self._held = ""
        self._said = False  # whether anything but space has been shown

    def feed(self, piece: str) -> Parsed:
        """What is known after `piece`."""
        self._held += piece
        return self._feed_hermes() if self._form == "hermes" else self._feed_llama3()

    def flush(self) -> Parsed:
        """What is left at the end of the answer: a call that is complete, or text as it is."""
        held, self._held = self._held, ""
        if self._form == "llama3" and not self._said:
            calls = self._calls_in(held.strip().removeprefix(_PYTHON_TAG), "parameters", separator=";")
            return Parsed(calls=calls) if calls else Parsed(text=held)
        if held.lstrip().startswith(_BEGIN) and (
            calls := self._calls_in(held.strip().removeprefix(_BEGIN), "arguments")
        ):
            return Parsed(calls=calls)
        return Parsed(text=held)

    def _feed_hermes(self) -> Parsed:
        text = ""
        calls: list[Call] = []
        while True:
            begin = self._held.find(_BEGIN)
            if begin < 0:
                shown = len(self._held) - _held_back(self._held)
                text, self._held = text + self._held[:shown], self._held[shown:]
                break
            said = self._held[:begin].rstrip("\n")
            text, self._held = text + said, self._held[len(said) :]
            end = self._held.find(_END)
            if end < 0:
                break
            whole, self._held = self._held[: end + len(_END)], self._held[end + len(_END) :]
            found = self._calls_in(whole.strip().removeprefix(_BEGIN).removesuffix(_END), "arguments")
            calls += found
            text += "" if found else whole
        return Parsed(text=text, calls=tuple(calls))

    def _feed_llama3(self) -> Parsed:
        """An answer that begins as JSON is held back to its end."""
        begun = self._held.lstrip()
        if not self._said and (not begun or begun[0] == "{" or _PYTHON_TAG.startswith(begun[: len(_PYTHON_TAG)])):
            return Parsed()
        self._said = True
        text, self._held = self._held, ""
        return Parsed(text=text)

    def _calls_in(self, text: str, key: str, separator: str | None = None) -> tuple[Call, ...]:
        """The calls that `text` is; none where it is anything else, or calls what the client does not have."""
        calls = []
        for part in [text] if separator is None else _json_values(text, separator):
            try:
                value = json.loads(part)
            except (ValueError, RecursionError):
                return ()
            if not isinstance(value, dict) or value.get("name") not in self._names:
                return ()
            arguments = value.get(key, value.get("arguments", {}))
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(Call(name=value["name"], arguments=written))
        return tuple(calls)


def _held_back(text: str) -> int:
    """Characters at the end that may be the beginning of a call, with the newlines before it."""
    lengths = range(min(len(_BEGIN) - 1, len(text)), 0, -1)
    begun = next((length for length in lengths if text.endswith(_BEGIN[:length])), 0)
    return len(text) - len(text[: len(text) - begun].rstrip("\n"))


def _json_values(text: str, separator: str) -> list[str]:
    """JSON values that are written one after another with a separator between them."""
    decoder, values, place = json.JSONDecoder(), [], 0
    while place < len(text):
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return [text]
        values.append(text[place:end])
        place = end + len(text[end:]) - len(text[end:].lstrip(f"{separator} \n"))
    return values
