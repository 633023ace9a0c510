"""Tool calls in the text of an answer, told from what is said."""

import json
import secrets
import string
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from residency.server.schemas import check_schema
from residency.server.tool_forms import PYTHON_TAG, Functions, ToolForm

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as templates write calls
_SHORT_ID_CHARACTERS = 9
_MOST_READ_CHARACTERS = 1 << 17  # of a call; what is longer stays text


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of one of the client's functions."""

    name: str
    arguments: str  # JSON
    call_id: str


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What text turned out to be: something said, then calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def call_grammar(form: ToolForm, functions: Sequence[Mapping[str, Any]]) -> str:
    """A grammar (llguidance's Lark) of an answer that is one call of one of the `functions`, by their parameters.

    Refused where a function's parameters would cost too much.
    """
    before, between, after = form.grammar
    rules = ["start: " + " | ".join(f"call_{number}" for number in range(len(functions)))]
    for number, function in enumerate(functions):
        parameters = function.get("parameters") or _ANY_OBJECT
        check_schema(parameters)
        begin, end = (json.dumps(part, ensure_ascii=False) for part in (before + function["name"] + between, after))
        rules.append(f"call_{number}: {begin} arguments_{number} {end}")
        rules.append(f"arguments_{number}: %json {json.dumps({**parameters, 'x-guidance': _COMPACT})}")
    return "\n".join(rules)


class ToolParser:
    """Takes an answer's text as it comes, and tells calls from what is said. Text that may be a call is held back."""

    def __init__(self, form: ToolForm, functions: Functions) -> None:
        self._form = form
        self._functions = functions
        self._held = ""
        self._said = False  # whether anything but space has been shown

    def feed(self, piece: str) -> Parsed:
        """What is known after `piece`."""
        self._held += piece
        return self._feed_marked() if self._form.begins else self._feed_whole()

    def flush(self) -> Parsed:
        """What is left at the end of the answer: calls that are complete, or text as it is."""
        held, self._held = self._held, ""
        if not self._form.begins:
            calls = () if self._said else self._calls_in(held)
            return Parsed(calls=calls) if calls else Parsed(text=held)
        begun = held.lstrip()
        mark = next((mark for mark in self._form.begins if begun.startswith(mark)), None)
        calls = () if mark is None else self._calls_in(begun.removeprefix(mark))
        return Parsed(calls=calls) if calls else Parsed(text=held)

    def _feed_marked(self) -> Parsed:
        text = ""
        calls: list[Call] = []
        while True:
            begin, mark = self._first_mark()
            if mark is None:
                shown = len(self._held) - _held_back(self._held, self._form.begins)
                text, self._held = text + self._held[:shown], self._held[shown:]
                break
            said = self._held[:begin].rstrip("\n")
            text, self._held = text + said, self._held[len(said) :]
            end = -1 if self._form.end is None else self._held.find(self._form.end)
            if self._form.end is None or end < 0:
                break
            inside = self._held[:end].lstrip("\n").removeprefix(mark)
            whole, self._held = self._held[: end + len(self._form.end)], self._held[end + len(self._form.end) :]
            found = self._calls_in(inside)
            calls += found
            text += "" if found else whole
        return Parsed(text=text, calls=tuple(calls))

    def _first_mark(self) -> tuple[int, str | None]:
        found = [(place, mark) for mark in self._form.begins if (place := self._held.find(mark)) >= 0]
        return min(found, default=(0, None))

    def _feed_whole(self) -> Parsed:
        """An answer that begins as a call is held back to its end."""
        begun = self._held.lstrip()
        if not self._said and (not begun or begun[0] in "{[" or PYTHON_TAG.startswith(begun[: len(PYTHON_TAG)])):
            return Parsed()
        self._said = True
        text, self._held = self._held, ""
        return Parsed(text=text)

    def _calls_in(self, text: str) -> tuple[Call, ...]:
        """The calls that `text` is; none where it is anything else, or calls what the client does not have."""
        if len(text) > _MOST_READ_CHARACTERS:
            return ()
        try:
            written = self._form.read(text, self._functions)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last is what deep Python raises
            return ()
        if any(each.name not in self._functions for each in written):
            return ()
        return tuple(Call(name=each.name, arguments=each.arguments, call_id=self._new_id()) for each in written)

    def _new_id(self) -> str:
        if self._form.short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_SHORT_ID_CHARACTERS))
        return f"call_{uuid.uuid4().hex[:24]}"


def _held_back(text: str, begins: Sequence[str]) -> int:
    """Characters at the end that may be the beginning of a call, with the newlines before it."""
    begun = max(_begun(text, mark) for mark in begins)
    return len(text) - len(text[: len(text) - begun].rstrip("\n"))


def _begun(text: str, mark: str) -> int:
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
