"""TOML read and written: the part of the language that descriptions of machines need."""

import json
import tomllib
from typing import Any

from residency.errors import UsageError
from residency.units import parse_bytes

Table = dict[str, Any]


def parse_toml(text: str) -> Table:
    """The document, in which keys that end in _bytes, other than those of sources, may be written as "24GiB".

    ValueError for other text, UsageError for an amount that cannot be meant.
    """
    try:
        data = tomllib.loads(text)
        _read_amounts(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data


def toml_text(data: Table) -> str:
    """A document with one key a line, and a table for each object and each object in a list, two deep.

    Keys whose value is None are left out, as TOML has none.
    """
    return "\n".join(_tables(data, "", deep=2)).lstrip("\n") + "\n"


def _read_amounts(value: Any) -> None:
    for each in value if isinstance(value, list) else ():
        _read_amounts(each)
    for key, each in value.items() if isinstance(value, dict) else ():
        if key.endswith("_bytes") and isinstance(each, str):
            try:
                value[key] = parse_bytes(each)
            except UsageError as error:
                raise UsageError(f"{key!r:.60}: {error}") from None
        if key != "sources":
            _read_amounts(each)


def _tables(data: Table, place: str, *, deep: int) -> list[str]:
    """The lines of a table: its plain keys, then a table for each of the others."""
    lines, inner = [], []
    for key, value in data.items():
        name = f"{place}.{_key(key)}" if place else _key(key)
        if deep and isinstance(value, dict) and value:
            inner += ["", f"[{name}]", *_tables(value, name, deep=0)]
        elif deep == 2 and isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                inner += ["", f"[[{name}]]", *_tables(each, name, deep=1)]
        elif value is not None:
            lines.append(f"{_key(key)} = {_value(value)}")
    return lines + inner


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items() if each is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        inner = ", ".join(_value(each) for each in value)
        return f"[{inner}]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for the delete character, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.replace("_", "a").replace("-", "a").isalnum() and key.isascii() else _value(key)
