"""Rotary position embedding, and keys and values into their pages."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.kernels.device import DeviceStep, on_device
from residency.kernels.recorder import FloatArray, Recorder, address_of, row_bytes
from residency.spec.model import AttentionSpec, RopeSpec
from residency.spec.state import AnyKvName

_OFFSET_POSITIONS = 4096  # more would fit long contexts better and short ones worse


@dataclass(frozen=True, kw_only=True)
class LayerPages:
    """One layer's part of the KV cache, and where this step's tokens go and past tokens are.

    `pages` (num_pages, page_bytes): keys [kv_heads][head_dim][16 tokens], then values [kv_heads][16 tokens][head_dim],
    in F16 or F32; for INT8 and INT4 see reference_codes. `slots` (tokens,) int64: page * 16 + place of each token.
    `tables` (sequences, pages) int32: the page of every 16 tokens of a sequence.
    """

    pages: npt.NDArray[np.uint8]
    slots: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int32]
    number_format: AnyKvName = "F16"


def key_offset(bias_X: FloatArray, rope: RopeSpec, head_dim: int, out_X: FloatArray) -> FloatArray:
    """What quantized keys are kept without: the mean of their rotated bias over the first positions, into `out_X`.

    A constant taken off all keys adds the same to all of a query's scores, which softmax does not see (J. Zhang et al.:
    SageAttention, 2024). Some of Qwen2's key biases are hundreds of times a usual value, nearly all of them in pairs
    that hardly rotate; they would set the scale of every key. On a device they were written when the model was loaded.
    """
    if not isinstance(bias_X, np.ndarray):
        return out_X
    turns = 1j * np.asarray(rope.inverse_frequencies)
    mean = rope.factor * np.expm1(_OFFSET_POSITIONS * turns) / (_OFFSET_POSITIONS * np.expm1(turns))
    low, high = np.split(bias_X[: out_X.size].reshape(-1, head_dim), 2, axis=1)
    rotated = (low + 1j * high) * mean
    out_X[:] = np.concatenate([rotated.real, rotated.imag], axis=1).ravel()
    return out_X


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
    key_offset: FloatArray | None = None,
) -> None:
    """Rotate q and k in place, and write the rotated k and v into the cache.

    The norms (head_dim,) come before the rotation. Before keys are quantized, `key_offset` (kv_heads * head_dim,) is
    taken off them, and both q and they are spread (reference_codes). Shapes: q (tokens, heads * head_dim), k and v
    (tokens, kv_heads * head_dim), angles (tokens, head_dim): cosines | sines. J. Su et al.: RoFormer (2021), in the
    half-split form.
    """
    if isinstance(step, DeviceStep):
        on_device("rotary").rotate_and_store(
            step,
            spec,
            q,
            k,
            v,
            angles,
            cache,
            q_norm=q_norm,
            k_norm=k_norm,
            epsilon=epsilon,
            key_offset=key_offset,
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
        key_offset=0 if key_offset is None else address_of(key_offset),
        slots_at=address_of(cache.slots),
        pages=address_of(cache.pages),
        page_bytes=row_bytes(cache.pages),
        tokens_at=step.inputs.num_tokens,
    )
