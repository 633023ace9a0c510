"""Where each tensor lies in the on-disk store, and what one token reads of it."""

from dataclasses import dataclass
from functools import cached_property

from residency.formats import F32, Format
from residency.formats.tiles import TILE_ROWS
from residency.spec.model import ModelSpec, TensorSpec

TENSOR_ALIGNMENT = 64  # a cache line
GROUP_ALIGNMENT = 4096  # a page: direct reads of a layer start and end on one


@dataclass(frozen=True, kw_only=True)
class StoreEntry:
    """One tensor in the store."""

    name: str
    offset: int  # bytes from the start of the tensors
    num_bytes: int  # padding to whole tiles included


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """The store's tensors in the model's order; an untied embedding, which is never resident, lies last."""

    entries: tuple[StoreEntry, ...]
    total_bytes: int
    resident_bytes: int  # of all but an untied embedding, gaps included

    @cached_property
    def by_name(self) -> dict[str, StoreEntry]:
        """The entries by tensor name."""
        return {entry.name: entry for entry in self.entries}


def store_layout(model: ModelSpec) -> StoreLayout:
    """The layout of `model`: the embedding (if tied), each layer, the final norm and head; each begins on a page."""
    groups: list[tuple[TensorSpec, ...]] = [layer.tensors for layer in model.layers]
    groups.append((model.final_norm,) if model.head is None else (model.final_norm, model.head))
    if model.tied:
        groups.insert(0, (model.embedding,))
    placed: dict[str, StoreEntry] = {}
    end = 0
    for group in groups:
        end = _aligned(end, GROUP_ALIGNMENT)
        for tensor in group:
            offset = _aligned(end, TENSOR_ALIGNMENT)
            placed[tensor.name] = StoreEntry(name=tensor.name, offset=offset, num_bytes=stored_bytes(tensor))
            end = offset + placed[tensor.name].num_bytes
    resident_bytes = end = _aligned(end, GROUP_ALIGNMENT)
    if not model.tied:
        name, num_bytes = model.embedding.name, model.embedding.num_bytes
        placed[name] = StoreEntry(name=name, offset=end, num_bytes=num_bytes)
        end = _aligned(end + num_bytes, GROUP_ALIGNMENT)
    entries = tuple(placed[tensor.name] for tensor in model.tensors)
    return StoreLayout(entries=entries, total_bytes=end, resident_bytes=resident_bytes)


def stored_bytes(tensor: TensorSpec) -> int:
    """Bytes of a resident tensor in the store: matrices in whole tiles, vectors as float32."""
    if len(tensor.shape) == 2:
        return tiled_bytes(tensor.format, *tensor.shape)
    return F32.bytes_of(tensor.shape)


def tiled_bytes(number_format: Format, rows: int, columns: int) -> int:
    """Bytes of a matrix whose rows are padded to whole tiles."""
    return number_format.bytes_of((-(-rows // TILE_ROWS) * TILE_ROWS, columns))


def read_bytes_per_token(model: ModelSpec) -> int:
    """Weights that decoding one token reads: everything resident, and one row of an untied embedding.

    A tied embedding counts once, as the head.
    """
    resident = sum(stored_bytes(t) for t in model.tensors if model.tied or t is not model.embedding)
    return resident if model.tied else resident + model.embedding.format.bytes_of(model.embedding.shape[1:])


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
