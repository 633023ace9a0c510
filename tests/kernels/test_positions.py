"""What follows from positions is what the definition says."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.kernels.positions import MAX_SPLITS, PAGES_PER_SPLIT, angles, most_splits, reference, slots, splits
from support.steps import Runner, Step

Ints = npt.NDArray[np.int64]
PAGE_TOKENS = 16


def positions(num_tokens: int) -> Ints:
    return np.random.default_rng(num_tokens).integers(0, 4096, num_tokens)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_tokens_go_where_their_sequence_s_table_says(run: Runner, num_tokens: int, threads: int) -> None:
    rng = np.random.default_rng(num_tokens)
    tables_SP = rng.integers(0, 1000, (5, 256)).astype(np.int32)
    sequences_T, positions_T = rng.integers(0, 5, num_tokens), positions(num_tokens)
    step = Step(num_tokens=num_tokens, positions=positions_T.tolist(), sequences=sequences_T.tolist())
    out_T = step.poisoned(num_tokens, dtype=np.int64)
    slots(step.recorder, step.given(tables_SP), PAGE_TOKENS, out_T)
    run(step, threads)
    expected_T = reference.slots(positions_T, sequences_T, tables_SP, page_tokens=PAGE_TOKENS)
    np.testing.assert_array_equal(out_T, expected_T)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_prompt", [0, 7, 40])
def test_contexts_have_a_part_for_some_pages_and_prompts_one(run: Runner, num_prompt: int, threads: int) -> None:
    positions_T = np.concatenate([[0, 127, 128, 254, 255, 256, 100_000], positions(33)])
    step = Step(num_tokens=40, num_prompt=num_prompt, positions=positions_T.tolist())
    splits(step.recorder, PAGE_TOKENS)
    run(step, threads)
    np.testing.assert_array_equal(
        step.splits,
        reference.splits(
            positions_T,
            page_tokens=PAGE_TOKENS,
            pages_per_split=PAGES_PER_SPLIT,
            max_splits=MAX_SPLITS,
            num_int8=40 - num_prompt,
        ),
    )


def test_no_context_has_more_parts_than_that_of_the_last_position() -> None:
    positions_T = np.arange(4096)
    parts_T = reference.splits(
        positions_T,
        page_tokens=PAGE_TOKENS,
        pages_per_split=PAGES_PER_SPLIT,
        max_splits=MAX_SPLITS,
        num_int8=len(positions_T),
    )
    assert [most_splits(position, PAGE_TOKENS) for position in positions_T.tolist()] == parts_T.tolist()
    assert (np.diff(parts_T) >= 0).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("half", [8, 32, 64])
def test_angles_are_turned_by_the_position(run: Runner, half: int, threads: int) -> None:
    positions_T, frequencies_H = positions(21), 10_000.0 ** -np.linspace(0, 1, half)
    step = Step(num_tokens=21, positions=positions_T.tolist())
    out_TX = step.poisoned(21, 2 * half + 16)
    angles(step.recorder, step.given(frequencies_H), 1.25, out_TX)
    run(step, threads)
    expected_TX = reference.angles(positions_T, frequencies_H, 1.25)
    np.testing.assert_allclose(out_TX[:, : 2 * half], expected_TX, rtol=1e-6, atol=1e-7)
