"""Where each tensor lies in the memory of an accelerator: matrices in planes or plain values, vectors as float32."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from residency.errors import UnsupportedError
from residency.formats.planes import PLANE_LAYOUTS, PlaneLayout, PlaneShape
from residency.spec.model import ModelSpec, TensorSpec

PLANE_ALIGNMENT = 256  # bytes: what a device reads at once, twice
ACTIVATION_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class DevicePlane:
    """One plane of a tensor."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """A tensor's planes by name; plain values are the plane "codes" alone."""

    layout: PlaneLayout | None
    planes: Mapping[str, DevicePlane]


@dataclass(frozen=True, kw_only=True)
class DeviceLayout:
    """All tensors of a model in one arena, in the order in which a token meets them."""

    tensors: Mapping[str, DeviceTensor]
    total_bytes: int

    @cached_property
    def read_bytes_per_token(self) -> int:
        """What decoding one token reads, as good as: all but the rows of the embedding that it does not look up."""
        return self.total_bytes


def device_layout(model: ModelSpec, activation_type: str, quant: PlaneLayout | None = None) -> DeviceLayout:
    """The arena of `model`, whose plain matrices are kept in `activation_type`.

    With `quant` all matrices of the layers are laid out so, whatever the checkpoint has, for weights that are made up.
    UnsupportedError for a format that devices do not multiply.
    """
    placed, end = {}, 0
    for tensor in model.tensors:
        layout = quant if quant is not None and tensor.role == "matrix" else _layout(model, tensor)
        planes = {}
        for name, plane in _planes(tensor, layout, activation_type).items():
            planes[name] = DevicePlane(offset=end, shape=plane.shape, dtype=plane.dtype)
            end += -(-_bytes_of(plane) // PLANE_ALIGNMENT) * PLANE_ALIGNMENT
        placed[tensor.name] = DeviceTensor(layout=layout, planes=planes)
    return DeviceLayout(tensors=placed, total_bytes=end)


def _layout(model: ModelSpec, tensor: TensorSpec) -> PlaneLayout | None:
    if tensor.format.is_float or len(tensor.shape) == 1:
        return None
    if tensor.format.name not in PLANE_LAYOUTS:
        raise UnsupportedError(
            f"{model.name} holds {tensor.name} in {tensor.format.name}, which a CUDA device does not multiply yet; "
            f"run it with --device cpu, or a file in {', '.join(PLANE_LAYOUTS)}."
        )
    return PLANE_LAYOUTS[tensor.format.name]


def _planes(tensor: TensorSpec, layout: PlaneLayout | None, activation_type: str) -> dict[str, PlaneShape]:
    if len(tensor.shape) == 1:
        return {"codes": PlaneShape(tensor.shape, "float32")}
    if layout is None:
        return {"codes": PlaneShape(tensor.shape, activation_type)}
    return layout.shapes(*tensor.shape)


def _bytes_of(plane: PlaneShape) -> int:
    if plane.dtype not in ACTIVATION_BYTES:
        return plane.num_bytes
    values = 1
    for extent in plane.shape:
        values *= extent
    return values * ACTIVATION_BYTES[plane.dtype]
