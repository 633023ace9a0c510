"""The activation arrays of a step. A step has T tokens; matrix inputs are kept as float32 and quantized to int8."""

from residency.planner.plan import PAGE_TOKENS, Buffer
from residency.spec.model import ModelSpec

# Activations are quantized in groups of 32 values: 32 int8 and 4 words (scale, sum and padding).
GROUP_VALUES = 32
GROUP_BYTES = 48

# Decode splits a long context into this many parts that threads attend to side by side, whatever their number, so
# that the result does not depend on it.
ATTENTION_SPLITS = 16


def activation_buffers(
    model: ModelSpec, *, chunk_tokens: int, max_sequences: int, max_context_tokens: int
) -> tuple[Buffer, ...]:
    """All arrays that a step of at most `chunk_tokens` tokens of at most `max_sequences` sequences writes to.

    "gate" is overwritten by the gated product. "rope" holds cosines and sines, one table for each way of rotating
    that the model has (`rope_variants`). The attention scratch holds of each part its weighted sum, its largest
    score and its sum of weights.
    """
    attentions = [layer.attention for layer in model.layers]
    query_values = max(a.num_heads * a.head_dim for a in attentions)
    key_values = max(a.num_kv_heads * a.head_dim for a in attentions)
    heads = max(a.num_heads for a in attentions)
    head_dim = max(a.head_dim for a in attentions)
    intermediate = max(layer.mlp.intermediate for layer in model.layers)
    windows = len({a.window_tokens for a in attentions})
    tokens, hidden = chunk_tokens, model.hidden
    context_pages = -(-max_context_tokens // PAGE_TOKENS)
    return (
        Buffer(name="token_ids", shape=(tokens,), dtype="int32"),
        Buffer(name="positions", shape=(tokens,), dtype="int32"),
        Buffer(name="block_tables", shape=(windows, max_sequences, context_pages), dtype="int32"),
        Buffer(name="rope", shape=(rope_variants(model), tokens, head_dim), dtype="float32"),
        Buffer(name="hidden", shape=(tokens, hidden), dtype="float32"),
        Buffer(name="normed", shape=(tokens, hidden), dtype="float32"),
        Buffer(name="normed_q8", shape=(tokens, quantized_bytes(hidden)), dtype="uint8"),
        Buffer(name="q", shape=(tokens, query_values), dtype="float32"),
        Buffer(name="k", shape=(tokens, key_values), dtype="float32"),
        Buffer(name="v", shape=(tokens, key_values), dtype="float32"),
        Buffer(name="attended", shape=(tokens, query_values), dtype="float32"),
        Buffer(name="attended_q8", shape=(tokens, quantized_bytes(query_values)), dtype="uint8"),
        Buffer(name="attention_scratch", shape=(ATTENTION_SPLITS, max_sequences, heads, head_dim + 2), dtype="float32"),
        Buffer(name="gate", shape=(tokens, intermediate), dtype="float32"),
        Buffer(name="up", shape=(tokens, intermediate), dtype="float32"),
        Buffer(name="gated_q8", shape=(tokens, quantized_bytes(intermediate)), dtype="uint8"),
        Buffer(name="logits", shape=(max_sequences, model.vocabulary), dtype="float32"),
    )


def quantized_bytes(columns: int) -> int:
    """Bytes of one row of so many values once quantized; the last group is filled up with zeros."""
    return -(-columns // GROUP_VALUES) * GROUP_BYTES


def rope_variants(model: ModelSpec) -> int:
    """How many different rotations the model's layers use."""
    return len({layer.attention.rope for layer in model.layers})
