"""The store in spans: all that a step reads, once, in its order, none too large."""

import pytest

from residency.models.specs import model_spec
from residency.spec import open_checkpoint
from residency.spec.layout import GROUP_ALIGNMENT, store_layout
from residency.spec.model import ModelSpec
from residency.spec.spans import least_span_bytes, store_spans
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, small_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("models") / "m.gguf"
    return model_spec(open_checkpoint(write_gguf(path, small_model(request.param, vocabulary=6000), "Q4_0")))


@pytest.mark.parametrize("times", [1, 2, 7])
def test_no_span_is_larger_than_asked_for(model: ModelSpec, times: int) -> None:
    most = times * least_span_bytes(model)
    assert max(span.num_bytes for span in store_spans(model, most)) <= most


def test_every_tensor_that_a_step_reads_is_there_once_and_whole(model: ModelSpec) -> None:
    layout = store_layout(model)
    held: dict[str, int] = {}
    for span in store_spans(model, least_span_bytes(model)):
        for piece in span.pieces:
            held[piece.name] = held.get(piece.name, 0) + piece.num_bytes
    read = {each.name for each in model.tensors if model.tied or each is not model.embedding}
    assert held == {name: layout.by_name[name].num_bytes for name in read}


def test_spans_are_whole_pages_around_their_pieces(model: ModelSpec) -> None:
    for span in store_spans(model, least_span_bytes(model)):
        assert span.offset % GROUP_ALIGNMENT == span.num_bytes % GROUP_ALIGNMENT == 0
        assert span.offset <= span.pieces[0].offset and span.pieces[-1].end <= span.offset + span.num_bytes


def test_gate_and_up_which_one_kernel_reads_are_in_one_span(model: ModelSpec) -> None:
    for span in store_spans(model, least_span_bytes(model)):
        names = {piece.name.split(".", 3)[-1] for piece in span.pieces}
        assert ("mlp.gate_proj.weight" in names) == ("mlp.up_proj.weight" in names)


def test_the_head_is_cut_between_tiles(model: ModelSpec) -> None:
    head = model.head or model.embedding
    spans = store_spans(model, least_span_bytes(model))
    pieces = [piece for span in spans for piece in span.pieces if piece.name == head.name]
    tile_bytes = store_layout(model).by_name[head.name].num_bytes // (head.shape[0] // 16)
    assert len(pieces) > 1
    assert [piece.offset - pieces[0].offset for piece in pieces] == [piece.first_tile * tile_bytes for piece in pieces]
