"""The formats that matrices can be multiplied in, by name."""

from residency.errors import UnsupportedError
from residency.formats.format import FORMATS, Format
from residency.formats.grouped import grouped_named


def format_named(name: str) -> Format:
    """The format called `name`. UnsupportedError names the ones there are."""
    found = FORMATS.get(name) or grouped_named(name)
    if found is None:
        raise UnsupportedError(
            f"the number format {name[:40]} is not supported; supported are {', '.join(FORMATS)} and INT4_G128."
        )
    return found
