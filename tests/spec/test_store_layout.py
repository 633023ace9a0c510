"""The store's layout: where tensors lie and how much a token reads."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from residency.formats import F32, Q4_K, Q8_0
from residency.models.specs import model_spec
from residency.spec import ModelSpec, open_checkpoint, read_bytes_per_token, store_layout, tiled_bytes
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, small_model


def spec(folder: Path, architecture: str = "qwen2", number_format: str = "Q8_0", **changes: Any) -> ModelSpec:
    model = small_model(architecture, **changes)
    return model_spec(open_checkpoint(write_gguf(folder / "m.gguf", model, number_format)))


@pytest.fixture(params=[(a, tied) for a in ARCHITECTURES for tied in (True, False)], ids=str)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSpec:
    architecture, tied = request.param
    return spec(tmp_path, architecture, tied=tied, vocabulary=313)


def test_entries_are_in_the_order_of_the_models_tensors(model: ModelSpec) -> None:
    assert [entry.name for entry in store_layout(model).entries] == [tensor.name for tensor in model.tensors]


def test_no_two_tensors_overlap_and_none_passes_the_end(model: ModelSpec) -> None:
    layout = store_layout(model)
    spans = sorted((entry.offset, entry.offset + entry.num_bytes) for entry in layout.entries)
    begins = [begin for begin, _ in spans[1:]] + [layout.total_bytes]
    assert all(end <= begin for (_, end), begin in zip(spans, begins, strict=True))


def test_every_tensor_begins_on_a_cache_line(model: ModelSpec) -> None:
    assert all(entry.offset % 64 == 0 for entry in store_layout(model).entries)


def test_every_layer_begins_on_a_page(model: ModelSpec) -> None:
    layout = store_layout(model)
    assert all(layout.by_name[layer.tensors[0].name].offset % 4096 == 0 for layer in model.layers)


def test_a_layer_is_one_run_of_bytes(model: ModelSpec) -> None:
    layout = store_layout(model)
    for layer in model.layers:
        entries = [layout.by_name[tensor.name] for tensor in layer.tensors]
        gaps = [b.offset - a.offset - a.num_bytes for a, b in pairwise(entries)]
        assert all(0 <= gap < 64 for gap in gaps)


def test_matrices_are_padded_to_whole_tiles(tmp_path: Path) -> None:
    layout = store_layout(spec(tmp_path, vocabulary=313, tied=False))
    assert layout.by_name["lm_head.weight"].num_bytes == 320 * 256 // 32 * 34


def test_an_untied_embedding_is_not_padded(tmp_path: Path) -> None:
    layout = store_layout(spec(tmp_path, vocabulary=313, tied=False))
    assert layout.by_name["model.embed_tokens.weight"].num_bytes == 313 * 256 // 32 * 34


def test_an_untied_embedding_lies_behind_all_that_is_resident(tmp_path: Path) -> None:
    layout = store_layout(spec(tmp_path, tied=False))
    assert layout.by_name["model.embed_tokens.weight"].offset == layout.resident_bytes


def test_all_of_a_tied_model_is_resident(tmp_path: Path) -> None:
    layout = store_layout(spec(tmp_path, tied=True))
    assert layout.resident_bytes == layout.total_bytes


def test_vectors_are_stored_as_float32(tmp_path: Path) -> None:
    assert store_layout(spec(tmp_path)).by_name["model.norm.weight"].num_bytes == 256 * 4


def test_a_tied_embedding_is_read_once_a_token(tmp_path: Path) -> None:
    model = spec(tmp_path, tied=True)
    assert read_bytes_per_token(model) == sum(tensor.num_bytes for tensor in model.tensors)


def test_one_row_of_an_untied_embedding_is_read_a_token(tmp_path: Path) -> None:
    model = spec(tmp_path, tied=False)
    rest = sum(tensor.num_bytes for tensor in model.tensors if tensor.name != "model.embed_tokens.weight")
    assert read_bytes_per_token(model) == rest + 256 // 32 * 34


def test_tiles_are_of_sixteen_rows() -> None:
    assert [tiled_bytes(f, 17, 256) for f in (F32, Q8_0, Q4_K)] == [32 * 1024, 32 * 272, 32 * 144]
