"""What changes from step to step: written by Python before a step, read by its kernels."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.kernels.attention import PROMPT_TOKENS
from residency.kernels.positions import angles, most_splits, slots, splits
from residency.kernels.recorder import Inputs, Recorder, address_of
from residency.ledger import KvPages, SequencePages
from residency.scheduler import Batch, BatchEntry
from residency.spec.model import ModelSpec, RopeSpec

NUM_TOKENS, NUM_LOGITS, NUM_ITEMS, MOST_SPLITS, NUM_INT8 = range(5)


class StepInputs:
    """Views of the input buffers, and how a batch is written into them."""

    def __init__(self, spec: ModelSpec, buffers: Mapping[str, npt.NDArray[Any]], page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._counts = buffers["counts"]
        self._positions = buffers["positions"]
        self._sequences = buffers["sequences"]
        self._logit_rows = buffers["logit_rows"]
        self._items = buffers["items"]
        self._splits = buffers["splits"]
        self.slots = buffers["slots"]  # (groups, tokens)
        self.tables = buffers["block_tables"]  # (groups, sequences, pages)
        self.angles: dict[RopeSpec, npt.NDArray[np.float32]] = {}
        for rope in dict.fromkeys(layer.grouped_attention.rope for layer in spec.layers):
            self.angles[rope] = buffers["rope"][len(self.angles)]
        self._frequencies = {rope: np.asarray(rope.inverse_frequencies) for rope in self.angles}
        self._numbers = np.arange(len(self._positions))
        self._written: list[tuple[Sequence[SequencePages], int]] = [((), 0)] * len(self.tables[0])  # in tables' rows
        self._num_single = 0  # entries of one token that the last step began with
        self._most_sampled = len(self.tables[0])  # of whose contexts parts can be kept

    @property
    def addresses(self) -> Inputs:
        """Where kernels find them."""
        counts = address_of(self._counts)
        return Inputs(
            num_tokens=counts + 8 * NUM_TOKENS,
            num_int8=counts + 8 * NUM_INT8,
            num_logits=counts + 8 * NUM_LOGITS,
            num_items=counts + 8 * NUM_ITEMS,
            most_splits=counts + 8 * MOST_SPLITS,
            splits=address_of(self._splits),
            logit_rows=address_of(self._logit_rows),
            items=address_of(self._items),
            positions=address_of(self._positions),
            sequences=address_of(self._sequences),
        )

    def record(self, step: Recorder) -> None:
        """What kernels find out themselves, before all else in a step: what follows from positions."""
        splits(step, self._page_tokens)
        for tables, out in zip(self.tables, self.slots, strict=True):
            slots(step, tables, self._page_tokens, out)
        for rope, out in self.angles.items():
            angles(step, self._frequencies[rope], rope.factor, out)

    def write(self, batch: Batch, pages: KvPages, *, every_logit: bool = False) -> Sequence[int]:
        """Write a batch; the tokens whose logits the step gives, by their place in it. `every_logit` asks for all."""
        tables = pages.sequences
        for index, entry in enumerate(batch.entries):
            self._write_tables(index, tables[entry.request_id])
        single = list(takewhile(_is_single, batch.entries))  # as in decode: all at once
        first = num_items = len(single)
        self._positions[:first] = [entry.start_token for entry in single]
        if first > self._num_single:
            self._sequences[:first] = self._items[:first, 0] = self._numbers[:first]
            self._items[:first, 1] = 1
        self._num_single = first
        rows = [index for index, entry in enumerate(single) if every_logit or entry.needs_logits]
        for index, entry in enumerate(batch.entries[first:], first):
            last = first + entry.num_tokens
            self._positions[first:last] = np.arange(entry.start_token, entry.start_token + entry.num_tokens)
            self._sequences[first:last] = index
            item_tokens = PROMPT_TOKENS if entry.of_prompt else 1
            for start in range(first, last, item_tokens):
                self._items[num_items] = start, min(item_tokens, last - start)
                num_items += 1
            rows += range(first, last) if every_logit else range(last - 1, last) if entry.needs_logits else ()
            first = last
        self.write_logit_rows(rows)
        sampled = [entry for entry in batch.entries if not entry.of_prompt]
        num_int8 = sum([entry.num_tokens for entry in sampled])
        if num_int8 > self._most_sampled:
            raise ValueError(f"a step has room for {self._most_sampled} sampled tokens, not for {num_int8}")
        last_position = max([entry.start_token + entry.num_tokens - 1 for entry in sampled], default=0)
        parts = most_splits(last_position, self._page_tokens)
        self._counts[: NUM_INT8 + 1] = first, len(rows), num_items, parts, num_int8
        return rows

    def write_logit_rows(self, rows: Sequence[int]) -> None:
        """Ask for the logits of these of the step's tokens."""
        self._logit_rows[: len(rows)] = rows
        self._counts[NUM_LOGITS] = len(rows)

    def _write_tables(self, index: int, sequences: Sequence[SequencePages]) -> None:
        """A sequence's tables in the row `index`, where something else or an earlier state of them stands there."""
        version = sum([sequence.version for sequence in sequences])
        before, version_before = self._written[index]
        if sequences is before and version == version_before:
            return
        self._written[index] = sequences, version
        for group, sequence in enumerate(sequences):
            held = sequence.pages
            self.tables[group, index, sequence.first_page : sequence.first_page + len(held)] = held


def _is_single(entry: BatchEntry) -> bool:
    return entry.num_tokens == 1
