"""Rotary position embedding and the pages of the KV cache, defined in plain NumPy; never optimised.

Shape suffixes: T tokens, H heads, G key-value heads, D values of a head, P pages, S tokens of a page (16).
"""

import numpy as np
import numpy.typing as npt

from residency.kernels.norm.reference import rms_norm

PAGE_TOKENS = 16

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def rotate(x_THD: Floats, angles_TD: Floats, *, norm_D: Floats | None = None, epsilon: float = 0.0) -> Doubles:
    """Each head of x, normed first where there is a norm, with its first half as one axis and its second as the other.

    angles (tokens, head_dim): cosines, then sines (J. Su et al.: RoFormer, 2021, in the half-split form).
    """
    heads_THD = x_THD.astype(np.float64) if norm_D is None else rms_norm(x_THD, norm_D, epsilon)
    cos, sin = np.split(angles_TD[:, None, :].astype(np.float64), 2, axis=-1)
    first, second = np.split(heads_THD, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def store(
    keys_PGDS: npt.NDArray[np.float16],
    values_PGSD: npt.NDArray[np.float16],
    slots_T: npt.NDArray[np.int64],
    k_TGD: Doubles | Floats,
    v_TGD: Doubles | Floats,
) -> None:
    """Write each token's keys and values into its slot (page * 16 + place), rounded to float16; the rest stays."""
    for slot, k_GD, v_GD in zip(slots_T, k_TGD, v_TGD, strict=True):
        page, place = divmod(int(slot), PAGE_TOKENS)
        keys_PGDS[page, :, :, place] = k_GD
        values_PGSD[page, :, place] = v_GD


def as_keys(pages: npt.NDArray[np.uint8], kv_heads: int, head_dim: int) -> npt.NDArray[np.float16]:
    """The keys in `pages` (pages, page_bytes): (pages, kv_heads, head_dim, 16); a view."""
    return _halves(pages)[:, 0].reshape(len(pages), kv_heads, head_dim, PAGE_TOKENS)


def as_values(pages: npt.NDArray[np.uint8], kv_heads: int, head_dim: int) -> npt.NDArray[np.float16]:
    """The values in `pages` (pages, page_bytes): (pages, kv_heads, 16, head_dim); a view."""
    return _halves(pages)[:, 1].reshape(len(pages), kv_heads, PAGE_TOKENS, head_dim)


def _halves(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    return pages.view(np.float16).reshape(len(pages), 2, -1)
