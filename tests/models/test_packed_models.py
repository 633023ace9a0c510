"""Models of packed integers compute what their values say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from residency.errors import UnsupportedError
from residency.formats import format_named
from residency.kernels.simd.tiles import has_tiles
from residency.models.specs import model_spec
from residency.spec import open_checkpoint
from support.engines import engine_logits
from support.folders import write_folder
from support.models import MIXTURES, small_model
from support.packed_folders import Kind, write_packed
from support.plain import Rounding, plain_logits
from support.reference import reference_logits

INT4 = format_named("INT4_G128")  # any that is no float: products with it round their inputs
TOKENS = np.random.default_rng(0).integers(0, 250, 100).tolist()
KINDS = {
    "gptq": Kind(layout="gptq"),
    "gptq, act-order": Kind(layout="gptq", shuffled=True),
    "gptq, 3 bits": Kind(layout="gptq", bits=3),
    "awq": Kind(layout="awq", group=64),
    "packed": Kind(layout="packed", symmetric=True, scales="BF16"),
    "packed, act-order": Kind(layout="packed", shuffled=True, symmetric=True, scales="BF16"),
    "int8": Kind(layout="int8", bits=8, group=None, symmetric=True, scales="BF16"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_logits_are_those_of_the_values_in_float64(kind: Kind, tmp_path: Path) -> None:
    """But for activations in int8, see test_logits.py."""
    model = small_model("qwen2")
    meant = write_packed(tmp_path / "packed", model, kind)
    ours = engine_logits(tmp_path / "packed", TOKENS, prompt_tokens=90, chunk_tokens=32)
    plain = write_folder(tmp_path / "plain", model, weights=meant)
    expected = plain_logits(model_spec(open_checkpoint(plain)), TOKENS)
    assert usual(ours, expected) < 0.015


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.shuffled])
def test_one_layer_computes_what_its_values_and_rounded_activations_say(name: str, tmp_path: Path) -> None:
    """Rounded where the engine rounds, little is left."""
    model = small_model("qwen2", num_layers=1)
    meant = write_packed(tmp_path / "packed", model, KINDS[name])
    ours = engine_logits(tmp_path / "packed", TOKENS, prompt_tokens=90, chunk_tokens=32)
    spec = model_spec(open_checkpoint(write_folder(tmp_path / "plain", model, weights=meant)))
    matrices = (replace(t, format=INT4) if len(t.shape) == 2 else t for t in spec.layers[0].tensors)
    spec = replace(spec, layers=(replace(spec.layers[0], tensors=tuple(matrices)),))
    expected = plain_logits(spec, TOKENS, rounding=Rounding(bf16_tokens=90 if has_tiles() else 0))
    assert usual(ours, expected) < (2e-3 if has_tiles() else 1e-3)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_every_architecture_reads_packed_integers(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    meant = write_packed(tmp_path / "packed", model, KINDS["gptq, act-order"])
    ours = engine_logits(tmp_path / "packed", TOKENS, prompt_tokens=90)
    plain = write_folder(tmp_path / "plain", model, weights=meant)
    assert usual(ours, plain_logits(model_spec(open_checkpoint(plain)), TOKENS)) < 0.015


@pytest.mark.slow  # for the kernels to be compiled
@pytest.mark.parametrize("name", ["gptq", "awq", "packed"])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_read_as_packed_integers(architecture: str, name: str, tmp_path: Path) -> None:
    """A token passes all experts, so that rounding sends none another way."""
    model = small_model(architecture, num_experts=4, experts_per_token=4, num_layers=2)
    meant = write_packed(tmp_path / "packed", model, KINDS[name])
    ours = engine_logits(tmp_path / "packed", TOKENS, prompt_tokens=90)
    plain = write_folder(tmp_path / "plain", model, weights=meant)
    assert usual(ours, plain_logits(model_spec(open_checkpoint(plain)), TOKENS)) < 0.015


def test_experts_in_act_order_are_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed", small_model("mixtral"), KINDS["gptq, act-order"])
    with pytest.raises(UnsupportedError, match="an order of its own"):
        model_spec(open_checkpoint(tmp_path / "packed"))


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    """But for activations in int8, as above; compressed-tensors unpacks the matrices there."""
    pytest.importorskip("compressed_tensors", reason="transformers reads packed integers with it")
    kind = Kind(layout="packed", symmetric=True)
    write_packed(tmp_path / "packed", small_model("qwen2"), kind)
    ours = engine_logits(tmp_path / "packed", TOKENS, prompt_tokens=90)
    assert usual(ours, reference_logits(tmp_path / "packed", TOKENS)) < 0.015


def usual(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """The root of the mean squared difference, in parts of the largest logit."""
    return float(np.sqrt(((ours - theirs) ** 2).mean()) / np.abs(theirs).max())
