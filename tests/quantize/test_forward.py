"""A layer's forward pass in parts is the model's."""

from pathlib import Path

import numpy as np
import pytest

from residency.models.specs import model_spec
from residency.quantize.forward import Layer, rms_norm
from residency.quantize.job import embedded
from residency.quantize.layers import advance
from residency.quantize.source import read_values
from residency.spec.opening import open_checkpoint
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, small_model
from support.plain import plain_logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_layer_after_layer_gives_the_models_logits(architecture: str, kind: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    path = write_folder(tmp_path / "m", model) if kind == "folder" else write_gguf(tmp_path / "m.gguf", model)
    spec = model_spec(open_checkpoint(path))
    tokens = np.random.default_rng(1).integers(0, spec.vocabulary, (1, 40))
    x = embedded(spec, tokens)
    for layer in spec.layers:
        tensors = {tensor.name.split(".", 3)[3]: read_values(tensor) for tensor in layer.tensors}
        advance(Layer(layer, spec.norm_epsilon, tensors), x)
    normed = rms_norm(x[0], read_values(spec.final_norm), spec.norm_epsilon)
    found = normed @ read_values(spec.head or spec.embedding).T
    np.testing.assert_allclose(found, plain_logits(spec, tokens[0].tolist()), atol=2e-4, rtol=1e-3)
