"""Columns are put in the order that a matrix asks for, once for all matrices that ask for the same."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import format_named, pack_rows
from residency.formats.tiles import tile_rows
from residency.kernels.matmul import Matrix, linear
from residency.kernels.order import in_order, reference
from residency.kernels.recorder import Launch
from residency.kernels.simd.tiles import has_tiles
from support.steps import Runner, Step, codes_of, packed_groups, packed_prompt


def order_of(columns: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).permutation(columns).astype(np.int32)


def random(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def step_of(tokens: int, columns: int, num_prompt: int = 0) -> Step:
    step = Step(num_tokens=tokens, num_prompt=num_prompt)
    step.buffers["ordered_q8"] = step.poisoned_groups(tokens, columns)
    words = dict.fromkeys(("x", "x_stride", "order", "columns", "q8", "q8_stride"), 0)
    counts = {"together": 1, "int8_at": step.inputs.num_int8, "tokens_at": step.inputs.num_tokens}
    step.recorder.launches.append(Launch("order.columns", {**words, **counts}, meet=False))  # something before
    return step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("columns", [32, 96, 512])
def test_columns_are_packed_in_order(run: Runner, columns: int, tokens: int, threads: int) -> None:
    step, x_TC, order_C = step_of(tokens, columns), random(tokens, columns), order_of(columns)
    q8_TB = in_order(step.recorder, step.rows(x_TC), step.given(order_C)).as_q8()
    run(step, threads)
    np.testing.assert_array_equal(codes_of(q8_TB), codes_of(packed_groups(reference.in_order(x_TC, order_C))))


@pytest.mark.skipif(not has_tiles(), reason="this processor has no tile registers for bfloat16")
@pytest.mark.parametrize("tokens", [1, 17, 40])
def test_prompts_are_packed_in_order(run: Runner, tokens: int) -> None:
    step, x_TC, order_C = step_of(tokens, 96, num_prompt=tokens), random(tokens, 96), order_of(96)
    packed_TB = in_order(step.recorder, step.rows(x_TC, num_prompt=tokens), step.given(order_C)).as_q8()
    run(step, 2)
    np.testing.assert_array_equal(packed_TB, packed_prompt(reference.in_order(x_TC, order_C)))


def test_matrices_with_one_order_share_what_is_put_in_it(run: Runner) -> None:
    step, x_TC, order_C = step_of(3, 128), random(3, 128), order_of(128)
    order, x = step.given(order_C), step.rows(x_TC)
    number_format = format_named("INT4_G128")
    for seed in range(2):
        tiles = step.given(tile_rows(number_format, pack_rows(number_format, random(16, 128) + seed)))
        matrix = Matrix(format=number_format, rows=16, columns=128, tiles=tiles, order=order)
        linear(step.recorder, x, matrix, step.poisoned(3, 16))
    kernels = [launch.kernel for launch in step.recorder.launches[1:]]
    assert kernels == ["order.columns", "matmul.INT4_G128", "matmul.INT4_G128"]


def test_a_matrix_multiplies_the_columns_that_its_order_names(run: Runner) -> None:
    x_TC, order_C, number_format = random(3, 128), order_of(128), format_named("INT4_G128")
    rows_RB = pack_rows(number_format, random(16, 128))
    found = []
    for x, order in ((x_TC, order_C), (x_TC[:, order_C], np.arange(128, dtype=np.int32))):
        step = step_of(3, 128)
        tiles, out = step.given(tile_rows(number_format, rows_RB)), step.poisoned(3, 16)
        linear(
            step.recorder,
            step.rows(x),
            Matrix(format=number_format, rows=16, columns=128, tiles=tiles, order=step.given(order)),
            out,
        )
        run(step, 2)
        found.append(out)
    np.testing.assert_array_equal(found[0], found[1])
