"""Mixtures of experts compute what transformers does, from folders and from GGUF files, in any company.

Where an expert's probability lies so near to another's that rounding decides, a token goes another way and its logits
are others: float32 decides alike here, and what is rounded further is compared by the tokens that go the same way.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="the reference is computed by transformers on torch")
pytest.importorskip("transformers", reason="the reference is computed by transformers")

from residency.models.specs import model_spec, named_spec
from residency.spec import open_checkpoint
from support.engines import engine_logits
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import MIXTURES, small_model
from support.plain import plain_logits
from support.reference import reference_logits

TOKENS = np.random.default_rng(5).integers(0, 320, 120).tolist()
PROMPT_TOKENS = 100  # in chunks of 64; the others are decoded
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {}),
    "mixtral, one expert a token": ("mixtral", {"experts_per_token": 1}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, renormalized": ("qwen2_moe", {"renormalized": True}),
    "qwen2_moe, a layer that is none": ("qwen2_moe", {"dense_layers": (1,)}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe, many experts": ("qwen3_moe", {"num_experts": 40, "experts_per_token": 8, "expert_intermediate": 64}),
}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """One checkpoint, computed by both."""

    folder: Path

    @cached_property
    def theirs(self) -> Floats:
        """The logits of transformers in float32."""
        return reference_logits(self.folder, TOKENS)

    def ours(self, **how: Any) -> Floats:
        """The engine's."""
        return engine_logits(self.folder, TOKENS, kv_format="F32", **how)


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    architecture, extents = request.param
    return Compared(write_folder(tmp_path_factory.mktemp("case") / "model", small_model(architecture, **extents)))


def off_by(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Of each token, the largest difference in parts of the largest logit."""
    parts: npt.NDArray[np.float64] = np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max()
    return parts


def test_logits_are_those_of_transformers(compared: Compared) -> None:
    assert off_by(compared.ours(prompt_tokens=PROMPT_TOKENS), compared.theirs).max() < 2e-5


def test_chunks_and_threads_change_no_bit(compared: Compared) -> None:
    whole = compared.ours(chunk_tokens=128, threads=1)
    np.testing.assert_array_equal(compared.ours(chunk_tokens=48, threads=2), whole)


@pytest.mark.parametrize("number_format", ["F16", "Q8_0", "Q4_K", "Q5_0"])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_gguf_file_computes_what_its_weights_say(architecture: str, number_format: str, tmp_path: Path) -> None:
    """Most tokens: activations in int8 or bfloat16 send some of them to other experts."""
    path = write_gguf(tmp_path / "model.gguf", small_model(architecture), number_format)
    ours = engine_logits(path, TOKENS, prompt_tokens=PROMPT_TOKENS, chunk_tokens=48)
    parts = off_by(ours, plain_logits(model_spec(open_checkpoint(path)), TOKENS))
    assert np.median(parts[:PROMPT_TOKENS]) < 0.05 and np.median(parts[PROMPT_TOKENS:]) < 0.05


@pytest.mark.parametrize("number_format", ["Q4_K", "Q4_1"])
def test_chunks_and_threads_change_no_bit_of_packed_experts(number_format: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", small_model("qwen2_moe"), number_format)
    whole = engine_logits(path, TOKENS, chunk_tokens=128, threads=1)
    np.testing.assert_array_equal(engine_logits(path, TOKENS, chunk_tokens=48, threads=2), whole)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_what_runs_has_the_tensors_that_were_planned(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture))
    runs, planned = model_spec(open_checkpoint(folder)), named_spec(folder)
    assert {(t.name, t.shape, t.copies, t.role, t.split) for t in runs.tensors} == {
        (t.name, t.shape, t.copies, t.role, t.split) for t in planned.tensors
    }


@pytest.mark.parametrize("architecture", MIXTURES)
def test_what_runs_is_the_mixture_that_was_planned(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture))
    runs, planned = model_spec(open_checkpoint(folder)), named_spec(folder)
    assert [layer.mlp for layer in runs.layers] == [layer.mlp for layer in planned.layers]


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_gguf_file_and_a_folder_of_one_mixture_have_the_same_shapes(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    specs = [
        model_spec(open_checkpoint(path))
        for path in (write_gguf(tmp_path / "m.gguf", model), write_folder(tmp_path / "m", model))
    ]
    assert len({tuple((t.name, t.shape, t.copies) for t in spec.tensors) for spec in specs}) == 1
