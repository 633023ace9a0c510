"""What an open store gives is what the checkpoint holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from residency.errors import StoreError
from residency.formats import FORMATS, unpack_rows
from residency.formats.tiles import untile_rows
from residency.kernels.matmul import Matrix
from residency.models.specs import model_spec
from residency.spec import ModelSpec, open_checkpoint
from residency.spec.layout import store_layout
from residency.store.convert import convert
from residency.store.weights import Weights
from support.folders import write_folder
from support.gguf_files import rounded, write_gguf
from support.models import ARCHITECTURES, random_weights, small_model

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@contextmanager
def opened(path: Path) -> Iterator[tuple[ModelSpec, Weights]]:
    model = model_spec(open_checkpoint(path))
    folder = path.with_name(path.name + ".store")
    convert(model, folder)
    with Weights(model, folder) as weights:
        yield model, weights


def values_of(matrix: Matrix) -> npt.NDArray[np.float32]:
    tiles_TB = matrix.tiles.reshape(-1, 16 * matrix.format.bytes_of((matrix.columns,)))
    return unpack_rows(matrix.format, untile_rows(matrix.format, tiles_TB, np.arange(matrix.rows)))


@pytest.mark.parametrize("number_format", FORMATS)
def test_matrices_hold_the_values_of_their_file(number_format: str, tmp_path: Path) -> None:
    model = small_model("qwen2")
    source = random_weights(model)
    with opened(write_gguf(tmp_path / "m.gguf", model, number_format, weights=source)) as (_, weights):
        ours = values_of(weights.matrix(Q_PROJ))
    np.testing.assert_array_equal(ours, rounded(source, number_format)[Q_PROJ])


@pytest.mark.parametrize("name", [Q_PROJ, "model.layers.0.self_attn.k_proj.weight"])
def test_rows_that_gguf_interleaves_for_llama_are_in_their_order_again(name: str, tmp_path: Path) -> None:
    model = small_model("llama", num_heads=6, num_kv_heads=3, head_dim=32)
    source = random_weights(model)
    with opened(write_gguf(tmp_path / "m.gguf", model, "Q8_0", weights=source)) as (_, weights):
        ours = values_of(weights.matrix(name))
    np.testing.assert_array_equal(ours, rounded(source, "Q8_0")[name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_matrix_of_a_folder_is_in_its_store(architecture: str, tmp_path: Path) -> None:
    small = small_model(architecture)
    source = random_weights(small)
    with opened(write_folder(tmp_path / "model", small, weights=source)) as (model, weights):
        matrices = [t for t in model.tensors if len(t.shape) == 2 and (model.tied or t is not model.embedding)]
        wrong = [t.name for t in matrices if not np.array_equal(values_of(weights.matrix(t.name)), source[t.name])]
    assert wrong == []


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_vectors_are_float32(dtype: str, tmp_path: Path) -> None:
    model = small_model("qwen2")
    source = random_weights(model)
    for name, values in source.items():
        source[name] = (np.round(values * 64) / 64).astype(np.float32)  # exact in all three
    with opened(write_folder(tmp_path / "model", model, weights=source, dtype=dtype)) as (_, weights):
        np.testing.assert_array_equal(weights.vector("model.norm.weight"), source["model.norm.weight"])


def test_gemma_s_norms_have_their_one_added(tmp_path: Path) -> None:
    model = small_model("gemma3")
    source = random_weights(model)
    with opened(write_folder(tmp_path / "model", model, weights=source)) as (_, weights):
        np.testing.assert_array_equal(weights.vector("model.norm.weight"), source["model.norm.weight"] + 1)


def test_a_tied_embedding_is_the_head(tmp_path: Path) -> None:
    model = small_model("qwen2")
    source = random_weights(model)
    with opened(write_folder(tmp_path / "model", model, weights=source)) as (_, weights):
        np.testing.assert_array_equal(values_of(weights.head), source["model.embed_tokens.weight"])


@pytest.mark.parametrize("number_format", FORMATS)
def test_an_untied_embedding_is_read_row_by_row(number_format: str, tmp_path: Path) -> None:
    model = small_model("llama")
    source = random_weights(model)
    tokens = np.random.default_rng(0).integers(0, model.vocabulary, 70)
    out_TC = np.full((70, model.hidden), np.nan, np.float32)
    with opened(write_gguf(tmp_path / "m.gguf", model, number_format, weights=source)) as (_, weights):
        weights.embed(tokens, out_TC)
    np.testing.assert_array_equal(out_TC, rounded(source, number_format)["model.embed_tokens.weight"][tokens])


def test_an_untied_embedding_is_not_mapped(tmp_path: Path) -> None:
    with opened(write_folder(tmp_path / "model", small_model("llama"))) as (model, weights):
        assert weights.num_bytes == store_layout(model).total_bytes - model.embedding.num_bytes


def test_a_store_that_is_too_short_is_refused_with_how_much(tmp_path: Path) -> None:
    model = model_spec(open_checkpoint(write_folder(tmp_path / "model", small_model("llama"))))
    convert(model, tmp_path / "store")
    with (tmp_path / "store" / "weights").open("r+b") as file:
        file.truncate(store_layout(model).total_bytes - 4096)
    with pytest.raises(StoreError, match="4096 bytes short"):
        Weights(model, tmp_path / "store")


def test_a_store_that_is_missing_is_refused(tmp_path: Path) -> None:
    model = model_spec(open_checkpoint(write_folder(tmp_path / "model", small_model("llama"))))
    with pytest.raises(StoreError, match="could not be opened"):
        Weights(model, tmp_path / "store")
