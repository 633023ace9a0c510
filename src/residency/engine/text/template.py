"""A model's chat template, rendered by Jinja2 in a sandbox: the template comes with the model and is not trusted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from residency.errors import ModelError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_RENDERED_CHARACTERS = 1 << 24
MAX_RENDER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a model wants a conversation written out."""

    source: str = field(repr=False)
    bos_token: str = ""
    eos_token: str = ""
    _compiled: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """The conversation as the model's prompt, with every special token written out.

        variables: further names that the template may read (enable_thinking). ModelError if the template refuses the
        messages, is wrong, or writes more than MAX_RENDERED_CHARACTERS.
        """
        import jinja2  # imported here: a run without a template must not pay for it

        try:
            if not self._compiled:
                self._compiled.append(self._compile())
            pieces: list[str] = []
            left = MAX_RENDERED_CHARACTERS
            self._compiled[0].environment.start_clock()
            for piece in self._compiled[0].generate(
                **variables,
                messages=[dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            ):
                left -= len(piece)
                if left < 0:
                    raise TooMuch(f"it writes more than {MAX_RENDERED_CHARACTERS} characters")
                pieces.append(piece)
            return "".join(pieces)
        except (jinja2.TemplateError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelError(
                f"The model's chat template cannot write these messages: {reason.rstrip('.')}. "
                "Change the messages, or give a plain prompt."
            ) from error
        except AttributeError as error:
            raise ModelError(f"The model's chat template is wrong: {error}. Give a plain prompt.") from error

    def _compile(self) -> Any:
        if len(self.source) > MAX_TEMPLATE_CHARACTERS:
            raise TooMuch(f"it has {len(self.source)} characters, and the most is {MAX_TEMPLATE_CHARACTERS}")
        return _environment().from_string(self.source)


class TooMuch(ValueError):
    """The template asks for more than a conversation can need."""


def _environment() -> "ImmutableSandboxedEnvironment":
    from residency.engine.text.sandbox import Sandbox

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", "residency.engine.text.sandbox.Generation"],
        max_seconds=MAX_RENDER_SECONDS,
        max_characters=MAX_RENDERED_CHARACTERS,
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML's escapes, as `transformers` writes it."""
    if indent is not None and not 0 <= indent <= 16:
        raise TooMuch(f"it indents JSON by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


__all__ = ["MAX_RENDERED_CHARACTERS", "ChatTemplate", "TooMuch"]
