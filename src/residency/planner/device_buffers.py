"""The arrays of a step on a CUDA device, inputs first: those lie together, so that one copy brings them there."""

from residency.planner.buffers import rope_variants
from residency.planner.plan import PAGE_TOKENS, Buffer
from residency.spec.device_layout import DeviceLayout, ExpertsLayout
from residency.spec.model import ModelSpec, MoeSpec

INPUTS = ("token_ids", "positions", "logit_rows", "slots", "items", "draws", "block_tables", "expert_order")

PROMPT_TOKENS = 64  # of a prompt in one program of attention
_MOST_PARTS = 128  # that the context of a sequence is attended to in, side by side
_PROGRAMS_PER_MULTIPROCESSOR = 2

# Products of up to so many rows at once unpack the matrix in registers; of more, slab by slab into memory first.
MOST_TILED_ROWS = 256
TILE_ROWS, TILE_TOKENS = 64, 128  # of what one program multiplies; programs that share its columns leave partial sums
SLAB_BYTES = 32 * 1024**2


def most_parts(multiprocessors: int, kv_heads: int) -> int:
    """Parts that one context is cut into at most: a power of two with which a single sequence fills the device."""
    wanted = max(1, _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // kv_heads)
    return min(_MOST_PARTS, 1 << (wanted - 1).bit_length())


def splits(multiprocessors: int, *, rows: int, columns: int, tokens: int) -> int:
    """Programs that share the columns of each tile of a product, so that each multiprocessor has two."""
    tiles = -(-rows // TILE_ROWS) * -(-tokens // TILE_TOKENS)
    return max(1, min(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // tiles, columns // 512))


def device_buffers(
    model: ModelSpec,
    *,
    activation_type: str,
    multiprocessors: int,
    chunk_tokens: int,
    max_sequences: int,
    context_tokens: int,
    logit_rows: int | None = None,
    quantizes_keys: bool,
    layout: DeviceLayout,
) -> tuple[Buffer, ...]:
    """All arrays that a step of at most `chunk_tokens` tokens of at most `max_sequences` sequences uses.

    "rope" is a table of cosines and sines of every position. `quantizes_keys`: "key_offsets" is what they are kept
    without. `layout` is where the weights lie.
    """
    attentions = [layer.grouped_attention for layer in model.layers]
    query_values = max(a.num_heads * a.head_dim for a in attentions)
    key_values = max(a.num_kv_heads * a.head_dim for a in attentions)
    head_dim = max(a.head_dim for a in attentions)
    partials = max(most_parts(multiprocessors, a.num_kv_heads) * a.num_heads * (a.head_dim + 2) for a in attentions)
    gated = [layer.gated_matrices[0].shape[0] for layer in model.layers if layer.gated_matrices]
    groups = len({(a.window_tokens, a.num_kv_heads * a.head_dim) for a in attentions})
    tokens, hidden, logits = chunk_tokens, model.hidden, logit_rows or max_sequences
    pages = -(-context_tokens // PAGE_TOKENS)
    ordered = [tensor.shape[1] for tensor in model.tensors if tensor.packed is not None and tensor.packed.order]
    offsets = quantizes_keys and any(a.bias for a in attentions)

    def rows(name: str, columns: int) -> Buffer:
        return Buffer(name=name, shape=(tokens, columns), dtype=activation_type)

    return (
        Buffer(name="token_ids", shape=(tokens,), dtype="int64"),
        Buffer(name="positions", shape=(tokens,), dtype="int64"),
        Buffer(name="logit_rows", shape=(logits,), dtype="int64"),
        Buffer(name="slots", shape=(groups, tokens), dtype="int64"),
        Buffer(name="items", shape=(max_sequences + tokens // PROMPT_TOKENS, 4), dtype="int32"),
        Buffer(name="draws", shape=(logits, 5), dtype="float32"),
        Buffer(name="block_tables", shape=(groups, max_sequences, pages), dtype="int32"),
        *(() if layout.experts is None else _paging_buffers(layout.experts)),
        Buffer(name="rope", shape=(rope_variants(model), context_tokens, head_dim), dtype="float32"),
        *(rows(name, hidden) for name in ("hidden", "normed")),
        *(rows(name, width) for name, width in (("q", query_values), ("k", key_values), ("v", key_values))),
        rows("attended", query_values),
        *(rows(name, max(gated)) for name in ("gate", "up") if gated),
        *_mixture_buffers(model, tokens, activation_type),
        Buffer(name="logits", shape=(logits, model.vocabulary), dtype=activation_type),
        Buffer(name="drawn", shape=(logits,), dtype="int64"),
        *((Buffer(name="key_offsets", shape=(len(attentions), key_values), dtype="float32"),) if offsets else ()),
        Buffer(name="attention_partials", shape=(max_sequences * partials,), dtype="float32"),
        *((rows("ordered", max(ordered)),) if ordered else ()),
        *(_unpacking(model, activation_type, multiprocessors) if layout.has_planes else ()),
    )


def _mixture_buffers(model: ModelSpec, tokens: int, activation_type: str) -> tuple[Buffer, ...]:
    """What mixtures of experts write: routes, and rows for each pair of a token and one of its experts.

    "expert_blocks" has three words for each block of rows of one expert: the expert, its first row, how many.
    """
    specs = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoeSpec)]
    if not specs:
        return ()
    experts, per_token = max(s.num_experts for s in specs), max(s.experts_per_token for s in specs)
    intermediate, pairs = max(s.intermediate for s in specs), tokens * per_token
    found = [
        Buffer(name="router", shape=(tokens, experts), dtype=activation_type),
        Buffer(name="expert_choices", shape=(tokens, per_token), dtype="int32"),
        Buffer(name="expert_weights", shape=(tokens, per_token), dtype="float32"),
        Buffer(name="experts_used", shape=(len(model.layers), experts), dtype="int32"),
        Buffer(name="expert_rows", shape=(pairs,), dtype="int32"),
        Buffer(name="expert_blocks", shape=(pairs, 3), dtype="int32"),
        *(
            Buffer(name=name, shape=(pairs, intermediate), dtype=activation_type)
            for name in ("expert_gate", "expert_up")
        ),
        Buffer(name="expert_out", shape=(pairs, model.hidden), dtype=activation_type),
    ]
    if any(s.shared_intermediate for s in specs):
        found.append(Buffer(name="shared_out", shape=(tokens, model.hidden), dtype=activation_type))
        found.append(Buffer(name="shared_gate", shape=(tokens, 1), dtype=activation_type))
    return tuple(found)


def _paging_buffers(experts: ExpertsLayout) -> tuple[Buffer, ...]:
    """What a step knows of experts that are brought one by one. "expert_order", an input, has the slots that it may
    fill, in that order, and "expert_turn" which of them is next. "expert_places" has each expert's slot and
    "expert_occupants" each slot's expert, or -1. "expert_copies" is for those that are asked for, and those that are
    guessed: how many, which of their layer, then to which slots.
    """
    per_expert = (experts.num_layers, experts.per_layer)
    return (
        Buffer(name="expert_order", shape=(experts.window,), dtype="int32"),
        Buffer(name="expert_places", shape=per_expert, dtype="int32"),
        Buffer(name="expert_occupants", shape=(experts.slots,), dtype="int32"),
        Buffer(name="expert_turn", shape=(1,), dtype="int32"),
        Buffer(name="expert_copies", shape=(2, 1 + 2 * experts.per_layer), dtype="int32"),
        *(Buffer(name=name, shape=per_expert, dtype="int32") for name in ("experts_guessed", "experts_missed")),
    )


def _unpacking(model: ModelSpec, activation_type: str, multiprocessors: int) -> tuple[Buffer, ...]:
    columns = max(tensor.shape[1] for tensor in model.tensors if len(tensor.shape) == 2)
    sums = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors * TILE_ROWS * TILE_TOKENS
    return (
        Buffer(name="matmul_partials", shape=(sums,), dtype="float32"),
        Buffer(name="matmul_slab", shape=(max(columns, SLAB_BYTES // 2),), dtype=activation_type),
    )
