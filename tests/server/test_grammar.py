"""Schemas become masks, and those that would cost too much are refused at once."""

import json
import string
import time
from typing import Any

import numpy as np
import pytest

from residency.server.grammar import MAX_GRAMMAR_BYTES, Constraint, Grammars
from residency.server.problems import Refused
from support.byte_tokenizer import END, ByteTokenizer

VOCABULARY = 257
NASTY = "|".join(f"{letter}.{{{count}}}" for count, letter in enumerate(string.ascii_lowercase[:20]))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    """Over the bytes, and one token that ends."""
    return Grammars(ByteTokenizer(), VOCABULARY)


def allowed(constraint: Constraint, text: str) -> set[int]:
    """The tokens that may come after `text`."""
    bits = np.unpackbits(constraint(list(text.encode())).view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[:VOCABULARY]).tolist())


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_only_what_the_schema_allows_may_come(grammars: Grammars) -> None:
    assert allowed(grammars.of_schema({"enum": ["red", "rose"]}), '"r') == {ord("e"), ord("o")}


def test_an_answer_that_is_complete_can_only_end(grammars: Grammars) -> None:
    assert allowed(grammars.of_schema({"enum": ["red"]}), '"red"') == {END}


def test_a_copy_goes_its_own_way(grammars: Grammars) -> None:
    first = grammars.of_schema({"enum": ["red", "rose"]})
    second = first.copy()
    allowed(first, '"re')
    assert allowed(second, '"ro') == {ord("s")}


def test_white_space_between_parts_has_an_end(grammars: Grammars) -> None:
    assert ord(" ") not in allowed(grammars.of_schema({"type": "array"}), "[" + " " * 32)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f".*{letter}.*"} for letter in string.ascii_lowercase]},
        {"allOf": [{"type": "string", "pattern": f".*({NASTY}{letter}).*"} for letter in string.ascii_lowercase]},
        {"const": "a" * 50_000},
        {"enum": ["a" * 4000] * 20},
        nested(900),
        nested(100_000),
        {"type": "colour"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "("},
    ],
)
def test_what_cannot_be_used_is_refused_at_once(grammars: Grammars, schema: dict[str, Any]) -> None:
    grammars.of_schema({})
    started = time.perf_counter()
    with pytest.raises(Refused, match="The JSON schema cannot be used"):
        grammars.of_schema(schema)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"at_{day}": {"type": "string", "format": "date"} for day in range(20)}},
        {"$defs": {"a": {"type": "string", "format": "uuid"}}, "properties": {"a": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"properties": {"a": {"pattern": "^a+$"}}}, {"properties": {"b": {"pattern": "^b+$"}}}]},
        {"properties": {"pattern": {"type": "string"}, "allOf": {"type": "array"}}},
    ],
)
def test_usual_schemas_are_taken(grammars: Grammars, schema: dict[str, Any]) -> None:
    assert ord("{") in allowed(grammars.of_schema({"type": "object", **schema}), "")


def test_a_schema_that_is_too_long_says_how_long_it_may_be(grammars: Grammars) -> None:
    schema = {"enum": [f"value {number}" for number in range(10_000)]}
    assert len(json.dumps(schema)) > MAX_GRAMMAR_BYTES
    with pytest.raises(Refused, match=f"the most is {MAX_GRAMMAR_BYTES}"):
        grammars.of_schema(schema)


def test_a_token_that_was_not_allowed_is_noticed(grammars: Grammars) -> None:
    constraint = grammars.of_schema({"enum": ["red"]})
    with pytest.raises(Refused):
        allowed(constraint, "x")
