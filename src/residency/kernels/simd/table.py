"""An operator's kernels by variant. Those for integers in groups, of which there are many, are made when asked for."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from residency.formats import GroupedFormat, format_named

Made = TypeVar("Made")


class KernelTable(dict[str, Made], Generic[Made]):
    """Kernels, or parts of some, by variant; `made(prefix, format)` makes the one for integers in groups,
    "silu_INT4_G128".
    """

    def __init__(self, kernels: Mapping[str, Made], made: Callable[[str, GroupedFormat], Made]) -> None:
        super().__init__(kernels)
        self._made = made

    def __missing__(self, variant: str) -> Made:
        prefix, integers, rest = variant.rpartition("INT")
        if not integers:
            raise KeyError(variant)
        fmt = format_named(f"INT{rest}")
        assert isinstance(fmt, GroupedFormat)
        return self._made(prefix.removesuffix("_"), fmt)
