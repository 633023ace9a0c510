"""Weights that do not fit: which spans of the store stay, which stream through buffers, and how long a step then takes.

A step reads the spans one after another, and the next step reads them again. Of such a cycle an LRU cache smaller than
it keeps nothing, as what it drops is what comes round next; what is kept for good is a hit every time (A. Silberschatz
et al., Operating System Concepts, on page replacement; S. Jiang, X. Zhang: LIRS, SIGMETRICS 2002). Which spans stay is
then only a matter of overlap: they lie evenly among those that stream, so that the disk never waits for long.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from residency.spec.model import ModelSpec
from residency.spec.spans import least_span_bytes, store_spans

READERS = 4  # reads in flight
READING_BYTES = 128 * 1024  # of the runtime: stacks and heaps of the threads that read
LEAST_SLOTS = 2  # one is computed with while the other is read
_SLOT_CHOICES = (2, 3, 4, 6, 8)
_USUAL_SPAN_BYTES = 8 * 1024**2
_USUAL_SPANS = 32  # of a small model: finer ones fill a budget better, coarser ones are read faster
_SETTLED_CYCLES = 4


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """Where the weights of a model lie that is larger than its memory."""

    slots: int  # buffers that spans stream through, in turn
    slot_bytes: int
    span_bytes: tuple[int, ...]  # of every span, in the order of a step
    streamed: tuple[int, ...]  # the numbers of those that stream; the others stay
    disk_bytes_per_second: float  # direct reads, as the probe measured them

    @property
    def buffer_bytes(self) -> int:
        """All buffers together."""
        return self.slots * self.slot_bytes

    @property
    def streamed_bytes(self) -> int:
        """What each step reads from the disk, however many tokens it computes."""
        return sum(self.span_bytes[span] for span in self.streamed)

    @property
    def resident_bytes(self) -> int:
        """What stays in memory."""
        return sum(self.span_bytes) - self.streamed_bytes

    @property
    def memory_bytes(self) -> int:
        """All that the weights take of the memory."""
        return self.resident_bytes + self.buffer_bytes

    def to_data(self) -> dict[str, int]:
        """Where the bytes are, as JSON values."""
        return {
            "resident_bytes": self.resident_bytes,
            "streamed_bytes": self.streamed_bytes,
            "buffer_bytes": self.buffer_bytes,
            "buffers": self.slots,
        }

    @property
    def disk_seconds(self) -> float:
        """How long reading one step's bytes takes at least."""
        return self.streamed_bytes / self.disk_bytes_per_second

    def step_seconds(self, resident_seconds: float) -> float:
        """How long a step takes that would take `resident_seconds` were everything in memory, in the steady state.

        The disk reads one span after another, as soon as the oldest buffer is free; a span is computed with when it
        and all before it are there.
        """
        streams = set(self.streamed)
        rate = sum(self.span_bytes) / resident_seconds if resident_seconds else float("inf")
        now = read_until = cycle_began = 0.0
        freed = [0.0] * self.slots  # when each buffer was last done with
        number = 0
        for _ in range(_SETTLED_CYCLES):
            cycle_began = now
            for span, num_bytes in enumerate(self.span_bytes):
                if span not in streams:
                    now += num_bytes / rate
                    continue
                slot = number % self.slots
                read_until = max(read_until, freed[slot]) + num_bytes / self.disk_bytes_per_second
                now = max(now, read_until) + num_bytes / rate
                freed[slot] = now
                number += 1
        return now - cycle_began


def least_streaming(model: ModelSpec, disk_bytes_per_second: float) -> Streaming:
    """Everything streams, through as few buffers as can be."""
    usual = min(_USUAL_SPAN_BYTES, model.weight_bytes // _USUAL_SPANS)
    spans = store_spans(model, max(least_span_bytes(model), usual))
    span_bytes = tuple(span.num_bytes for span in spans)
    return Streaming(
        slots=LEAST_SLOTS,
        slot_bytes=max(span_bytes),
        span_bytes=span_bytes,
        streamed=tuple(range(len(spans))),
        disk_bytes_per_second=disk_bytes_per_second,
    )


def best_streaming(least: Streaming, *, room_bytes: int, resident_seconds: float) -> Streaming:
    """The quickest of the placements that fit into `room_bytes`, which is at least what `least` takes.

    `resident_seconds`: how long a step would take with everything in memory.
    """
    choices = [placed(replace(least, slots=slots), room_bytes) for slots in _SLOT_CHOICES]
    fitting = [each for each in choices if each.memory_bytes <= room_bytes]
    return min(fitting, key=lambda each: each.step_seconds(resident_seconds))


def placed(every: Streaming, room_bytes: int) -> Streaming:
    """As many spans as fit into `room_bytes` beside the buffers stay; all stream where none does."""
    fewer = (replace(every, streamed=each) for each in _evenly_spread(len(every.span_bytes)))
    return _filled(next((each for each in fewer if each.memory_bytes <= room_bytes), every), room_bytes)


def _filled(spread: Streaming, room_bytes: int) -> Streaming:
    """With those that still fit, the largest first: spans differ in size, and so does what is left."""
    left_bytes, kept = room_bytes - spread.memory_bytes, set()
    for span in sorted(spread.streamed[:-1], key=lambda each: spread.span_bytes[each], reverse=True):
        if spread.span_bytes[span] <= left_bytes:
            left_bytes -= spread.span_bytes[span]
            kept.add(span)
    return replace(spread, streamed=tuple(span for span in spread.streamed if span not in kept))


def streamed_seconds(resident_seconds: float, streaming: Streaming | None) -> float:
    """How long a step takes that would take `resident_seconds` were everything in memory."""
    return resident_seconds if streaming is None else streaming.step_seconds(resident_seconds)


def _evenly_spread(num_spans: int) -> Iterator[tuple[int, ...]]:
    """Ever more of the spans, each time as far from each other as can be."""
    for count in range(1, num_spans + 1):
        yield tuple((2 * index + 1) * num_spans // (2 * count) for index in range(count))
