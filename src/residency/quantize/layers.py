"""One layer quantized on the data that really reaches it: the inputs that the layers before it, quantized, make.

Matrices are taken in the order in which data meets them, each set calibrated with those before it already quantized.
Shape suffixes: S samples, T tokens of a sample, N tokens, C channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from residency.quantize.forward import Floats, Layer
from residency.quantize.methods import Inputs, Matrices, Method

BATCH_TOKENS = 1024  # that go through a part of a layer at once

_ATTENTION = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_OUTPUT = ("self_attn.o_proj.weight",)
_GATES = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_DOWN = ("mlp.down_proj.weight",)
MATRICES = (*_ATTENTION, *_OUTPUT, *_GATES, *_DOWN)


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """A layer's tensors: matrices quantized, vectors as they are now."""

    matrices: Matrices
    vectors: dict[str, Floats]

    def put_into(self, layer: Layer) -> None:
        """Let the layer compute with them."""
        layer.tensors.update(self.vectors)
        layer.tensors.update({name: matrix.values_RC for name, matrix in self.matrices.items()})


def quantize_layer(layer: Layer, method: Method, x_STC: Floats) -> LayerResult:
    """The layer quantized for the inputs x, which become its outputs, in place. The layer computes with the result.

    Without samples (S = 0) nothing is calibrated, and the method must be one that needs no inputs.
    """
    done: Matrices = {}
    _quantize_attention(layer, method, x_STC, done)
    _quantize(layer, method, _GATES, done, x_STC, lambda batch: layer.mlp_input(x_STC[batch]))
    _quantize(layer, method, _DOWN, done, x_STC, lambda batch: layer.gate(layer.mlp_input(x_STC[batch])))
    for batch in batches(x_STC):
        x_STC[batch] = layer.after_mlp(x_STC[batch], layer.gate(layer.mlp_input(x_STC[batch])))
    vectors = {name: values for name, values in layer.tensors.items() if name not in MATRICES}
    return LayerResult(matrices=done, vectors=vectors)


def _quantize_attention(layer: Layer, method: Method, x_STC: Floats, done: Matrices) -> None:
    _quantize(layer, method, _ATTENTION, done, x_STC, lambda batch: layer.attention_input(x_STC[batch]))
    columns = layer.tensors[_OUTPUT[0]].shape[1]
    attended_STC = np.empty((*x_STC.shape[:2], columns), np.float32)
    for batch in batches(x_STC):
        attended_STC[batch] = layer.attend(layer.attention_input(x_STC[batch]))
    values = done[_ATTENTION[-1]]
    _quantize(layer, method, _OUTPUT, done, x_STC, lambda batch: attended_STC[batch])
    rescaled = done[_ATTENTION[-1]] is not values
    for batch in batches(x_STC):
        if rescaled:
            attended_STC[batch] = layer.attend(layer.attention_input(x_STC[batch]))
        x_STC[batch] = layer.after_attention(x_STC[batch], attended_STC[batch])


def _quantize(
    layer: Layer,
    method: Method,
    names: tuple[str, ...],
    done: Matrices,
    x_STC: Floats,
    inputs_of: Callable[[slice], Floats],
) -> None:
    """The matrices `names`, which meet what `inputs_of` makes of a batch, into `done` and into the layer."""
    inputs = None
    if method.needs_inputs:
        columns = layer.tensors[names[0]].shape[1]
        batched = (inputs_of(batch) for batch in batches(x_STC))
        inputs = gathered(columns, batched, with_gram=method.needs_gram)
    done.update(method.quantize(layer, names, inputs, done))
    layer.tensors.update({name: done[name].values_RC for name in names})


def inputs_of(layer: Layer, name: str, x_STC: Floats) -> Iterator[Floats]:
    """What the layer's matrix `name` meets while the layer gets x, some samples at a time."""
    for batch in batches(x_STC):
        h_STC = layer.attention_input(x_STC[batch])
        if name not in _ATTENTION:
            h_STC = layer.attend(h_STC)
        if name in (*_GATES, *_DOWN):
            h_STC = layer.mlp_input(layer.after_attention(x_STC[batch], h_STC))
        yield layer.gate(h_STC) if name in _DOWN else h_STC


def advance(layer: Layer, x_STC: Floats) -> None:
    """The layer's outputs in place of its inputs."""
    for batch in batches(x_STC):
        x_STC[batch] = layer.forward(x_STC[batch])


def gathered(columns: int, inputs: Iterator[Floats], *, with_gram: bool) -> Inputs:
    """What all inputs say together."""
    gram_CC = np.zeros((columns, columns), np.float32) if with_gram else None
    energy_C = np.zeros(columns, np.float32)
    count = 0
    for batch in inputs:
        x_NC = batch.reshape(-1, columns)
        if gram_CC is not None:
            gram_CC += x_NC.T @ x_NC
        energy_C += np.einsum("nc,nc->c", x_NC, x_NC)
        count += len(x_NC)
    share = np.float32(1 / count)
    if gram_CC is not None:
        gram_CC *= share
    return Inputs(energy_C=energy_C * share, gram_CC=gram_CC)


def batches(x_STC: Floats) -> Iterator[slice]:
    """Samples that go through together."""
    step = max(1, BATCH_TOKENS // x_STC.shape[1])
    for start in range(0, len(x_STC), step):
        yield slice(start, min(start + step, len(x_STC)))
