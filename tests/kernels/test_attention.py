"""Attention over pages, and the parts of a long context combined, are those of the definition."""

import numpy as np
import pytest

from residency.kernels.attention import reference
from support.attending import Case, Part, attended, case, decode
from support.steps import Runner, codes_of, packed_groups, words_of


def assert_as_defined(run: Runner, made: Case, threads: int, *, atol: float = 3e-6, **how: int) -> None:
    np.testing.assert_allclose(attended(run, made, threads, **how).values, made.expected_TX, rtol=0, atol=atol)


def assert_as_defined_in_tiles(
    run: Runner, made: Case, num_prompt: int, threads: int = 2, *, atol: float = 1e-4
) -> None:
    """A score's least terms are left out, 2**-17 of the sum of |q k|, which is some ten here; and so for the values."""
    assert_as_defined(run, made, threads, atol=atol, num_prompt=num_prompt, tokens_of_an_item=16)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("context", [1, 2, 15, 16, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("group", [1, 3, 6, 7, 8, 16])
def test_decoding_attends_to_all_earlier_tokens(run: Runner, group: int, context: int, threads: int) -> None:
    assert_as_defined(run, case(group, 2, 32, *decode(context)), threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 9, 40])
@pytest.mark.parametrize("group", [1, 3, 6, 7, 8, 16])
def test_a_chunk_of_a_prompt_attends_to_what_came_before_each_token(
    run: Runner, group: int, tokens: int, threads: int
) -> None:
    assert_as_defined(run, case(group, 2, 32, Part(start_token=37, num_tokens=tokens)), threads)


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 96, 112, 128, 256])
def test_heads_of_any_width_attend(run: Runner, head_dim: int) -> None:
    assert_as_defined(run, case(2, 2, head_dim, Part(start_token=30, num_tokens=6)), 2)


@pytest.mark.parametrize("splits", range(1, 17))
@pytest.mark.parametrize("head_dim", [16, 64])
def test_a_context_in_parts_gives_what_it_gives_as_a_whole(run: Runner, head_dim: int, splits: int) -> None:
    assert_as_defined(run, case(3, 2, head_dim, *decode(300)), 2, splits=splits)


@pytest.mark.parametrize("context", [1, 16, 17, 90])
def test_more_parts_than_pages_leave_some_parts_empty(run: Runner, context: int) -> None:
    assert_as_defined(run, case(3, 2, 32, *decode(context)), 2, splits=16)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window_tokens", [1, 2, 8, 16, 17, 64, 100, 1000])
def test_a_window_hides_what_is_before_it_in_decode(run: Runner, window_tokens: int, splits: int) -> None:
    assert_as_defined(run, case(3, 2, 32, *decode(150), window_tokens=window_tokens), 2, splits=splits)


@pytest.mark.parametrize("window_tokens", [1, 2, 8, 16, 17, 64, 1000])
@pytest.mark.parametrize("group", [1, 4, 16])
def test_a_window_hides_what_is_before_it_in_a_chunk(run: Runner, group: int, window_tokens: int) -> None:
    made = case(group, 2, 32, Part(start_token=50, num_tokens=40), window_tokens=window_tokens)
    assert_as_defined(run, made, 2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("splits", [1, 5])
def test_sequences_decode_side_by_side(run: Runner, splits: int, threads: int) -> None:
    assert_as_defined(run, case(3, 2, 64, *decode(1, 130, 16, 77)), threads, splits=splits)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prompt_and_decoding_sequences_share_a_step(run: Runner, threads: int) -> None:
    parts = (*decode(70), Part(start_token=0, num_tokens=21), *decode(33))
    assert_as_defined(run, case(3, 2, 64, *parts), threads)


@pytest.mark.parametrize("tokens_of_an_item", [1, 2, 5, 30])
def test_runs_of_any_length_give_the_same(run: Runner, tokens_of_an_item: int) -> None:
    made = case(3, 2, 32, Part(start_token=20, num_tokens=30), window_tokens=24)
    assert_as_defined(run, made, 2, tokens_of_an_item=tokens_of_an_item)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("group", [1, 3, 6, 7, 8, 16])
def test_a_prompt_attends_to_what_came_before_each_token(run: Runner, group: int, tokens: int) -> None:
    made = case(group, 2, 64, Part(start_token=37, num_tokens=tokens))
    assert_as_defined_in_tiles(run, made, tokens)


@pytest.mark.parametrize("start_token", [0, 1, 16, 200])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 96, 128, 256])
def test_a_prompt_s_heads_may_have_any_width(run: Runner, head_dim: int, start_token: int) -> None:
    made = case(3, 2, head_dim, Part(start_token=start_token, num_tokens=33))
    assert_as_defined_in_tiles(run, made, 33)


@pytest.mark.parametrize("window_tokens", [1, 2, 8, 16, 17, 64, 1000])
def test_a_window_hides_what_is_before_it_in_a_prompt(run: Runner, window_tokens: int) -> None:
    made = case(3, 2, 64, Part(start_token=90, num_tokens=40), window_tokens=window_tokens)
    assert_as_defined_in_tiles(run, made, 40)


@pytest.mark.parametrize("window_tokens", [24, None])
def test_a_prompt_s_token_attends_alike_in_any_chunk(run: Runner, window_tokens: int | None) -> None:
    made = case(3, 2, 64, Part(start_token=100, num_tokens=40), window_tokens=window_tokens)
    whole, parts = (attended(run, made, 2, num_prompt=40, tokens_of_an_item=tokens) for tokens in (16, 7))
    np.testing.assert_array_equal(whole.values, parts.values)


def test_large_scores_of_a_prompt_do_not_overflow(run: Runner) -> None:
    made = case(2, 2, 64, Part(start_token=100, num_tokens=20))
    made.q_TX[...] *= 100
    assert_as_defined_in_tiles(run, made, 20, atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prompt_after_decoding_sequences_shares_their_step(run: Runner, threads: int) -> None:
    made = case(3, 2, 64, *decode(70, 33), Part(start_token=0, num_tokens=21))
    assert_as_defined_in_tiles(run, made, 21, threads)


def test_large_scores_do_not_overflow(run: Runner) -> None:
    made = case(2, 2, 32, *decode(100))
    made.q_TX[...] *= 3000
    assert_as_defined(run, made, 2, splits=3)


@pytest.mark.parametrize("splits", [1, 4])
def test_its_quantized_twin_has_the_codes_of_its_values(run: Runner, splits: int) -> None:
    out = attended(run, case(3, 2, 64, *decode(150, 20)), 2, splits=splits)
    np.testing.assert_array_equal(codes_of(out.q8), codes_of(packed_groups(out.values)))


@pytest.mark.parametrize("splits", [1, 4])
def test_its_quantized_twin_has_the_scales_and_sums_of_its_values(run: Runner, splits: int) -> None:
    out = attended(run, case(3, 2, 64, *decode(150, 20)), 2, splits=splits)
    np.testing.assert_allclose(words_of(out.q8), words_of(packed_groups(out.values)), rtol=2e-7, atol=1e-12)


def test_the_definition_combines_the_parts_of_any_cut_to_the_whole() -> None:
    rng = np.random.default_rng(3)
    scores_HS, v_SHD = rng.standard_normal((4, 50)) * 5, rng.standard_normal((50, 4, 8))
    parts = [reference.attend_part(scores_HS[:, i:j], v_SHD[i:j]) for i, j in ((0, 7), (7, 8), (8, 50))]
    whole = reference.combine([reference.attend_part(scores_HS, v_SHD)])
    np.testing.assert_allclose(reference.combine(parts), whole, rtol=1e-12)
