"""Keys and values as integers in the pages of the KV cache, defined in plain NumPy; never optimised.

Symmetric, with one float16 scale for each token and head, keys and values apart. Shape suffixes as in reference; N for
runs of codes that share bytes, K for keys and values, B for bytes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.kernels.rotary.reference import PAGE_TOKENS, Doubles, Floats, as_keys, as_values
from residency.spec.state import KvName

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
BITS: dict[KvName, int] = {"INT8": 8, "INT4": 4}


def spread(x_THD: Doubles | Floats) -> Doubles:
    """Each head times the Hadamard matrix of the largest order that divides its width, block by block.

    Queries and keys are both spread before keys are rounded, which leaves every score what it is and no value much
    larger than the others (S. Ashkboos et al.: QuaRot, 2024).
    """
    head_dim = x_THD.shape[-1]
    order = head_dim & -head_dim
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    blocks = x_THD.reshape(*x_THD.shape[:-1], -1, order) @ (matrix / np.sqrt(order))
    spread_THD: Doubles = blocks.reshape(x_THD.shape)
    return spread_THD


@dataclass(frozen=True, kw_only=True)
class Codes:
    """What pages of integers hold: codes with signs, and scales."""

    keys_PGDS: Integers
    values_PGSD: Integers
    scales_PGKS: npt.NDArray[np.float16]

    @property
    def keys(self) -> Doubles:
        """The keys that the codes stand for, (pages, kv_heads, head_dim, 16)."""
        decoded: Doubles = self.scales_PGKS[:, :, 0, None, :].astype(np.float64) * self.keys_PGDS
        return decoded

    @property
    def values(self) -> Doubles:
        """The values that the codes stand for, (pages, kv_heads, 16, head_dim)."""
        decoded: Doubles = self.scales_PGKS[:, :, 1, :, None].astype(np.float64) * self.values_PGSD
        return decoded

    def put(self, slot: int, k_GD: Doubles | Floats, v_GD: Doubles | Floats, largest: int) -> None:
        """Round a token's keys and values to codes up to `largest` in its slot (page * 16 + place)."""
        page, place = divmod(slot, PAGE_TOKENS)
        for kind, x_GD, at in (
            (0, k_GD, self.keys_PGDS[page, :, :, place]),
            (1, v_GD, self.values_PGSD[page, :, place]),
        ):
            scale_G = (np.abs(x_GD).max(axis=1) / largest).astype(np.float16)
            self.scales_PGKS[page, :, kind, place] = scale_G
            step_G = np.where(scale_G > 0, scale_G.astype(np.float64), np.inf)
            at[:] = np.clip(np.rint(x_GD / step_G[:, None]), -largest, largest)


def unpack(pages: Bytes, kv_heads: int, head_dim: int, bits: int) -> Codes:
    """What is in `pages` (pages, page_bytes).

    First the keys of all heads, [head_dim / 4][16 tokens][4 values] a head, then the values, [4][head_dim][4 tokens] a
    head, then 16 scales of keys and 16 of values a head. Codes have 2 ** (bits - 1) added. Of 4 bits, a byte of 64 that
    follow each other holds in its lower half the code for its place and in its upper the one 64 places on.
    """
    num_pages, end = len(pages), kv_heads * PAGE_TOKENS * head_dim * bits // 8
    keys = _halves(pages[:, :end].reshape(num_pages, kv_heads, -1, PAGE_TOKENS, 4), bits, axis=3)
    values = _halves(pages[:, end : 2 * end].reshape(num_pages, kv_heads, 4, -1, 16, 4), bits, axis=4)
    return Codes(
        keys_PGDS=keys.swapaxes(4, 5).reshape(num_pages, kv_heads, head_dim, PAGE_TOKENS),
        values_PGSD=np.moveaxis(values, 6, 3).reshape(num_pages, kv_heads, PAGE_TOKENS, head_dim),
        scales_PGKS=pages[:, 2 * end :].copy().view(np.float16).reshape(num_pages, kv_heads, 2, PAGE_TOKENS),
    )


def pack(codes: Codes, bits: int) -> Bytes:
    """The pages that `unpack` would read so."""
    num_pages, kv_heads = codes.keys_PGDS.shape[:2]
    runs = 8 // bits
    keys = codes.keys_PGDS.reshape(num_pages, kv_heads, -1, runs, 4, PAGE_TOKENS).swapaxes(4, 5)
    values = np.moveaxis(codes.values_PGSD.reshape(num_pages, kv_heads, 4, 4, -1, runs, 16), 3, 6)
    packed = [_joined(keys, bits, axis=3), _joined(values, bits, axis=4), codes.scales_PGKS.view(np.uint8)]
    return np.concatenate([part.reshape(num_pages, -1) for part in packed], axis=1)


def store(
    pages: Bytes, slots_T: Integers, k_TGD: Doubles | Floats, v_TGD: Doubles | Floats, number_format: KvName
) -> None:
    """Write each token's keys and values into its slot as integers; the rest stays."""
    bits = BITS[number_format]
    kv_heads, head_dim = k_TGD.shape[1:]
    codes = unpack(pages, kv_heads, head_dim, bits)
    for slot, k_GD, v_GD in zip(slots_T, k_TGD, v_TGD, strict=True):
        codes.put(int(slot), k_GD, v_GD, 2 ** (bits - 1) - 1)
    pages[:] = pack(codes, bits)


def read(pages: Bytes, kv_heads: int, head_dim: int, number_format: KvName) -> tuple[Doubles, Doubles]:
    """The keys (pages, kv_heads, head_dim, 16) and values (pages, kv_heads, 16, head_dim) in pages of F16, INT8 or
    INT4."""
    if number_format in BITS:
        codes = unpack(pages, kv_heads, head_dim, BITS[number_format])
        return codes.keys, codes.values
    keys, values = as_keys(pages, kv_heads, head_dim), as_values(pages, kv_heads, head_dim)
    return keys.astype(np.float64), values.astype(np.float64)


def _halves(packed: Bytes, bits: int, *, axis: int) -> Integers:
    codes = [(packed.astype(np.int64) >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    signed: Integers = np.stack(codes, axis=axis) - 2 ** (bits - 1)
    return signed


def _joined(codes: Integers, bits: int, *, axis: int) -> Bytes:
    shifts = np.arange(0, 8, bits).reshape(-1, *[1] * (codes.ndim - axis - 1))
    joined: Bytes = ((codes + 2 ** (bits - 1)) << shifts).sum(axis=axis).astype(np.uint8)
    return joined
