"""What one rank of tensor parallelism holds (Megatron-LM, arXiv 1909.08053), by the rules of serving engines.

The vocabulary is padded to 64 rows and then shared, as vLLM does; attention heads are shared whole; key-value heads
are repeated where there are fewer than ranks; norms, routers and MLA's latent projections are held by every rank.
"""

from residency.errors import UsageError
from residency.spec.model import LatentAttentionSpec, LayerSpec, ModelSpec, TensorSpec
from residency.spec.state import KV_F16, KvFormat, StateSpec, grouped

VOCABULARY_PADDING = 64  # rows


def rank_bytes(model: ModelSpec, tensor_parallel: int = 1, *, padding_rows: int = VOCABULARY_PADDING) -> int:
    """Bytes of weights on each of `tensor_parallel` ranks. UsageError where heads or rows cannot be shared evenly."""
    check_tensor_parallel(model, tensor_parallel)
    beside = sum(rank_tensor_bytes(each, tensor_parallel, padding_rows=padding_rows) for each in model.beside_layers)
    return beside + sum(count * layer_rank_bytes(layer, tensor_parallel) for layer, count in model.alike)


def layer_rank_bytes(layer: LayerSpec, tensor_parallel: int = 1) -> int:
    """Bytes of one layer's weights on each rank."""
    return sum(rank_tensor_bytes(tensor, tensor_parallel, kv_heads_of(layer)) for tensor in layer.tensors)


def rank_tensor_bytes(
    tensor: TensorSpec, tensor_parallel: int, kv_heads: int | None = None, *, padding_rows: int = VOCABULARY_PADDING
) -> int:
    """Bytes of one tensor on each rank; `kv_heads` says among how many heads a tensor split by them is shared, and
    `padding_rows` of which number of rows the vocabulary is made a multiple."""
    if tensor.split == "replicated":
        return tensor.num_bytes
    if tensor.split == "vocabulary":
        rows = -(-tensor.shape[0] // padding_rows) * padding_rows
        return -(-tensor.format.bytes_of((rows, *tensor.shape[1:])) // tensor_parallel)
    parts = min(tensor_parallel, kv_heads) if tensor.split == "kv_heads" and kv_heads else tensor_parallel
    return -(-tensor.num_bytes // parts)


def rank_states(model: ModelSpec, kv: KvFormat = KV_F16, tensor_parallel: int = 1) -> tuple[StateSpec, ...]:
    """What each rank remembers of one sequence: its key-value heads, at least one; a latent vector in full."""
    check_tensor_parallel(model, tensor_parallel)
    return grouped(
        _rank_state(state, kv_heads_of(layer), tensor_parallel) for layer in model.layers for state in layer.states(kv)
    )


def check_tensor_parallel(model: ModelSpec, tensor_parallel: int) -> None:
    """UsageError if the model's heads cannot be shared by `tensor_parallel` ranks."""
    if tensor_parallel < 1:
        raise UsageError(f"{tensor_parallel} ranks of tensor parallelism cannot be; give at least 1.")
    for layer, _ in model.alike:
        if layer.attention is None:
            continue
        heads, kv_heads = layer.attention.num_heads, kv_heads_of(layer)
        if heads % tensor_parallel:
            raise UsageError(
                f"{model.name} has {heads} attention heads, which {tensor_parallel} ranks cannot share evenly; "
                f"give a divisor of {heads}."
            )
        if kv_heads and max(kv_heads, tensor_parallel) % min(kv_heads, tensor_parallel):
            raise UsageError(
                f"{model.name} has {kv_heads} key-value heads, which {tensor_parallel} ranks can neither share nor "
                f"repeat evenly; give a divisor or a multiple of {kv_heads}."
            )


def kv_heads_of(layer: LayerSpec) -> int | None:
    """How many key-value heads a layer has; None where it attends in another way or not at all."""
    attention = layer.attention
    return None if attention is None or isinstance(attention, LatentAttentionSpec) else attention.num_kv_heads


def _rank_state(state: StateSpec, kv_heads: int | None, tensor_parallel: int) -> StateSpec:
    if state.kind == "latent":
        return state
    parts = min(tensor_parallel, kv_heads) if kv_heads and state.bytes_per_token else tensor_parallel
    return StateSpec(
        kind=state.kind,
        bytes_per_token=state.bytes_per_token // parts,
        max_tokens=state.max_tokens,
        fixed_bytes=-(-state.fixed_bytes // parts),
        layers=state.layers,
    )
