"""What changes from step to step: written by Python before a step, read by its kernels."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.kernels.attention import MAX_SPLITS, PROMPT_TOKENS
from residency.kernels.recorder import Inputs, address_of
from residency.ledger import KvPages, SequencePages
from residency.scheduler import Batch
from residency.spec.model import ModelSpec, RopeSpec

NUM_TOKENS, NUM_LOGITS, NUM_ITEMS, MOST_SPLITS, NUM_INT8 = range(5)
_PAGES_PER_SPLIT = 8  # fewer pages are not worth another thread's start


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
        self._written: dict[tuple[int, int], tuple[SequencePages, int]] = {}  # by group and row of the tables
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

    def write(self, batch: Batch, pages: KvPages, *, every_logit: bool = False) -> Sequence[int]:
        """Write a batch; the tokens whose logits the step gives, by their place in it. `every_logit` asks for all."""
        tables = pages.sequences
        single = list(takewhile(lambda entry: entry.num_tokens == 1, batch.entries))  # as in decode: all at once
        first = num_items = len(single)
        self._positions[:first] = [entry.start_token for entry in single]
        self._sequences[:first] = self._items[:first, 0] = self._numbers[:first]
        self._items[:first, 1] = 1
        self._write_slots([tables[entry.request_id] for entry in single])
        rows = [index for index, entry in enumerate(single) if every_logit or entry.needs_logits]
        for index, entry in enumerate(batch.entries[first:], first):
            last = first + entry.num_tokens
            self._positions[first:last] = np.arange(entry.start_token, entry.start_token + entry.num_tokens)
            self._sequences[first:last] = index
            self._write_pages(index, first, last, tables[entry.request_id])
            item_tokens = PROMPT_TOKENS if entry.of_prompt else 1
            for start in range(first, last, item_tokens):
                self._items[num_items] = start, min(item_tokens, last - start)
                num_items += 1
            rows += range(first, last) if every_logit else range(last - 1, last) if entry.needs_logits else ()
            first = last
        self.write_logit_rows(rows)
        self._write_angles(first)
        num_int8 = sum(entry.num_tokens for entry in batch.entries if not entry.of_prompt)
        if num_int8 > self._most_sampled:
            raise ValueError(f"a step has room for {self._most_sampled} sampled tokens, not for {num_int8}")
        most_splits = self._write_splits(first, num_int8)
        self._counts[: NUM_INT8 + 1] = first, len(rows), num_items, most_splits, num_int8
        return rows

    def write_logit_rows(self, rows: Sequence[int]) -> None:
        """Ask for the logits of these of the step's tokens."""
        self._logit_rows[: len(rows)] = rows
        self._counts[NUM_LOGITS] = len(rows)

    def _write_slots(self, tables: Sequence[Sequence[SequencePages]]) -> None:
        """Where the first tokens, each the only one of its sequence, are written and what they see."""
        num_tokens = len(tables)
        pages, offsets = np.divmod(self._positions[:num_tokens], self._page_tokens)
        for group, slots in enumerate(self.slots):
            for index, sequences in enumerate(tables):
                self._write_table(group, index, sequences[group])
            held = self.tables[group, self._numbers[:num_tokens], pages].astype(np.int64)
            slots[:num_tokens] = held * self._page_tokens + offsets

    def _write_pages(self, index: int, first: int, last: int, sequences: Sequence[SequencePages]) -> None:
        positions = self._positions[first:last]
        for group, sequence in enumerate(sequences):
            self._write_table(group, index, sequence)
            slots = self.tables[group, index][positions // self._page_tokens].astype(np.int64) * self._page_tokens
            self.slots[group, first:last] = slots + positions % self._page_tokens

    def _write_table(self, group: int, index: int, sequence: SequencePages) -> None:
        """A sequence's table in the row `index`, if something else or an earlier state of it stands there."""
        state = sequence, sequence.version
        if self._written.get((group, index)) != state:
            held = sequence.pages
            self.tables[group, index, sequence.first_page : sequence.first_page + len(held)] = held
            self._written[group, index] = state

    def _write_angles(self, num_tokens: int) -> None:
        for rope, angles in self.angles.items():
            half = len(rope.inverse_frequencies)
            phases = np.multiply.outer(self._positions[:num_tokens], self._frequencies[rope])
            np.multiply(np.cos(phases), rope.factor, out=angles[:num_tokens, :half], casting="same_kind")
            np.multiply(np.sin(phases), rope.factor, out=angles[:num_tokens, half : 2 * half], casting="same_kind")

    def _write_splits(self, num_tokens: int, num_sampled: int) -> int:
        """Parts of each token's context, and the most of any: as many as it has pages enough for, 1 in prompts.

        Parts are summed in another order than the whole, so their number must not depend on who shares the step.
        """
        pages = self._positions[:num_sampled] // self._page_tokens + 1
        splits = self._splits[:num_tokens]
        splits[:num_sampled] = np.minimum(np.maximum(pages // _PAGES_PER_SPLIT, 1), MAX_SPLITS)
        splits[num_sampled:] = 1
        return int(splits.max())
