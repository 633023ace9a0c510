"""Published configurations, bundled: the keys of config.json that memory depends on, by the repository's name.

Each JSON file is a family; `parameters` is the number that the model's card gives, to the last one, less what
the model's notes leave out.
"""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from residency.errors import FetchError
from residency.models.planned import planned_spec
from residency.spec.model import ModelSpec

# What names of variants end in, which share the shapes of the model that they were made from.
_VARIANT = re.compile(r"[-_.:](hf|it|instruct|chat|base|pt|pile|preview|\d{4}|4k|128k|latest)(?=[-_.:]|$)")
_VERSION = re.compile(r"[-_.:]v\d+(\.\d+)*$")
_MAX_SUGGESTIONS = 3


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that is known by name."""

    name: str  # "meta-llama/Llama-3.1-8B"
    architecture: str
    parameters: int


def known_models() -> tuple[KnownModel, ...]:
    """All models that are known by name, family by family."""
    return tuple(
        KnownModel(name=name, architecture=entry["config"]["model_type"], parameters=entry["parameters"])
        for name, entry in _published().items()
    )


def published_spec(model: str) -> ModelSpec:
    """The model known by this name, in any case, with or without its organisation. FetchError suggests the nearest."""
    name = _resolved(model)
    if name is None:
        raise FetchError(f"{model[:80]!r} is neither a file, a folder nor a known model{_suggestion(model)}.")
    return planned_spec(name.rpartition("/")[2], f"the published config.json of {name}", _published()[name]["config"])


def is_known(model: str) -> bool:
    """Whether a model is known by this name."""
    return _resolved(model) is not None


@cache
def _published() -> dict[str, dict[str, Any]]:
    folder = files("residency.models.published")
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".json"):
            found |= json.loads(file.read_text(encoding="utf-8"))
    return found


@cache
def _names() -> dict[str, str]:
    """Each way of writing a known name, and the name: whole names before those without their variant, and these before
    those without their version, where a size is left to tell models apart."""
    names = {_plain(name): name for name in _published()}
    for name in _published():
        names.setdefault(_plain(_without_variant(name)), name)
    for name in _published():
        shortest = _plain(_VERSION.sub("", _without_variant(name)))
        if re.search(r"\d", shortest):
            names.setdefault(shortest, name)
    return names


def _resolved(model: str) -> str | None:
    names = _names()
    return names.get(_plain(model)) or names.get(_plain(_without_variant(model)))


def _without_variant(name: str) -> str:
    """ "google/gemma-3-4b-it" as "google/gemma-3-4b"."""
    return _VARIANT.sub("", name.lower())


def _plain(name: str) -> str:
    """The model's own name, without what people write differently."""
    own = name.lower().rpartition("/")[2].removeprefix("meta-")
    return re.sub(r"[-_: ]", "", own)


def _suggestion(model: str) -> str:
    near = difflib.get_close_matches(_plain(model), _names(), n=2 * _MAX_SUGGESTIONS, cutoff=0.5)
    names = list(dict.fromkeys(_names()[each] for each in near))[:_MAX_SUGGESTIONS]
    return f"; did you mean {' or '.join(names)}" if names else "; `residency plan` without a model lists the known"
