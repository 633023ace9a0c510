"""The store cut into spans: what is brought into memory as one, in the order in which a step reads it.

A span may hold the end of one layer and the begin of the next. Two products that one kernel makes at once are never
cut apart; the output head, which nothing but a plain product reads, may be cut between any two tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from residency.formats.tiles import TILE_ROWS
from residency.spec.layout import GROUP_ALIGNMENT, StoreLayout, store_layout
from residency.spec.model import ModelSpec, TensorSpec

_READ_AT_ONCE = (".gate_proj.weight", ".up_proj.weight")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor, or some tiles of the output head, inside a span."""

    name: str
    offset: int  # bytes from the start of the store
    num_bytes: int
    first_tile: int = 0

    @property
    def end(self) -> int:
        """Where it ends in the store."""
        return self.offset + self.num_bytes


@dataclass(frozen=True, kw_only=True)
class Span:
    """Pieces that follow each other in the store, and the whole pages of it that hold them."""

    pieces: tuple[Piece, ...]

    @property
    def offset(self) -> int:
        """Bytes from the start of the store to the first page."""
        return self.pieces[0].offset // GROUP_ALIGNMENT * GROUP_ALIGNMENT

    @property
    def num_bytes(self) -> int:
        """Bytes of the pages."""
        return -(-self.pieces[-1].end // GROUP_ALIGNMENT) * GROUP_ALIGNMENT - self.offset


def least_span_bytes(model: ModelSpec) -> int:
    """The least that every span fits into."""
    layout = store_layout(model)
    return max(Span(pieces=unit).num_bytes for unit in _units(model, layout, head_bytes=0))


def store_spans(model: ModelSpec, span_bytes: int) -> tuple[Span, ...]:
    """All that a step reads of the store, in spans of at most `span_bytes`, which are at least `least_span_bytes`."""
    layout = store_layout(model)
    spans: list[Span] = []
    for unit in _units(model, layout, head_bytes=span_bytes - GROUP_ALIGNMENT):
        if spans and spans[-1].pieces[-1].end <= unit[0].offset < spans[-1].pieces[-1].end + GROUP_ALIGNMENT:
            longer = Span(pieces=spans[-1].pieces + unit)
            if longer.num_bytes <= span_bytes:
                spans[-1] = longer
                continue
        spans.append(Span(pieces=unit))
    return tuple(spans)


def _units(model: ModelSpec, layout: StoreLayout, *, head_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """What cannot be cut, in the order of a step; the head in even parts of at most `head_bytes`, and of a tile."""
    for layer in model.layers:
        at_once: tuple[Piece, ...] = ()
        for tensor in layer.tensors:
            if tensor.role == "expert":
                continue  # brought one by one, when a token is sent to it
            entry = layout.by_name[tensor.name]
            piece = Piece(name=tensor.name, offset=entry.offset, num_bytes=entry.num_bytes)
            if tensor.name.endswith(_READ_AT_ONCE):
                at_once += (piece,)
                continue
            if at_once:
                yield at_once
                at_once = ()
            yield (piece,)
        if at_once:
            yield at_once
    norm = layout.by_name[model.final_norm.name]
    yield (Piece(name=norm.name, offset=norm.offset, num_bytes=norm.num_bytes),)
    yield from ((piece,) for piece in _head_pieces(model.head or model.embedding, layout, head_bytes))


def _head_pieces(head: TensorSpec, layout: StoreLayout, most_bytes: int) -> Iterator[Piece]:
    entry = layout.by_name[head.name]
    tiles = -(-head.shape[0] // TILE_ROWS)
    tile_bytes = entry.num_bytes // tiles
    parts = -(-tiles // max(1, most_bytes // tile_bytes))
    bounds = [tiles * part // parts for part in range(parts + 1)]
    for first, last in pairwise(bounds):
        offset, num_bytes = entry.offset + first * tile_bytes, (last - first) * tile_bytes
        yield Piece(name=head.name, offset=offset, num_bytes=num_bytes, first_tile=first)
