"""Jinja2's sandbox with bounds on time and on the size of what a template makes."""

import time
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

WIDENING_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"})
WIDENING_FILTERS = ("center", "filesizeformat", "format", "pprint", "urlize", "wordwrap", "xmlattr")
MAX_EXPONENT = 64


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses what could make much out of little: repeated sequences, wide formats, powers, nested long loops.

    Its operators and calls look at a clock, so that loops within loops end; `start_clock` sets it to zero.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, *, max_seconds: float, max_characters: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_seconds = max_seconds
        self._max_characters = max_characters
        self._deadline = 0.0
        for name in WIDENING_FILTERS:
            self.filters.pop(name, None)
        self.start_clock()

    def start_clock(self) -> None:
        self._deadline = time.monotonic() + self._max_seconds

    def _check_clock(self) -> None:
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it runs for more than {self._max_seconds:g} seconds")

    def wrap_str_format(self, value: Any) -> None:
        """No safe str.format is offered in place of the refused one: a field's width has no bound there."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes) and attr in WIDENING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._check_clock()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._check_clock()
        if operator == "*":
            self._refuse_long_products(left, right)
        elif operator == "**" and not (isinstance(right, int | float) and abs(right) <= MAX_EXPONENT):
            raise SecurityError(f"it raises to a power above {MAX_EXPONENT}")
        elif operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("it formats text with %")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, str | list | tuple) and len(result) > self._max_characters:
            raise SecurityError(f"it makes more than {self._max_characters} characters")
        if isinstance(result, int) and result.bit_length() > self._max_characters:
            raise SecurityError("it makes too large a number")
        return result

    def _refuse_long_products(self, left: Any, right: Any) -> None:
        for sequence, times in ((left, right), (right, left)):
            if hasattr(sequence, "__len__") and isinstance(times, int) and len(sequence) * times > self._max_characters:
                raise SecurityError(f"it makes more than {self._max_characters} characters")


class Generation(Extension):
    """{% generation %}: marks an answer for training; here its content is written as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
