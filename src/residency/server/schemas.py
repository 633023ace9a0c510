"""JSON schemas of strangers: what compiling one would cost too much is refused before it is tried.

llguidance bounds the states and steps of its automata, but not the search for whether patterns that must hold together
can hold at all: twenty of them took half a minute and 2 GB. Six that are as bad as we could make them take 10 ms.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from residency.server.problems import Problem, Refused

MAX_PATTERNS_TOGETHER = 6
MAX_STRING_CHARACTERS = 4096  # a mask within one long constant takes a tenth of a second
_PATTERNS = ("pattern", "format")
_BESIDE = ("$ref", *_PATTERNS)  # what holds together with whatever stands beside it, as the lists below do
_LISTS = ("allOf", "anyOf", "oneOf")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refused if compiling the schema may cost too much."""
    num_patterns = 0
    hold_together = False
    for value in _values(schema):
        if isinstance(value, str) and len(value) > MAX_STRING_CHARACTERS:
            raise schema_refused(f"a text has {len(value)} characters, and the most is {MAX_STRING_CHARACTERS}")
        if not isinstance(value, Mapping):
            continue
        properties = value.get("patternProperties")
        named = len(properties) if isinstance(properties, Mapping) else 0
        num_patterns += named + sum(isinstance(value.get(key), str) for key in _PATTERNS)
        beside = sum(isinstance(value.get(key), str) for key in _BESIDE)
        beside += sum(isinstance(value.get(key), list) for key in _LISTS)
        all_of = value.get("allOf")
        hold_together |= beside > 1 or named > 1 or (isinstance(all_of, list) and len(all_of) > 1)
    if hold_together and num_patterns > MAX_PATTERNS_TOGETHER:
        raise schema_refused(
            f"it has {num_patterns} patterns and formats and some must hold together (allOf, or one beside $ref or "
            f"another), where at most {MAX_PATTERNS_TOGETHER} are allowed"
        )


def schema_refused(reason: str) -> Refused:
    """The sentence for a schema that cannot be used."""
    message = f"The JSON schema cannot be used: {' '.join(reason.split()).rstrip('.')}; make it simpler."
    return Refused(Problem(status=400, message=message, param="response_format", code="invalid_json_schema"))


def _values(schema: object) -> Iterator[object]:
    """The schema and all that is in it, keys included."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
