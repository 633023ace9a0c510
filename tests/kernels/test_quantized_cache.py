"""Keys and values in integers: what attention makes of them, and what lies in their pages, are the definition's."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.kernels.rotary import LayerPages, key_offset, reference, reference_codes, rotate_and_store
from residency.spec.model import AttentionSpec, RopeSpec
from residency.spec.state import KV_FORMATS, KvName
from support.attending import Case, Part, attended, case, decode
from support.steps import Runner, Step

FORMATS: list[KvName] = ["INT8", "INT4"]
NUM_PAGES = 4


def assert_as_defined(run: Runner, made: Case, *, atol: float = 3e-4, **how: int) -> None:
    """A query's value, rounded to 16 bits, is off by up to 2**-16 of the largest, some 4 here. Times keys of some 2,
    over a head, a score is off by 5e-5 in the mean, and so are the weights; a usual output is 0.3.
    """
    np.testing.assert_allclose(attended(run, made, 2, **how).values, made.expected_TX, rtol=0, atol=atol)


@pytest.mark.parametrize("context", [1, 15, 16, 17, 64, 65, 200])
@pytest.mark.parametrize("group", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("number_format", FORMATS)
def test_decoding_attends_to_codes_times_their_scales(
    run: Runner, number_format: KvName, group: int, context: int
) -> None:
    assert_as_defined(run, case(group, 2, 32, *decode(context), number_format=number_format))


@pytest.mark.parametrize(
    ("number_format", "head_dim"),
    [
        *(("INT8", width) for width in (16, 32, 48, 64, 80, 96, 112, 128, 256)),
        ("INT4", 64),
        ("INT4", 96),
        ("INT4", 128),
    ],
)
def test_heads_of_any_width_attend_to_codes(run: Runner, number_format: KvName, head_dim: int) -> None:
    assert_as_defined(run, case(2, 3, head_dim, Part(start_token=30, num_tokens=6), number_format=number_format))


@pytest.mark.parametrize("splits", [2, 5, 16])
@pytest.mark.parametrize("number_format", FORMATS)
def test_a_context_of_codes_in_parts_gives_what_it_gives_as_a_whole(
    run: Runner, number_format: KvName, splits: int
) -> None:
    assert_as_defined(run, case(3, 2, 64, *decode(300), number_format=number_format), splits=splits)


@pytest.mark.parametrize("window_tokens", [1, 16, 17, 100, 1000])
@pytest.mark.parametrize("number_format", FORMATS)
def test_a_window_hides_codes_before_it(run: Runner, number_format: KvName, window_tokens: int) -> None:
    made = case(3, 2, 32, *decode(150), window_tokens=window_tokens, number_format=number_format)
    assert_as_defined(run, made, splits=2)


@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("number_format", FORMATS)
def test_a_prompt_attends_to_codes_times_their_scales(
    run: Runner, number_format: KvName, group: int, tokens: int
) -> None:
    made = case(group, 2, 64, Part(start_token=37, num_tokens=tokens), number_format=number_format)
    assert_as_defined(run, made, num_prompt=tokens, tokens_of_an_item=16)


@pytest.mark.parametrize("window_tokens", [1, 16, 17, 64])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("number_format", FORMATS)
def test_a_window_hides_codes_before_it_in_a_prompt(
    run: Runner, number_format: KvName, head_dim: int, window_tokens: int
) -> None:
    part = Part(start_token=90, num_tokens=40)
    made = case(3, 2, head_dim, part, window_tokens=window_tokens, number_format=number_format)
    assert_as_defined(run, made, num_prompt=40, tokens_of_an_item=16)


@pytest.mark.parametrize("window_tokens", [24, None])
@pytest.mark.parametrize("number_format", FORMATS)
def test_a_prompt_s_token_attends_to_codes_alike_in_any_chunk(
    run: Runner, number_format: KvName, window_tokens: int | None
) -> None:
    part = Part(start_token=100, num_tokens=40)
    made = case(3, 2, 64, part, window_tokens=window_tokens, number_format=number_format)
    whole, parts = (attended(run, made, 2, num_prompt=40, tokens_of_an_item=tokens) for tokens in (16, 7))
    np.testing.assert_array_equal(whole.values, parts.values)


@pytest.mark.parametrize("number_format", FORMATS)
def test_a_decoding_token_attends_to_codes_alike_whoever_shares_the_step(run: Runner, number_format: KvName) -> None:
    made = case(3, 2, 64, *decode(150, 20, 90), number_format=number_format)
    alone = Case(
        spec=made.spec,
        parts=decode(150),
        q_TX=made.q_TX[:1],
        pages=made.pages,
        tables=made.tables[:1],
        number_format=number_format,
    )
    np.testing.assert_array_equal(attended(run, made, 2).values[:1], attended(run, alone, 1).values)


@pytest.mark.parametrize("number_format", FORMATS)
def test_large_scores_of_codes_do_not_overflow(run: Runner, number_format: KvName) -> None:
    made = case(2, 2, 32, *decode(100), number_format=number_format)
    made.q_TX[...] *= 3000
    assert_as_defined(run, made, splits=3)


@pytest.mark.parametrize("number_format", FORMATS)
def test_heads_of_zeros_attend_to_zeros(run: Runner, number_format: KvName) -> None:
    made = case(2, 2, 32, *decode(40), number_format=number_format)
    tokens = np.arange(len(made.pages) * 16)
    zeros_TGD = np.zeros((len(tokens), 2, 32))
    reference_codes.store(made.pages, tokens, zeros_TGD, zeros_TGD, number_format)
    made.q_TX[...] = 0
    np.testing.assert_array_equal(attended(run, made, 1).values, 0)


def stored(
    run: Runner, number_format: KvName, spec: AttentionSpec, tokens: int, *, offset: bool, threads: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The kernel's pages and the definition's; then the kernel's queries and the definition's."""
    rng = np.random.default_rng([tokens, spec.head_dim])
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    q_TX, k_TX, v_TX = (rng.standard_normal((tokens, each)).astype(np.float32) for each in (width, kv_width, kv_width))
    phases = rng.uniform(0, 2 * np.pi, (tokens, spec.head_dim // 2))
    angles_TD = np.concatenate([np.cos(phases), np.sin(phases)], axis=1).astype(np.float32)
    slots_T = rng.permutation(NUM_PAGES * 16)[:tokens]
    offset_X = 100 * rng.standard_normal(kv_width).astype(np.float32)
    k_TX += 0.5 * offset_X

    step = Step(num_tokens=tokens)
    page_bytes = 2 * 16 * spec.num_kv_heads * KV_FORMATS[number_format].head_bytes(spec.head_dim)
    pages = step.poisoned(NUM_PAGES, page_bytes, dtype=np.uint8)
    cache = LayerPages(
        pages=pages, slots=step.given(slots_T), tables=np.zeros((1, 1), np.int32), number_format=number_format
    )
    q, k, v, angles = (step.given(x) for x in (q_TX, k_TX, v_TX, angles_TD))
    key_offset = step.given(offset_X) if offset else None
    rotate_and_store(step.recorder, spec, q, k, v, angles, cache, key_offset=key_offset)
    run(step, threads)

    q_THD, k_TGD, v_TGD = (x.reshape(tokens, -1, spec.head_dim) for x in (q_TX, k_TX, v_TX))
    kept_TGD = reference.rotate(k_TGD, angles_TD) - (offset_X.reshape(-1, spec.head_dim) if offset else 0)
    expected = np.full_like(pages, 0xFF)
    reference_codes.store(expected, slots_T, reference_codes.spread(kept_TGD), v_TGD, number_format)
    spread_THD = reference_codes.spread(reference.rotate(q_THD, angles_TD))
    return pages, expected, q, spread_THD.reshape(tokens, -1)


def attention_spec(heads: int, kv_heads: int, head_dim: int) -> AttentionSpec:
    return AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=1.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("shape", [(9, 3, 64), (4, 1, 96), (2, 2, 128), (2, 1, 256)])
@pytest.mark.parametrize("number_format", FORMATS)
def test_pages_hold_the_codes_of_the_definition_and_all_else_is_untouched(
    run: Runner, number_format: KvName, shape: tuple[int, int, int], tokens: int, threads: int
) -> None:
    """A value at a tie may be rounded either way, and then a scale's last bit."""
    ours, theirs, _, _ = stored(run, number_format, attention_spec(*shape), tokens, offset=True, threads=threads)
    bits = reference_codes.BITS[number_format]
    found, expected = (reference_codes.unpack(pages, *shape[1:], bits) for pages in (ours, theirs))
    for name in ("keys_PGDS", "values_PGSD"):
        differences = np.abs(getattr(found, name) - getattr(expected, name))
        assert differences.max() <= 1
        assert differences.mean() < 1e-3
    np.testing.assert_allclose(found.scales_PGKS, expected.scales_PGKS, rtol=1e-3)


@pytest.mark.parametrize("head_dim", [16, 48, 80, 112])
def test_eight_bits_fit_heads_of_any_multiple_of_sixteen(run: Runner, head_dim: int) -> None:
    ours, theirs, _, _ = stored(run, "INT8", attention_spec(2, 2, head_dim), 20, offset=False, threads=2)
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("head_dim", [16, 48, 64, 96, 128])
def test_queries_are_rotated_and_spread(run: Runner, head_dim: int) -> None:
    _, _, ours, expected = stored(run, "INT8", attention_spec(4, 2, head_dim), 5, offset=False, threads=2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_spreading_both_leaves_scores_what_they_are() -> None:
    rng = np.random.default_rng(0)
    q_THD, k_THD = rng.standard_normal((2, 3, 4, 96))
    scores = np.einsum("thd,thd->th", reference_codes.spread(q_THD), reference_codes.spread(k_THD))
    np.testing.assert_allclose(scores, np.einsum("thd,thd->th", q_THD, k_THD), rtol=1e-10)


@pytest.mark.parametrize("number_format", FORMATS)
def test_the_definition_s_pages_hold_every_byte_once(number_format: KvName) -> None:
    bits = reference_codes.BITS[number_format]
    pages = np.random.default_rng(1).integers(0, 256, (3, 2 * 16 * 2 * (64 * bits // 8 + 2)), np.uint8)
    np.testing.assert_array_equal(reference_codes.pack(reference_codes.unpack(pages, 2, 64, bits), bits), pages)


def test_the_offset_is_the_mean_of_the_rotated_bias_over_the_first_positions() -> None:
    rope = RopeSpec(inverse_frequencies=(1.0, 1e-2, 1e-6), factor=1.5)
    bias_X = np.random.default_rng(2).standard_normal(12).astype(np.float32)
    phases = np.multiply.outer(np.arange(4096), rope.inverse_frequencies)
    angles_TD = 1.5 * np.concatenate([np.cos(phases), np.sin(phases)], axis=1).astype(np.float32)
    rotated_TGD = reference.rotate(np.tile(bias_X.reshape(2, 6), (4096, 1, 1)), angles_TD)
    offset_X = key_offset(bias_X, rope, 6, np.empty(12, np.float32))
    np.testing.assert_allclose(offset_X, rotated_TGD.mean(axis=0).ravel(), rtol=1e-5, atol=1e-6)
