"""What follows from the positions of a step's tokens, found in the step: angles, slots, and parts of contexts."""

from residency.kernels.recorder import Array, FloatArray, Recorder, address_of, row_bytes

MAX_SPLITS = 16  # parts of one long context
PAGES_PER_SPLIT = 16  # fewer are not worth another start: with 8, 16 sequences of 300 tokens take 1.6 times as long


def most_splits(position: int, page_tokens: int) -> int:
    """Parts of the context of a sampled token at this position, and the most of any before it.

    As many as it has pages enough for, whoever shares the step: parts are summed in another order than the whole.
    """
    return min(max((position // page_tokens + 1) // PAGES_PER_SPLIT, 1), MAX_SPLITS)


def splits(step: Recorder, page_tokens: int) -> None:
    """Write the parts of each token's context to the step's inputs: `most_splits`, and 1 for a prompt's tokens."""
    step.launch(
        "positions.splits",
        meet=False,
        positions=step.inputs.positions,
        page_tokens=page_tokens,
        pages_per_split=PAGES_PER_SPLIT,
        max_splits=MAX_SPLITS,
        out=step.inputs.splits,
        int8_at=step.inputs.num_int8,
        tokens_at=step.inputs.num_tokens,
    )


def slots(step: Recorder, tables: Array, page_tokens: int, out: Array) -> None:
    """Where in the cache each token goes, into `out` (tokens,) int64: its page times `page_tokens` and its place there.

    `tables` (sequences, pages) int32: the page of every `page_tokens` tokens of a sequence.
    """
    step.launch(
        "positions.slots",
        meet=False,
        positions=step.inputs.positions,
        sequences=step.inputs.sequences,
        tables=address_of(tables),
        table_stride=row_bytes(tables),
        page_tokens=page_tokens,
        out=address_of(out),
        tokens_at=step.inputs.num_tokens,
    )


def angles(step: Recorder, frequencies: Array, factor: float, out: FloatArray) -> None:
    """Cosines | sines of each token's position times `frequencies` (half of a head,) float64, which outlive the step,
    all times `factor`: into `out` (tokens, at least 2 * half).
    """
    assert frequencies.dtype == "float64"
    step.launch(
        "positions.angles",
        meet=False,
        positions=step.inputs.positions,
        frequencies=address_of(frequencies),
        half=len(frequencies),
        factor=factor,
        out=address_of(out),
        out_stride=row_bytes(out),
        tokens_at=step.inputs.num_tokens,
    )
