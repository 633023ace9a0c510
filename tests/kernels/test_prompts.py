"""Rows of prompts meet matrices in tile registers, where the processor has them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import pack_rows, unpack_rows
from residency.formats.tiles import tile_rows
from residency.kernels.gate import gated
from residency.kernels.gated_matmul import gated_linear
from residency.kernels.gated_matmul import reference as gated_reference
from residency.kernels.matmul import Matrix, linear, reference
from residency.kernels.norm import rms_norm
from residency.kernels.simd.tiles import has_tiles
from support.steps import MATRICES, Runner, Step, packed_prompt, unpacked_prompt

pytestmark = pytest.mark.skipif(not has_tiles(), reason="this processor has no tile registers for bfloat16")

Floats = npt.NDArray[np.float32]
BLOCKS = [name for name, number_format in MATRICES.items() if not number_format.is_float]
ROWS = 72  # an odd number of tiles, the last half empty


def random(*shape: int) -> Floats:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def products(
    run: Runner, name: str, x_TC: Floats, *, num_prompt: int, bias_R: Floats | None = None, before: bool = False
) -> tuple[Floats, npt.NDArray[np.float64], float]:
    """What the kernel makes of the last `num_prompt` rows, what the definition does, and the largest rounding."""
    rows_RB = pack_rows(MATRICES[name], random(ROWS, x_TC.shape[1]) + np.float32(0.3))
    step = Step(num_tokens=len(x_TC), num_prompt=num_prompt)
    before_TR = random(len(x_TC), 80)
    out_TR = step.given(before_TR) if before else step.poisoned(len(x_TC), 80)
    tiles = step.given(tile_rows(MATRICES[name], rows_RB))
    matrix = Matrix(format=MATRICES[name], rows=ROWS, columns=x_TC.shape[1], tiles=tiles)
    bias = None if bias_R is None else step.given(bias_R)
    linear(step.recorder, step.rows(x_TC, num_prompt=num_prompt), matrix, out_TR, bias=bias, accumulate=before)
    run(step, 2)
    prompt_TC = x_TC[len(x_TC) - num_prompt :]
    expected_TR = reference.prompt_linear(prompt_TC, MATRICES[name], rows_RB)
    if bias_R is not None:
        expected_TR += bias_R[:ROWS]
    if before:
        expected_TR += before_TR[-num_prompt:, :ROWS]
    # Float32 sums, and a few weights whose float32 lies so near a half that they are rounded the other way.
    largest = float(np.abs(unpack_rows(MATRICES[name], rows_RB)).max() * np.abs(x_TC).max())
    return out_TR[len(x_TC) - num_prompt :, :ROWS], expected_TR, 3 * largest * 2.0**-8


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 31, 32, 33, 48, 63, 530])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_prompt_s_product_is_that_of_the_definition(run: Runner, name: str, tokens: int) -> None:
    found_TR, expected_TR, rounding = products(run, name, random(tokens, 512), num_prompt=tokens)
    assert np.abs(found_TR - expected_TR).max() < rounding


@pytest.mark.parametrize("columns", [32, 96, 256, 288, 576])
def test_columns_need_not_be_whole_parts(run: Runner, columns: int) -> None:
    found_TR, expected_TR, rounding = products(run, "Q4_1", random(37, columns), num_prompt=37)
    assert np.abs(found_TR - expected_TR).max() < rounding


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("columns", [256, 768])
def test_a_bias_and_what_was_there_are_added(run: Runner, columns: int, before: bool) -> None:
    x_TC, bias_R = random(40, columns), random(80)
    found_TR, expected_TR, rounding = products(run, "Q4_K", x_TC, num_prompt=40, bias_R=bias_R, before=before)
    assert np.abs(found_TR - expected_TR).max() < rounding


@pytest.mark.parametrize("name", BLOCKS)
def test_a_prompt_s_product_does_not_depend_on_what_is_beside_it(run: Runner, name: str) -> None:
    x_TC = random(45, 512)
    beside_TR, *_ = products(run, name, x_TC, num_prompt=40)
    alone_TR, *_ = products(run, name, x_TC[-3:], num_prompt=3)
    np.testing.assert_array_equal(beside_TR[-3:], alone_TR)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_before_a_prompt_are_multiplied_as_ever(run: Runner, name: str) -> None:
    x_TC = random(24, 256)
    rows_RB = pack_rows(MATRICES[name], random(ROWS, 256))
    found = []
    for num_prompt, tokens in ((20, 24), (0, 4)):
        step = Step(num_tokens=tokens, num_prompt=num_prompt)
        out_TR, tiles = step.poisoned(tokens, 80), step.given(tile_rows(MATRICES[name], rows_RB))
        matrix = Matrix(format=MATRICES[name], rows=ROWS, columns=256, tiles=tiles)
        linear(step.recorder, step.rows(x_TC[:tokens], num_prompt=num_prompt), matrix, out_TR)
        run(step, 2)
        found.append(out_TR[:4, :ROWS])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("tokens", "num_prompt"), [(1, 1), (19, 17), (40, 33), (16, 16)])
def test_a_norm_packs_prompts_in_tiles(run: Runner, tokens: int, num_prompt: int, threads: int) -> None:
    step = Step(num_tokens=tokens, num_prompt=num_prompt)
    step.buffers["normed"], step.buffers["normed_q8"] = step.poisoned(tokens, 96), step.poisoned_groups(tokens, 96)
    rows = rms_norm(step.recorder, step.given(random(tokens, 96)), step.given(random(96)), 1e-5, into="normed")
    out_TC, packed_TB = rows.as_values(), rows.as_q8()
    run(step, threads)
    np.testing.assert_array_equal(packed_TB[tokens - num_prompt :], packed_prompt(out_TC[tokens - num_prompt :]))


@pytest.mark.parametrize(("tokens", "num_prompt"), [(1, 1), (19, 17), (40, 33), (16, 16)])
def test_a_gated_product_packs_prompts_in_tiles(run: Runner, tokens: int, num_prompt: int) -> None:
    gate_TC, up_TC = random(tokens, 96), random(96, tokens).T
    packed_TB, values_TC = (
        _gated(run, gate_TC, up_TC, num_prompt=prompt, packed=packed)
        for prompt, packed in ((num_prompt, True), (0, False))
    )
    np.testing.assert_array_equal(packed_TB[tokens - num_prompt :], packed_prompt(values_TC[tokens - num_prompt :]))


def _gated(run: Runner, gate_TC: Floats, up_TC: Floats, *, num_prompt: int, packed: bool) -> npt.NDArray[Any]:
    step = Step(num_tokens=len(gate_TC), num_prompt=num_prompt)
    step.buffers["q8"] = step.poisoned_groups(*gate_TC.shape)
    made = gated(step.recorder, step.given(gate_TC), step.given(up_TC), "silu", gate_TC.shape[1], into_q8="q8")
    wanted: npt.NDArray[Any] = made.as_q8() if packed else made.as_values()
    run(step, 2)
    return wanted


@pytest.mark.parametrize("tokens", [1, 16, 40, 530])
@pytest.mark.parametrize("name", BLOCKS)
def test_both_products_and_their_gate_at_once_are_those_of_the_definition(run: Runner, name: str, tokens: int) -> None:
    gate_RB, up_RB = (
        pack_rows(MATRICES[name], random(96, 512) * np.float32(0.05) + np.float32(at)) for at in (0, 0.01)
    )
    x_TC, num_sampled = random(tokens + 3, 512), 3
    step = Step(num_tokens=len(x_TC), num_prompt=tokens)
    step.buffers["q8"] = step.poisoned_groups(len(x_TC), 96)
    gate, up = (
        Matrix(format=MATRICES[name], rows=96, columns=512, tiles=step.given(tile_rows(MATRICES[name], rows_RB)))
        for rows_RB in (gate_RB, up_RB)
    )
    gated_linear(step.recorder, step.rows(x_TC, num_prompt=tokens), gate, up, "silu", "q8")
    run(step, 2)
    expected_TR = gated_reference.gated_linear(x_TC[num_sampled:], MATRICES[name], gate_RB, up_RB, "silu")
    found_TR = unpacked_prompt(step.buffers["q8"][num_sampled:])
    assert np.abs(found_TR - expected_TR).max() < 2.0**-8 * np.abs(expected_TR).max()
    assert (step.buffers["q8"][:num_sampled] == 0xFF).all()
