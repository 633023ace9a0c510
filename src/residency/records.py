"""Frozen dataclasses as JSON values and back, strictly: what a record does not know is refused, nothing is guessed.
Only a field with a default may be left out.

Fields may be int, float, bool, str, Path, Literal, another record, `tuple[T, ...]`, `Mapping[str, T]` or `T | None`.
Numbers are never negative: records here hold bytes, counts, seconds and rates.
"""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from residency.errors import ResidencyError

R = TypeVar("R")
_LARGEST_INT = 2**63 - 1


def to_data(value: object) -> Any:
    """The record as dicts, lists, strings and numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_data(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_data(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [to_data(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def from_data(
    record: type[R], data: object, *, what: str, error: type[ResidencyError], remedy: str = "make it anew"
) -> R:
    """The record that `data` describes. `what` names it in the one sentence of the `error` raised otherwise, and
    `remedy` says there what to do.
    """
    return _Reader(what, error, remedy).record(record, data, "")


class _Reader:
    def __init__(self, what: str, error: type[ResidencyError], remedy: str) -> None:
        self._what = what
        self._error = error
        self._remedy = remedy

    def record(self, record: type[R], data: object, place: str) -> R:
        if not isinstance(data, dict):
            raise self._refusal(place, f"is {_kind(data)}, not an object")
        hints = typing.get_type_hints(record)
        known = [field.name for field in fields(record)]  # type: ignore[arg-type]
        for name in data:
            if name not in known:
                raise self._refusal(_join(place, str(name)[:60]), "is not a field that this version knows")
        defaults = {field.name for field in fields(record) if _has_default(field)}  # type: ignore[arg-type]
        for name in known:
            if name not in data and name not in defaults:
                raise self._refusal(_join(place, name), "is missing")
        given = [name for name in known if name in data]
        return record(**{name: self._value(hints[name], data[name], _join(place, name)) for name in given})

    def _value(self, hint: Any, data: object, place: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return None if data is None else self._value(arguments[0], data, place)
        if origin is Literal:
            if not isinstance(data, str) or data not in arguments:
                raise self._refusal(place, f"is {data!r:.60}, not one of {', '.join(map(repr, arguments))}")
            return data
        if origin is tuple:
            if not isinstance(data, list):
                raise self._refusal(place, f"is {_kind(data)}, not a list")
            return tuple(self._value(arguments[0], each, f"{place}[{index}]") for index, each in enumerate(data))
        if origin is Mapping:
            if not isinstance(data, dict):
                raise self._refusal(place, f"is {_kind(data)}, not an object")
            return {
                str(key): self._value(arguments[1], each, _join(place, str(key)[:60])) for key, each in data.items()
            }
        if is_dataclass(hint):
            return self.record(typing.cast(type[Any], hint), data, place)
        return self._plain(hint, data, place)

    def _plain(self, hint: Any, data: object, place: str) -> Any:
        if hint in (int, float):
            return self._number(hint, data, place)
        if hint is Path and isinstance(data, str):
            return Path(data)
        if hint not in (bool, str) or not isinstance(data, hint):
            raise self._refusal(place, f"is {_kind(data)}, not {_NAMES[hint]}")
        return data

    def _number(self, hint: Any, data: object, place: str) -> int | float:
        is_number = isinstance(data, int) or (hint is float and isinstance(data, float))
        if isinstance(data, bool) or not is_number:
            raise self._refusal(place, f"is {_kind(data)}, not {_NAMES[hint]}")
        number = typing.cast(float, data)
        if not (0 <= number <= _LARGEST_INT and math.isfinite(number)):
            raise self._refusal(place, f"is {str(number)[:40]}, which is out of range")
        return hint(number)  # type: ignore[no-any-return]

    def _refusal(self, place: str, fault: str) -> ResidencyError:
        where = f"'{place}' " if place else "it "
        return self._error(f"{self._what} cannot be used: {where}{fault}; {self._remedy}.")


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _kind(data: object) -> str:
    if data is None:
        return "null"
    kinds = {bool: "true or false", int: "a whole number", float: "a fraction", str: "a text", list: "a list"}
    return kinds.get(type(data), "an object")
