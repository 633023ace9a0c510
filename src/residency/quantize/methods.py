"""How the matrices of one layer are quantized: those that share their inputs together, in the order of the data."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from residency.quantize.awq import column_scales
from residency.quantize.clipping import clipped
from residency.quantize.forward import Floats, Layer
from residency.quantize.gptq import gptq
from residency.quantize.grids import IntegerMatrix, IntegerScheme
from residency.quantize.rtn import round_to_nearest

MethodName = Literal["rtn", "gptq", "awq"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What calibration says of the inputs that some matrices share."""

    energy_C: Floats  # mean of x²
    gram_CC: Floats | None  # xᵀx over all tokens, divided by their number, for methods that need it


class QuantizedMatrix(Protocol):
    """A matrix in fewer bits, whatever the format."""

    @property
    def values_RC(self) -> Floats:
        """What it multiplies by."""

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All of it, for a file."""


Matrices = dict[str, QuantizedMatrix]


class Method(Protocol):
    """Quantizes the matrices of a layer that share their inputs, one set after the other."""

    @property
    def needs_inputs(self) -> bool:
        """Whether it looks at calibration inputs."""

    @property
    def needs_gram(self) -> bool:
        """Whether it looks at how they go together."""

    def quantize(self, layer: Layer, names: tuple[str, ...], inputs: Inputs | None, done: Matrices) -> Matrices:
        """The layer's matrices `names`. May rescale what comes before them: vectors in `layer`, matrices in `done`.

        The caller puts the matrices' values into the layer.
        """


@dataclass(frozen=True, kw_only=True)
class Rtn:
    """Every matrix rounded to nearest."""

    scheme: IntegerScheme
    needs_inputs: bool = False
    needs_gram: bool = False

    def quantize(self, layer: Layer, names: tuple[str, ...], inputs: Inputs | None, done: Matrices) -> Matrices:
        """As the protocol says."""
        return {name: round_to_nearest(layer.tensors[name], self.scheme) for name in names}


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """Every matrix by GPTQ."""

    scheme: IntegerScheme
    damping: float
    needs_inputs: bool = True
    needs_gram: bool = True

    def quantize(self, layer: Layer, names: tuple[str, ...], inputs: Inputs | None, done: Matrices) -> Matrices:
        """As the protocol says."""
        assert inputs is not None and inputs.gram_CC is not None
        gram_CC = inputs.gram_CC
        return {name: gptq(layer.tensors[name], gram_CC, self.scheme, damping=self.damping) for name in names}


@dataclass(frozen=True, kw_only=True)
class Awq:
    """Columns scaled by what they meet, then rounded within clipped ranges."""

    scheme: IntegerScheme
    needs_inputs: bool = True
    needs_gram: bool = True

    def quantize(self, layer: Layer, names: tuple[str, ...], inputs: Inputs | None, done: Matrices) -> Matrices:
        """As the protocol says."""
        assert inputs is not None and inputs.gram_CC is not None
        matrices = [layer.tensors[name] for name in names]
        tied_C = _shared_values(layer) if _OUTPUT in names else None
        scales_C = column_scales(matrices, inputs.energy_C, self.scheme, tied_C)
        _scale_down_before(layer, names, scales_C, done)
        gram_CC = inputs.gram_CC / scales_C
        gram_CC /= scales_C[:, None]
        return {
            name: clipped(matrix_RC * scales_C, gram_CC, self.scheme)
            for name, matrix_RC in zip(names, matrices, strict=True)
        }


_OUTPUT, _VALUES = "self_attn.o_proj.weight", "self_attn.v_proj.weight"
_UP, _DOWN = "mlp.up_proj.weight", "mlp.down_proj.weight"


def _shared_values(layer: Layer) -> npt.NDArray[np.int64]:
    """Which value each column of the output projection meets: query heads share them, so that they are scaled alike."""
    spec = layer.spec.grouped_attention
    values = np.arange(spec.num_kv_heads * spec.head_dim).reshape(spec.num_kv_heads, 1, spec.head_dim)
    return np.repeat(values, spec.num_heads // spec.num_kv_heads, axis=1).ravel()


def _scale_down_before(layer: Layer, names: tuple[str, ...], scales_C: Floats, done: Matrices) -> None:
    """Divide by the scales what makes the inputs of `names`: a norm, or the rows of the matrix before."""
    if _OUTPUT in names:
        spec = layer.spec.grouped_attention
        scales_C = scales_C.reshape(spec.num_kv_heads, -1, spec.head_dim)[:, 0].ravel()
        _scale_rows(layer, _VALUES, scales_C, done)
        if spec.bias:
            layer.tensors["self_attn.v_proj.bias"] = layer.tensors["self_attn.v_proj.bias"] / scales_C
    elif _DOWN in names:
        _scale_rows(layer, _UP, scales_C, done)
    else:
        norm = "input_layernorm.weight" if _VALUES in names else layer.mlp_norm
        layer.tensors[norm] = layer.tensors[norm] / scales_C


def _scale_rows(layer: Layer, name: str, scales_R: Floats, done: Matrices) -> None:
    """A quantized row divided by a number is the same codes on a grid that is as much finer."""
    matrix = done[name]
    assert isinstance(matrix, IntegerMatrix)
    scaled = IntegerMatrix(grid=matrix.grid.stretched(np.reciprocal(scales_R[:, None])), codes_RC=matrix.codes_RC)
    done[name] = scaled
    layer.tensors[name] = scaled.values_RC
