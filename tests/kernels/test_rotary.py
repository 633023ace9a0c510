"""Rotated queries, and what lies in the pages of the KV cache, are those of the definition."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from residency.kernels.rotary import LayerPages, reference, rotate_and_store
from residency.spec.model import AttentionSpec, RopeSpec
from support.steps import Runner, Step

Floats = npt.NDArray[np.float32]
EPSILON = 1e-6
NUM_PAGES = 4
SHAPES = [(1, 1, 16), (6, 2, 16), (9, 3, 64), (4, 1, 96), (4, 4, 128), (4, 1, 256)]  # heads, key-value heads, values


@dataclass(frozen=True, kw_only=True)
class Case:
    """Projected heads of some tokens and where they go."""

    spec: AttentionSpec
    q_TX: Floats
    k_TX: Floats
    v_TX: Floats
    angles_TD: Floats
    slots_T: npt.NDArray[np.int64]
    norms_2D: Floats | None


def case(heads: int, kv_heads: int, head_dim: int, tokens: int, *, norms: bool) -> Case:
    rng = np.random.default_rng([heads, kv_heads, head_dim, tokens])
    phases = rng.uniform(0, 2 * np.pi, (tokens, head_dim // 2))
    rope = RopeSpec(inverse_frequencies=(1.0,) * (head_dim // 2))
    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    q_TX, k_TX, v_TX = (rng.standard_normal((tokens, width)).astype(np.float32) for width in widths)
    return Case(
        spec=AttentionSpec(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=1.0, rope=rope, qk_norm=norms
        ),
        q_TX=q_TX,
        k_TX=k_TX,
        v_TX=v_TX,
        angles_TD=np.concatenate([np.cos(phases), np.sin(phases)], axis=1).astype(np.float32),
        slots_T=rng.permutation(NUM_PAGES * 16)[:tokens],
        norms_2D=rng.standard_normal((2, head_dim)).astype(np.float32) if norms else None,
    )


def rotated(run: Runner, made: Case, threads: int) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """The queries and the pages afterwards."""
    step, spec = Step(num_tokens=len(made.q_TX)), made.spec
    page_bytes = 2 * 2 * 16 * spec.num_kv_heads * spec.head_dim
    pages = step.poisoned(NUM_PAGES, page_bytes, dtype=np.uint8)
    cache = LayerPages(pages=pages, slots=step.given(made.slots_T), tables=np.zeros((1, 1), np.int32))
    q_TX, k_TX, v_TX, angles_TD = (step.given(x) for x in (made.q_TX, made.k_TX, made.v_TX, made.angles_TD))
    q_norm, k_norm = (None, None) if made.norms_2D is None else (step.given(x) for x in made.norms_2D)
    rotate_and_store(
        step.recorder, spec, q_TX, k_TX, v_TX, angles_TD, cache, q_norm=q_norm, k_norm=k_norm, epsilon=EPSILON
    )
    run(step, threads)
    return q_TX, pages


def in_heads(x_TX: Floats, head_dim: int) -> Floats:
    return x_TX.reshape(len(x_TX), -1, head_dim)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_queries_are_rotated_as_the_definition_says(
    run: Runner, shape: tuple[int, int, int], norms: bool, tokens: int, threads: int
) -> None:
    made = case(*shape, tokens, norms=norms)
    q_TX, _ = rotated(run, made, threads)
    q_norm = None if made.norms_2D is None else made.norms_2D[0]
    head_dim = made.spec.head_dim
    expected = reference.rotate(in_heads(made.q_TX, head_dim), made.angles_TD, norm_D=q_norm, epsilon=EPSILON)
    np.testing.assert_allclose(in_heads(q_TX, head_dim), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_pages_hold_what_the_definition_stores_and_all_else_is_untouched(
    run: Runner, shape: tuple[int, int, int], norms: bool, tokens: int, threads: int
) -> None:
    made = case(*shape, tokens, norms=norms)
    _, pages = rotated(run, made, threads)
    spec = made.spec
    expected = np.full_like(pages, 0xFF)
    k_norm = None if made.norms_2D is None else made.norms_2D[1]
    k_TGD = reference.rotate(in_heads(made.k_TX, spec.head_dim), made.angles_TD, norm_D=k_norm, epsilon=EPSILON)
    keys, values = (
        part(expected, spec.num_kv_heads, spec.head_dim) for part in (reference.as_keys, reference.as_values)
    )
    reference.store(keys, values, made.slots_T, k_TGD, in_heads(made.v_TX, spec.head_dim))
    ours, theirs = (x.view(np.float16).astype(np.float32) for x in (pages, expected))
    np.testing.assert_allclose(ours, theirs, rtol=2.0**-10, atol=1e-6)  # a value at a tie may be rounded either way


def test_values_are_stored_exactly_as_float16_rounds_them(run: Runner) -> None:
    made = case(4, 2, 64, 5, norms=False)
    _, pages = rotated(run, made, 2)
    stored = reference.as_values(pages, 2, 64)[made.slots_T // 16, :, made.slots_T % 16]
    np.testing.assert_array_equal(stored, in_heads(made.v_TX, 64).astype(np.float16))
