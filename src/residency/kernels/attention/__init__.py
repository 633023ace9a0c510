"""Attention over a paged KV cache."""

from residency.kernels.device import DeviceStep, on_device
from residency.kernels.recorder import FloatArray, Recorder, Rows, address_of, row_bytes
from residency.kernels.rotary import LayerPages
from residency.spec.model import AttentionSpec

PROMPT_TOKENS = 16  # of an item of a prompt
_NO_WINDOW = 1 << 40


def scratch_bytes(head_dim: int, group: int) -> int:
    """Bytes that each thread works in, for heads of which `group` share keys and values: see attention/cpu_tiles.py,
    which needs more than attention/cpu.py.
    """
    return 896 + 8192 + 512 * head_dim + 128 * (head_dim + 1) * group


def partial_bytes(head_dim: int) -> int:
    """Bytes of one part of one head: weighted values, maximum and sum."""
    return 4 * head_dim + 64


def attention(step: Recorder, spec: AttentionSpec, q: FloatArray, cache: LayerPages) -> Rows:
    """softmax(scale q kᵀ) v for each token and head, over all earlier tokens or the window's, into "attended".

    q (tokens, heads * head_dim), rotated. Items (runs of tokens of one sequence), positions and numbers of splits are
    the step's inputs.
    """
    if isinstance(step, DeviceStep):
        attended: Rows = on_device("attention").attention(step, spec, q, cache)
        return attended
    assert spec.head_dim % 16 == 0 and spec.num_heads * spec.head_dim % 32 == 0
    out, q8 = step.buffers["attended"], step.buffers["attended_q8"]
    partials, scratch = step.buffers["attention_partials"], step.buffers["attention_scratch"]
    step.launch(
        f"attention.attend_{cache.number_format}",
        q=address_of(q),
        q_stride=row_bytes(q),
        scale=spec.scale,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        pages=address_of(cache.pages),
        page_bytes=row_bytes(cache.pages),
        tables=address_of(cache.tables),
        table_stride=row_bytes(cache.tables),
        items_at=step.inputs.items,
        num_items_at=step.inputs.num_items,
        positions_at=step.inputs.positions,
        sequences_at=step.inputs.sequences,
        window=_NO_WINDOW if spec.window_tokens is None else spec.window_tokens,
        splits_at=step.inputs.splits,
        most_splits_at=step.inputs.most_splits,
        int8_at=step.inputs.num_int8,
        out=address_of(out),
        out_stride=row_bytes(out),
        partials=address_of(partials),
        scratch=address_of(scratch),
        scratch_bytes=row_bytes(scratch),
    )
    combine = step.launch(
        "attention.combine",
        partials=address_of(partials),
        splits_at=step.inputs.splits,
        most_splits_at=step.inputs.most_splits,
        heads=spec.num_heads,
        head_dim=spec.head_dim,
        q8=0,
        q8_stride=row_bytes(q8),
        together=1,
        int8_at=step.inputs.num_int8,
        tokens_at=step.inputs.num_tokens,
        out=address_of(out),
        out_stride=row_bytes(out),
    )
    return Rows(out, q8, combine)
