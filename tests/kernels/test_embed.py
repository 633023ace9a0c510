"""Embeddings from the tiled head are those of the definition."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import pack_rows
from residency.formats.tiles import tile_rows
from residency.kernels.embed import embed, reference
from residency.kernels.matmul import Matrix
from support.steps import MATRICES, Runner, Step

ROWS, COLUMNS = 40, 512


def rows_of(name: str) -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(4).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    return pack_rows(MATRICES[name], values * np.linspace(0.1, 3, COLUMNS, dtype=np.float32))


def embedded(run: Runner, name: str, tokens_T: npt.NDArray[np.int64], threads: int, factor: float = 1.0) -> Step:
    step = Step(num_tokens=len(tokens_T))
    step.buffers["token_ids"] = step.given(tokens_T)
    step.buffers["out"] = step.poisoned(len(tokens_T) + 1, COLUMNS)
    tiles = step.given(tile_rows(MATRICES[name], rows_of(name)))
    matrix = Matrix(format=MATRICES[name], rows=ROWS, columns=COLUMNS, tiles=tiles)
    embed(step.recorder, matrix, factor, step.buffers["out"])
    run(step, threads)
    return step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("name", MATRICES)
def test_embeddings_are_the_rows_of_their_tokens(run: Runner, name: str, tokens: int, threads: int) -> None:
    tokens_T = np.random.default_rng(tokens).permutation(ROWS)[:tokens]
    out_TC = embedded(run, name, tokens_T, threads).buffers["out"][:tokens]
    expected = reference.embed(MATRICES[name], rows_of(name), tokens_T, 1.0)
    np.testing.assert_allclose(out_TC, expected, rtol=3e-7, atol=1e-6)


def test_embeddings_are_scaled(run: Runner) -> None:
    tokens_T = np.array([39, 0, 39])
    out_TC = embedded(run, "F32", tokens_T, 2, factor=16.0).buffers["out"][:3]
    np.testing.assert_array_equal(out_TC, reference.embed(MATRICES["F32"], rows_of("F32"), tokens_T, 16.0))


def test_rows_after_the_step_s_tokens_stay_as_they_are(run: Runner) -> None:
    assert np.isnan(embedded(run, "Q4_1", np.array([1]), 2).buffers["out"][1]).all()
