"""The activation arrays of a step. A step has T tokens; matrix inputs are kept as float32 and quantized to int8."""

from residency.formats.tiles import TILE_ROWS
from residency.planner.plan import PAGE_TOKENS, Buffer
from residency.spec.model import AttentionSpec, ModelSpec, MoeSpec, TensorSpec
from residency.spec.state import KV_F16, KvFormat

# Activations are packed in groups of 32 values: 32 int8 and 4 words (scale and sums), or 32 of bfloat16 for prompts.
GROUP_VALUES = 32
GROUP_BYTES = 64

# Decode splits a long context into this many parts that threads attend to side by side, whatever their number, so
# that the result does not depend on it.
ATTENTION_SPLITS = 16

# The largest logit of a row is found in this many parts, which threads share.
LIKELIEST_PARTS = 16

# What a thread's attention works in: for a prompt scores and weights of 16 tokens against 4 pages, keys and values of
# these, and of each head that shares them queries, sums and statistics. Decode needs less.
_SCORES_BYTES = 896 + 8192
_KEYS_AND_VALUES_BYTES = 512  # for each value of a head
_HEAD_BYTES = 128  # for each value of each head, and once more


def activation_buffers(
    model: ModelSpec,
    *,
    chunk_tokens: int,
    max_sequences: int,
    max_context_tokens: int,
    threads: int,
    logit_rows: int | None = None,
    kv: KvFormat = KV_F16,
    prompts_in_tiles: bool = False,
) -> tuple[Buffer, ...]:
    """All arrays that a step of at most `chunk_tokens` tokens of at most `max_sequences` sequences writes to.

    "gate" is overwritten by the gated product. "rope" holds cosines and sines, one table for each way of rotating
    that the model has (`rope_variants`). Of each part of a split context, the partials hold the weighted sum, the
    largest score and the sum of weights. `logit_rows` is how many tokens' logits a step gives, by default one of
    each sequence. `prompts_in_tiles`: prompts are multiplied in tile registers, so that "gate" and "up" hold a row
    of each sequence alone where all layers' products can be gated at once. "key_offsets" is what quantized keys are
    kept without, of each layer, in models whose keys have a bias.
    """
    attentions = [layer.grouped_attention for layer in model.layers]
    query_values = max(a.num_heads * a.head_dim for a in attentions)
    key_values = max(a.num_kv_heads * a.head_dim for a in attentions)
    heads = max(a.num_heads for a in attentions)
    head_dim = max(a.head_dim for a in attentions)
    gated = [layer.gated_matrices for layer in model.layers if layer.gated_matrices]
    intermediate = max((gate.shape[0] for gate, _, _ in gated), default=0)
    groups = len({(a.window_tokens, a.num_kv_heads * a.head_dim) for a in attentions})
    tokens, hidden, logits = chunk_tokens, model.hidden, logit_rows or max_sequences
    context_pages = -(-max_context_tokens // PAGE_TOKENS)
    offsets = Buffer(name="key_offsets", shape=(len(attentions), key_values), dtype="float32")
    takes_offsets = kv.is_quantized and any(a.bias for a in attentions)
    gated_tokens = max_sequences if prompts_in_tiles and all(_is_gated_at_once(*each) for each in gated) else tokens
    widest = max((tensor.shape[1] for tensor in model.tensors if _order(tensor) is not None), default=0)
    ordered = (Buffer(name="ordered_q8", shape=(tokens, quantized_bytes(widest)), dtype="uint8"),) if widest else ()
    return (
        Buffer(name="counts", shape=(8,), dtype="int64"),
        Buffer(name="token_ids", shape=(tokens,), dtype="int64"),
        Buffer(name="positions", shape=(tokens,), dtype="int64"),
        Buffer(name="sequences", shape=(tokens,), dtype="int64"),
        Buffer(name="items", shape=(tokens, 2), dtype="int64"),
        Buffer(name="splits", shape=(tokens,), dtype="int64"),
        Buffer(name="logit_rows", shape=(logits,), dtype="int64"),
        Buffer(name="slots", shape=(groups, tokens), dtype="int64"),
        Buffer(name="block_tables", shape=(groups, max_sequences, context_pages), dtype="int32"),
        Buffer(name="rope", shape=(rope_variants(model), tokens, head_dim), dtype="float32"),
        *((offsets,) if takes_offsets else ()),
        Buffer(name="hidden", shape=(tokens, in_tiles(hidden)), dtype="float32"),
        Buffer(name="normed", shape=(tokens, in_tiles(hidden)), dtype="float32"),
        Buffer(name="normed_q8", shape=(tokens, quantized_bytes(hidden)), dtype="uint8"),
        Buffer(name="q", shape=(tokens, in_tiles(query_values)), dtype="float32"),
        Buffer(name="k", shape=(tokens, in_tiles(key_values)), dtype="float32"),
        Buffer(name="v", shape=(tokens, in_tiles(key_values)), dtype="float32"),
        Buffer(name="attended", shape=(tokens, in_tiles(query_values)), dtype="float32"),
        Buffer(name="attended_q8", shape=(tokens, quantized_bytes(query_values)), dtype="uint8"),
        Buffer(
            name="attention_partials", shape=(max_sequences * heads * ATTENTION_SPLITS, head_dim + 16), dtype="float32"
        ),
        Buffer(name="attention_scratch", shape=(threads, max(map(_scratch_bytes, attentions))), dtype="uint8"),
        Buffer(name="gate", shape=(gated_tokens, in_tiles(intermediate)), dtype="float32"),
        Buffer(name="up", shape=(gated_tokens, in_tiles(intermediate)), dtype="float32"),
        Buffer(name="gated_q8", shape=(tokens, quantized_bytes(intermediate)), dtype="uint8"),
        Buffer(name="logits", shape=(logits, in_tiles(model.vocabulary)), dtype="float32"),
        Buffer(name="largest_logits", shape=(logits, LIKELIEST_PARTS), dtype="float32"),
        Buffer(name="likeliest_tokens", shape=(logits, LIKELIEST_PARTS), dtype="int32"),
        *ordered,
        *_mixture_buffers(model, tokens),
    )


def _mixture_buffers(model: ModelSpec, tokens: int) -> tuple[Buffer, ...]:
    """What a mixture of experts writes: routes, and a row for each token and each expert that it is sent to.

    "expert_runs" has a run's four words for each expert, and one more; eight words are before them.
    """
    layers = [layer for layer in model.layers if isinstance(layer.mlp, MoeSpec)]
    specs = [layer.mlp for layer in layers if isinstance(layer.mlp, MoeSpec)]
    if not specs:
        return ()
    experts, per_token = max(s.num_experts for s in specs), max(s.experts_per_token for s in specs)
    intermediate, rows = max(s.intermediate for s in specs), tokens * per_token
    found = [
        Buffer(name="router", shape=(tokens, in_tiles(experts)), dtype="float32"),
        Buffer(name="expert_choices", shape=(tokens, per_token), dtype="int32"),
        Buffer(name="expert_weights", shape=(tokens, per_token), dtype="float32"),
        Buffer(name="expert_counts", shape=(experts, 2), dtype="int64"),
        Buffer(name="expert_runs", shape=(8 + 4 * (experts + 1),), dtype="int64"),
        Buffer(name="expert_rows", shape=(rows,), dtype="int32"),
        Buffer(name="expert_places", shape=(tokens, per_token), dtype="int32"),
        Buffer(name="experts_used", shape=(len(model.layers), experts), dtype="int32"),
        Buffer(name="expert_out", shape=(rows, in_tiles(model.hidden)), dtype="float32"),
    ]
    formats = [layer.experts[0].format for layer in layers]
    if any(not each.is_float for each in formats):
        found.append(Buffer(name="expert_in_q8", shape=(rows, quantized_bytes(model.hidden)), dtype="uint8"))
        found.append(Buffer(name="expert_gated_q8", shape=(rows, quantized_bytes(intermediate)), dtype="uint8"))
    if any(each.is_float for each in formats):
        found.append(Buffer(name="expert_in", shape=(rows, in_tiles(model.hidden)), dtype="float32"))
        found.append(Buffer(name="expert_gated", shape=(rows, in_tiles(intermediate)), dtype="float32"))
    if any(s.shared_intermediate for s in specs):
        found.append(Buffer(name="shared_out", shape=(tokens, in_tiles(model.hidden)), dtype="float32"))
        found.append(Buffer(name="shared_gate", shape=(tokens, TILE_ROWS), dtype="float32"))
    return tuple(found)


def _is_gated_at_once(gate: TensorSpec, up: TensorSpec, down: TensorSpec) -> bool:
    """Whether a prompt's two products and their gate are one kernel in tile registers."""
    in_blocks = not gate.format.is_float and not down.format.is_float
    is_in_order = _order(gate) == _order(up) and _order(down) is None
    return in_blocks and is_in_order and gate.format == up.format and gate.shape[0] % GROUP_VALUES == 0


def _order(matrix: TensorSpec) -> str | None:
    """The tensor with the order of a matrix' columns, where it has one of its own."""
    return None if matrix.packed is None else matrix.packed.order


def _scratch_bytes(attention: AttentionSpec) -> int:
    heads_bytes = _HEAD_BYTES * (attention.head_dim + 1) * (attention.num_heads // attention.num_kv_heads)
    return _SCORES_BYTES + _KEYS_AND_VALUES_BYTES * attention.head_dim + heads_bytes


def in_tiles(columns: int) -> int:
    """Columns of a product's rows: matrices are stored, and write, whole tiles of 16 rows."""
    return -(-columns // TILE_ROWS) * TILE_ROWS


def quantized_bytes(columns: int) -> int:
    """Bytes of one row of so many values once packed; the last group is filled up with zeros."""
    return -(-columns // GROUP_VALUES) * GROUP_BYTES


def rope_variants(model: ModelSpec) -> int:
    """How many different rotations the model's layers use."""
    return len({layer.grouped_attention.rope for layer in model.layers})
