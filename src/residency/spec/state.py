"""What a model remembers of one sequence: a fixed part, and bytes for each token, in the format of the cache."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from residency.errors import UsageError

PAGE_TOKENS = 16  # tokens that are given room together

StateKind = Literal["paged", "window", "latent", "recurrent"]
KvName = Literal["F16", "F32", "INT8", "INT4"]  # formats that the engine's own kernels read and write
AnyKvName = Literal["F16", "F32", "INT8", "INT4", "BF16", "FP8"]  # those, and those of CUDA devices
RUN_KV_NAMES: tuple[KvName, ...] = get_args(KvName)


@dataclass(frozen=True, kw_only=True)
class KvFormat:
    """How a cache keeps keys and values: bits of a value, and the scale of each token's head, keys and values apart."""

    name: str
    value_bits: int
    scale_bytes: int = 0

    def head_bytes(self, num_values: int) -> int:
        """Bytes of one head's key, or value, of one token."""
        return -(-num_values * self.value_bits // 8) + self.scale_bytes

    @property
    def is_quantized(self) -> bool:
        """Whether values are integers with a scale."""
        return self.scale_bytes > 0


# FP8 has one scale for a whole layer, as serving engines keep it: not a byte per token. INT8 and INT4 are symmetric,
# with one float16 scale for each token and head.
KV_FORMATS = {
    each.name: each
    for each in (
        KvFormat(name="F32", value_bits=32),
        KvFormat(name="F16", value_bits=16),
        KvFormat(name="BF16", value_bits=16),
        KvFormat(name="FP8", value_bits=8),
        KvFormat(name="INT8", value_bits=8, scale_bytes=2),
        KvFormat(name="INT4", value_bits=4, scale_bytes=2),
    )
}
KV_F16 = KV_FORMATS["F16"]


def kv_format_named(name: str) -> KvFormat:
    """The cache format called `name`, in any case. UsageError names the ones there are."""
    found = KV_FORMATS.get(name.upper())
    if found is None:
        known = ", ".join(each.lower() for each in KV_FORMATS)
        raise UsageError(f"{name[:40]!r} is no format of a KV cache; choose one of {known}.")
    return found


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """What one or several layers remember of one sequence; bytes are the sum over the layers."""

    kind: StateKind
    bytes_per_token: int
    max_tokens: int | None  # None: as many as the context; a window keeps only its last max_tokens
    fixed_bytes: int = 0
    layers: int = 1

    def sequence_bytes(self, num_tokens: int, *, page_tokens: int = 1) -> int:
        """Bytes after `num_tokens` tokens, in whole pages of `page_tokens`."""
        kept = num_tokens if self.max_tokens is None else min(num_tokens, self.max_tokens)
        return self.fixed_bytes + self.bytes_per_token * (-(-kept // page_tokens) * page_tokens)


def grouped(states: Iterable[StateSpec]) -> tuple[StateSpec, ...]:
    """Layers that remember alike as one, in the order of their first layers."""
    alike: dict[tuple[StateKind, int, int | None, int], int] = {}
    for state in states:
        key = (state.kind, state.bytes_per_token, state.max_tokens, state.fixed_bytes)
        alike[key] = alike.get(key, 0) + state.layers
    return tuple(
        StateSpec(
            kind=kind,
            bytes_per_token=bytes_per_token * layers,
            max_tokens=max_tokens,
            fixed_bytes=fixed_bytes * layers,
            layers=layers,
        )
        for (kind, bytes_per_token, max_tokens, fixed_bytes), layers in alike.items()
    )
