"""Rotary position embedding, and keys and values into their pages."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from residency.kernels.device import DeviceStep, on_device
from residency.kernels.recorder import FloatArray, Recorder, address_of, row_bytes
from residency.spec.model import AttentionSpec


@dataclass(frozen=True, kw_only=True)
class LayerPages:
    """One layer's part of the KV cache, and where this step's tokens go and past tokens are.

    `pages` (num_pages, page_bytes): keys [kv_heads][head_dim][16 tokens], then values [kv_heads][16 tokens][head_dim],
    in `number_format`. `slots` (tokens,) int64: page * 16 + place of each token. `tables` (sequences, pages) int32:
    the page of every 16 tokens of a sequence.
    """

    pages: npt.NDArray[np.uint8]
    slots: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int32]
    number_format: Literal["F16", "F32"] = "F16"


def rotate_and_store(
    step: Recorder,
    spec: AttentionSpec,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    angles: FloatArray,
    cache: LayerPages,
    *,
    q_norm: FloatArray | None = None,
    k_norm: FloatArray | None = None,
    epsilon: float = 0.0,
) -> None:
    """Rotate q and k in place, and write the rotated k and v into the cache.

    The norms (head_dim,) come before the rotation. Shapes: q (tokens, heads * head_dim), k and v (tokens, kv_heads *
    head_dim), angles (tokens, head_dim): cosines | sines. J. Su et al.: RoFormer (2021), in the half-split form.
    """
    if isinstance(step, DeviceStep):
        on_device("rotary").rotate_and_store(
            step, spec, q, k, v, angles, cache, q_norm=q_norm, k_norm=k_norm, epsilon=epsilon
        )
        return
    assert k.strides == v.strides and spec.head_dim % 16 == 0
    step.launch(
        f"rotary.rotate_and_store_{cache.number_format}",
        q=address_of(q),
        q_stride=row_bytes(q),
        k=address_of(k),
        v=address_of(v),
        kv_stride=row_bytes(k),
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        q_norm=0 if q_norm is None else address_of(q_norm),
        k_norm=0 if k_norm is None else address_of(k_norm),
        epsilon=epsilon,
        rope=address_of(angles),
        rope_stride=row_bytes(angles),
        slots_at=address_of(cache.slots),
        pages=address_of(cache.pages),
        page_bytes=row_bytes(cache.pages),
        tokens_at=step.inputs.num_tokens,
    )
