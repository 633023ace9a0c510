"""What changes from step to step on a device: written into pinned memory, from which one copy takes it there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.kernels.device import StepShape
from residency.ledger import KvPages
from residency.planner.device_buffers import PROMPT_TOKENS
from residency.scheduler import Batch, BatchEntry
from residency.spec.model import ModelSpec

PADDING = -1  # position and slot of a row that nothing fills


class DeviceInputs:
    """Views of the input buffers, and how a batch is written into them.

    Sequences that are given one sampled token each come first, so that decode can be recorded; whatever else there is,
    prompts and answers that are computed anew, is cut into items.
    """

    def __init__(self, buffers: Mapping[str, npt.NDArray[Any]], page_tokens: int) -> None:
        self._buffers = buffers
        self._page_tokens = page_tokens

    def write(
        self,
        batch: Batch,
        pages: KvPages,
        tokens: npt.NDArray[np.int64],
        *,
        every_logit: bool = False,
        batch_sizes: Sequence[int] = (),
    ) -> StepShape:
        """Write a batch; the shape of its step. A step of sampled tokens alone is padded to one of `batch_sizes`."""
        starts = np.cumsum([0, *(entry.num_tokens for entry in batch.entries)])
        places = sorted(range(len(batch.entries)), key=lambda place: not _is_sampled(batch.entries[place]))
        first = num_items = num_sampled = 0
        row_of: dict[int, int] = {}  # of each token of the batch, where it is in the step
        for sequence, place in enumerate(places):
            entry, start = batch.entries[place], int(starts[place])
            last = first + entry.num_tokens
            self._buffers["token_ids"][first:last] = tokens[start : start + entry.num_tokens]
            positions = np.arange(entry.start_token, entry.start_token + entry.num_tokens)
            self._buffers["positions"][first:last] = positions
            self._write_pages(sequence, entry, first, pages)
            if _is_sampled(entry):
                num_sampled += 1
            else:
                num_items = self._write_items(sequence, first, last, num_items)
            row_of.update(zip(range(start, start + entry.num_tokens), range(first, last), strict=True))
            first = last
        wanted = [
            row_of[int(starts[place]) + each]
            for place, entry in enumerate(batch.entries)
            for each in (range(entry.num_tokens) if every_logit else [entry.num_tokens - 1])
            if every_logit or entry.needs_logits
        ]
        self.write_logit_rows(wanted)
        if num_items or not any(size >= first for size in batch_sizes):
            return StepShape(tokens=first, sampled=num_sampled, logits=len(wanted), items=num_items)
        return self._padded(first, len(wanted), next(size for size in batch_sizes if size >= first))

    def write_logit_rows(self, rows: Sequence[int]) -> None:
        """Ask for the logits of these rows of the step."""
        self._buffers["logit_rows"][: len(rows)] = rows

    def _padded(self, tokens: int, wanted: int, size: int) -> StepShape:
        """A step of `size` sampled tokens, the last of which are nobody's."""
        self._buffers["token_ids"][tokens:size] = 0
        self._buffers["positions"][tokens:size] = PADDING
        self._buffers["slots"][:, tokens:size] = PADDING
        self._buffers["logit_rows"][wanted:size] = 0
        return StepShape(tokens=size, sampled=size, logits=size, items=0)

    def _write_items(self, sequence: int, first: int, last: int, num_items: int) -> int:
        for start in range(first, last, PROMPT_TOKENS):
            self._buffers["items"][num_items] = start, min(PROMPT_TOKENS, last - start), sequence, 0
            num_items += 1
        return num_items

    def _write_pages(self, sequence: int, entry: BatchEntry, first: int, pages: KvPages) -> None:
        positions = np.arange(entry.start_token, entry.start_token + entry.num_tokens)
        for group, held in enumerate(pages.sequences[entry.request_id]):
            table = self._buffers["block_tables"][group, sequence]
            table[held.first_page : held.first_page + len(held.pages)] = held.pages
            slots = table[positions // self._page_tokens].astype(np.int64) * self._page_tokens
            self._buffers["slots"][group, first : first + entry.num_tokens] = slots + positions % self._page_tokens


def rope_table(model: ModelSpec, out: npt.NDArray[np.float32]) -> None:
    """Write the cosines and sines of every position, (variants, positions, head_dim), in the order of the layers."""
    positions = np.arange(out.shape[1])
    for rope, table in zip(dict.fromkeys(layer.grouped_attention.rope for layer in model.layers), out, strict=True):
        half = len(rope.inverse_frequencies)
        phases = np.multiply.outer(positions, np.asarray(rope.inverse_frequencies))
        table[:, :half], table[:, half : 2 * half] = np.cos(phases) * rope.factor, np.sin(phases) * rope.factor


def _is_sampled(entry: BatchEntry) -> bool:
    return entry.num_tokens == 1 and not entry.of_prompt
