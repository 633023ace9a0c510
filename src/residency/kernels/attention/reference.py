"""Attention over a paged KV cache, defined in plain NumPy; never optimised.

Shape suffixes: T tokens of the step, H heads, G key-value heads, D values of a head, S tokens of a sequence, N parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.kernels.rotary.reference import PAGE_TOKENS
from residency.kernels.rotary.reference_codes import read
from residency.spec.state import KvName

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def attention(
    q_THD: Floats,
    pages: npt.NDArray[np.uint8],
    tables: npt.NDArray[np.int32],
    sequences_T: npt.NDArray[np.int64],
    positions_T: npt.NDArray[np.int64],
    *,
    scale: float,
    kv_heads: int,
    window_tokens: int | None = None,
    number_format: KvName = "F16",
) -> Doubles:
    """softmax(scale q · kᵀ) v of each token and head over its sequence's tokens, (tokens, heads, head_dim).

    A token at position p sees the positions up to p, with a window only the last `window_tokens` of them; heads share
    key-value heads in runs. pages (pages, page_bytes) of `number_format` and tables (sequences, pages) are those of
    kernels.rotary.
    (A. Vaswani et al.: Attention is all you need, 2017; J. Ainslie et al.: GQA, 2023.)
    """
    num_heads, head_dim = q_THD.shape[1:]
    out_THD = np.zeros(q_THD.shape)
    keys_PGDS, values_PGSD = read(pages, kv_heads, head_dim, number_format)
    for token, (sequence, position) in enumerate(zip(sequences_T, positions_T, strict=True)):
        first = 0 if window_tokens is None else max(0, int(position) - window_tokens + 1)
        seen = np.arange(first, position + 1)
        held = tables[sequence, seen // PAGE_TOKENS]
        k_SGD = keys_PGDS[held, :, :, seen % PAGE_TOKENS]
        v_SGD = values_PGSD[held, :, seen % PAGE_TOKENS]
        k_SHD, v_SHD = (np.repeat(x, num_heads // kv_heads, axis=1) for x in (k_SGD, v_SGD))
        scores_HS = scale * np.einsum("hd,shd->hs", q_THD[token].astype(np.float64), k_SHD)
        out_THD[token] = combine([attend_part(scores_HS, v_SHD)])
    return out_THD


@dataclass(frozen=True, kw_only=True)
class Part:
    """Attention over some of the keys, not divided yet, so that it can be combined with that over the others."""

    weighted_HD: Doubles  # sum of exp(score - maximum) * value
    maximum_H: Doubles
    total_H: Doubles  # sum of exp(score - maximum)


def attend_part(scores_HS: Doubles, v_SHD: Doubles) -> Part:
    """Attention over the keys with these scores (heads, keys), at least one, and their values."""
    maximum_H = scores_HS.max(axis=1)
    weights_HS = np.exp(scores_HS - maximum_H[:, None])
    weighted_HD = np.einsum("hs,shd->hd", weights_HS, v_SHD)
    return Part(weighted_HD=weighted_HD, maximum_H=maximum_H, total_H=weights_HS.sum(axis=1))


def combine(parts_N: Sequence[Part]) -> Doubles:
    """Attention over the keys of all parts, (heads, head_dim) (T. Dao et al.: Flash-Decoding, 2023)."""
    largest_H = np.max([part.maximum_H for part in parts_N], axis=0)
    weighted_HD = np.zeros_like(parts_N[0].weighted_HD)
    total_H = np.zeros_like(largest_H)
    for part in parts_N:
        factor_H = np.exp(part.maximum_H - largest_H)
        weighted_HD += factor_H[:, None] * part.weighted_HD
        total_H += factor_H * part.total_H
    merged_HD: Doubles = weighted_HD / total_H[:, None]
    return merged_HD
