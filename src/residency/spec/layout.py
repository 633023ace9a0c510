"""Where each tensor lies in the on-disk store, and what one token reads of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from residency.formats import F32, Format
from residency.formats.tiles import TILE_ROWS
from residency.spec.model import LayerSpec, ModelSpec, TensorSpec

TENSOR_ALIGNMENT = 64  # a cache line
GROUP_ALIGNMENT = 4096  # a page: direct reads of a layer start and end on one


@dataclass(frozen=True, kw_only=True)
class StoreEntry:
    """One tensor in the store."""

    name: str
    offset: int  # bytes from the start of the tensors; of copies, of the first
    num_bytes: int  # of one copy, padding to whole tiles included
    stride_bytes: int = 0  # from a copy to the next


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """The store's tensors: what every token reads in the model's order, experts, and an untied embedding, which is
    never resident. An expert's matrices lie together and begin on a page: one read brings them.
    """

    entries: tuple[StoreEntry, ...]  # in the model's order
    total_bytes: int
    experts_offset: int  # where the experts begin
    resident_bytes: int  # of all but an untied embedding, gaps included

    @cached_property
    def by_name(self) -> dict[str, StoreEntry]:
        """The entries by tensor name."""
        return {entry.name: entry for entry in self.entries}


def store_layout(model: ModelSpec) -> StoreLayout:
    """The layout of `model`: the embedding (if tied), each layer, the final norm and head, each layer's experts; each
    begins on a page.
    """
    groups: list[tuple[TensorSpec, ...]] = [_unrouted(layer) for layer in model.layers]
    groups.append((model.final_norm,) if model.head is None else (model.final_norm, model.head))
    if model.tied:
        groups.insert(0, (model.embedding,))
    placed: dict[str, StoreEntry] = {}
    end = 0
    for group in groups:
        end = _placed(placed, group, _aligned(end, GROUP_ALIGNMENT))
    experts_offset = end = _aligned(end, GROUP_ALIGNMENT)
    for layer in model.layers:
        end = _placed_experts(placed, layer.experts, end)
    resident_bytes = end
    if not model.tied:
        name, num_bytes = model.embedding.name, model.embedding.num_bytes
        placed[name] = StoreEntry(name=name, offset=end, num_bytes=num_bytes)
        end = _aligned(end + num_bytes, GROUP_ALIGNMENT)
    entries = tuple(placed[tensor.name] for tensor in model.tensors)
    return StoreLayout(entries=entries, total_bytes=end, experts_offset=experts_offset, resident_bytes=resident_bytes)


def stored_bytes(tensor: TensorSpec) -> int:
    """Bytes of a resident tensor in the store, all copies."""
    return tensor.copies * stored_copy_bytes(tensor)


def stored_copy_bytes(tensor: TensorSpec) -> int:
    """Bytes of one copy in the store: matrices in whole tiles, vectors as float32."""
    if len(tensor.shape) == 2:
        return tiled_bytes(tensor.format, *tensor.shape)
    return F32.bytes_of(tensor.shape)


def tiled_bytes(number_format: Format, rows: int, columns: int) -> int:
    """Bytes of a matrix whose rows are padded to whole tiles."""
    return number_format.bytes_of((-(-rows // TILE_ROWS) * TILE_ROWS, columns))


def read_bytes_per_token(model: ModelSpec) -> int:
    """Weights that decoding one token reads: everything resident, of experts those that it is sent to, and one row of
    an untied embedding. A tied embedding counts once, as the head.
    """
    experts = sum(round(layer.routed_share * sum(map(stored_bytes, layer.experts))) for layer in model.layers)
    return unrouted_read_bytes(model) + experts


def unrouted_read_bytes(model: ModelSpec) -> int:
    """Weights that a step reads wherever its tokens are sent: all but experts, and a row of an untied embedding."""
    beside = (tensor for tensor in model.beside_layers if model.tied or tensor is not model.embedding)
    row_bytes = 0 if model.tied else model.embedding.format.bytes_of(model.embedding.shape[1:])
    held = (*beside, *(tensor for layer in model.layers for tensor in _unrouted(layer)))
    return row_bytes + sum(map(stored_bytes, held))


def _unrouted(layer: LayerSpec) -> tuple[TensorSpec, ...]:
    return tuple(tensor for tensor in layer.tensors if tensor.role != "expert")


def _placed(placed: dict[str, StoreEntry], tensors: Iterable[TensorSpec], start: int) -> int:
    """Place tensors one after another; returns where the last ends."""
    end = start
    for tensor in tensors:
        offset = _aligned(end, TENSOR_ALIGNMENT)
        num_bytes = stored_copy_bytes(tensor)
        placed[tensor.name] = StoreEntry(name=tensor.name, offset=offset, num_bytes=num_bytes)
        end = offset + num_bytes
    return end


def _placed_experts(placed: dict[str, StoreEntry], tensors: Sequence[TensorSpec], start: int) -> int:
    """Place a layer's experts, each with all its matrices, one after another; returns where the last ends."""
    if not tensors:
        return start
    stride_bytes = _aligned(_placed(placed, tensors, start) - start, GROUP_ALIGNMENT)
    for tensor in tensors:
        placed[tensor.name] = replace(placed[tensor.name], stride_bytes=stride_bytes)
    return start + stride_bytes * tensors[0].copies


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
