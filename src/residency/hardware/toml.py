"""TOML written: the part of the language that descriptions of machines need."""

import json
from typing import Any


def toml_text(data: dict[str, Any]) -> str:
    """A document with one key a line and inline tables. Keys whose value is None are left out, as TOML has none."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in data.items() if value is not None)


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
