"""Weights that are larger than their memory: spans that stay, and buffers that the others stream through."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

from residency.planner.streaming import READERS, Streaming
from residency.spec.model import ModelSpec
from residency.spec.spans import Span, store_spans
from residency.store.arena import Arena
from residency.store.convert import Progress
from residency.store.direct import DirectFile
from residency.store.stream import Range, Stream

_POLL_SECONDS = 0.01


class Residents:
    """Where each span of a store is while steps run. Close it after the last step."""

    def __init__(self, model: ModelSpec, path: Path, streaming: Streaming, progress: Progress | None = None) -> None:
        """Reads what stays, and begins to read what does not. StoreError where that fails."""
        self.spans: Sequence[Span] = store_spans(model, streaming.slot_bytes)
        self.streaming = streaming
        self._number_of = _numbers(streaming)
        self._places = [0, *accumulate(span.num_bytes for span in self.spans)]
        with ExitStack() as opened:
            self._kept = Arena(self._places[-1])  # with room for every span; only those that stay take memory
            opened.callback(self._kept.close)
            self._ring = Arena(streaming.buffer_bytes)
            opened.callback(self._ring.close)
            self._source = opened.enter_context(DirectFile(path))
            self._load([span for span in range(len(self.spans)) if span not in self._number_of], progress)
            self.stream = self._cycle()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the readers and give the memory back."""
        self.stream.close()
        self._opened.close()

    def move(self, streaming: Streaming) -> None:
        """Let other spans stay, between two steps: first those that go give their memory back, then those that come are
        read. Programs of steps are to be made anew. StoreError where the disk fails; then no step can run.
        """
        self.stream.close()
        streamed, streams = set(self.streaming.streamed), set(streaming.streamed)
        for span in streams - streamed:
            self._kept.drop(self._places[span], self._places[span + 1])
        self._load(sorted(streamed - streams), None)
        self.streaming, self._number_of = streaming, _numbers(streaming)
        self.stream = self._cycle()

    @property
    def in_memory(self) -> tuple[tuple[int, int], ...]:
        """Addresses and bytes of the memory taken."""
        return (self._kept.address, self._kept.num_bytes), (self._ring.address, self._ring.num_bytes)

    @property
    def reads_directly(self) -> bool:
        """Whether reads go past the operating system's cache."""
        return self._source.is_direct

    def address_of(self, span: int, first_slot: int) -> int:
        """Where a span is in a step whose first read went to slot `first_slot`."""
        number = self._number_of.get(span)
        if number is None:
            return self._kept.address + self._places[span]
        slot = (first_slot + number) % self.streaming.slots
        return self._ring.address + slot * self.streaming.slot_bytes

    def _cycle(self) -> Stream:
        starts = range(0, self.streaming.buffer_bytes, self.streaming.slot_bytes)
        slots = [self._ring.memory[start : start + self.streaming.slot_bytes] for start in starts]
        return self._reading(self.streaming.streamed, slots)

    def _reading(self, spans: Iterable[int], slots: Sequence[memoryview]) -> Stream:
        cycle = [Range(offset=self.spans[span].offset, num_bytes=self.spans[span].num_bytes) for span in spans]
        return Stream(self._source.read, cycle, slots, readers=READERS)

    def _load(self, spans: Sequence[int], progress: Progress | None) -> None:
        """Read spans to their places: a stream with a slot for each is over when all have arrived."""
        if not spans:
            return
        slots = [self._kept.memory[self._places[span] : self._places[span + 1]] for span in spans]
        with self._reading(spans, slots) as stream:
            while (arrived := stream.num_arrived) < len(spans):
                if progress is not None:
                    progress(arrived, len(spans))
                time.sleep(_POLL_SECONDS)
            stream.check()


def _numbers(streaming: Streaming) -> dict[int, int]:
    """Which of a step's reads brings each span that streams."""
    return {span: number for number, span in enumerate(streaming.streamed)}
