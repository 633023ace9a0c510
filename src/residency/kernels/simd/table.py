"""An operator's kernels by variant. Those for integers in groups, of which there are many, are made when asked for."""

from collections.abc import Callable, Mapping

from residency.formats import GroupedFormat, format_named

Kernel = Callable[..., None]


class KernelTable(dict[str, Kernel]):
    """Kernels by variant; `made(prefix, format)` makes the one for integers in groups, "silu_INT4_G128"."""

    def __init__(self, kernels: Mapping[str, Kernel], made: Callable[[str, GroupedFormat], Kernel]) -> None:
        super().__init__(kernels)
        self._made = made

    def __missing__(self, variant: str) -> Kernel:
        prefix, _, rest = variant.rpartition("INT")
        fmt = format_named(f"INT{rest}")
        assert isinstance(fmt, GroupedFormat)
        return self._made(prefix.removesuffix("_"), fmt)
