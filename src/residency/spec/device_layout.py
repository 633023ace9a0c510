"""Where each tensor lies in the memory of an accelerator: matrices in planes or plain values, vectors as float32."""

from collections.abc import Mapping
from dataclasses import dataclass

from residency.errors import UnsupportedError
from residency.formats import I32
from residency.formats.planes import CHUNK_COLUMNS, PLANE_LAYOUTS, PlaneLayout, PlaneShape, plane_layout
from residency.spec.model import ModelSpec, TensorSpec

PLANE_ALIGNMENT = 256  # bytes: what a device reads at once, twice
SLOTS = 2  # of streamed layers: one is computed while the next arrives


@dataclass(frozen=True, kw_only=True)
class DevicePlane:
    """One plane of a tensor. `layer` is that of a streamed one, whose offset is from where the layer begins."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    layer: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the plane."""
        return PlaneShape(self.shape, self.dtype).num_bytes


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """A tensor's planes by name; plain values are the plane "codes" alone. Experts' rows lie one after another."""

    layout: PlaneLayout | None
    planes: Mapping[str, DevicePlane]

    @property
    def num_bytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.num_bytes for plane in self.planes.values())


@dataclass(frozen=True, kw_only=True)
class DeviceLayout:
    """All tensors of a model: those that stay on the device in one arena, in the order in which a token meets them;
    the last layers, where they do not fit, in RAM, from which each arrives in one of a few slots when it is needed.
    """

    tensors: Mapping[str, DeviceTensor]
    resident_bytes: int
    streamed_layers: tuple[int, ...]
    layer_bytes: int  # of the largest streamed layer

    @property
    def device_bytes(self) -> int:
        """Bytes on the device, slots included."""
        return self.resident_bytes + min(SLOTS, len(self.streamed_layers)) * self.layer_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of pinned RAM."""
        return len(self.streamed_layers) * self.layer_bytes


def device_layout(model: ModelSpec, activation_type: str, *, num_streamed: int = 0) -> DeviceLayout:
    """Where `model` lies, whose plain matrices are kept in `activation_type`, the last `num_streamed` layers in RAM.

    UnsupportedError for a format that devices do not multiply.
    """
    streamed = tuple(range(len(model.layers) - num_streamed, len(model.layers)))
    layer_of = {tensor.name: index for index in streamed for tensor in model.layers[index].tensors}
    placed, ends = {}, dict.fromkeys((None, *streamed), 0)
    for tensor in model.tensors:
        layout = _layout(model, tensor)
        layer, planes = layer_of.get(tensor.name), {}
        for name, plane in _planes(tensor, layout, activation_type).items():
            planes[name] = DevicePlane(offset=ends[layer], shape=plane.shape, dtype=plane.dtype, layer=layer)
            ends[layer] += -(-plane.num_bytes // PLANE_ALIGNMENT) * PLANE_ALIGNMENT
        placed[tensor.name] = DeviceTensor(layout=layout, planes=planes)
    return DeviceLayout(
        tensors=placed,
        resident_bytes=ends[None],
        streamed_layers=streamed,
        layer_bytes=max((ends[layer] for layer in streamed), default=0),
    )


def _layout(model: ModelSpec, tensor: TensorSpec) -> PlaneLayout | None:
    if tensor.format.is_float or len(tensor.shape) == 1:
        return None
    layout = plane_layout(tensor.format)
    if layout is None:
        raise UnsupportedError(
            f"{model.name} holds {tensor.name} in {tensor.format.name}, which a CUDA device does not multiply yet; "
            f"run it with --device cpu, or a file in {', '.join(PLANE_LAYOUTS)} or integers of 4 or 8 bits."
        )
    return layout


def _planes(tensor: TensorSpec, layout: PlaneLayout | None, activation_type: str) -> dict[str, PlaneShape]:
    if len(tensor.shape) == 1:
        return {"codes": PlaneShape(tensor.shape, "int32" if tensor.format == I32 else "float32")}
    rows, columns = tensor.copies * tensor.shape[0], tensor.shape[1]
    if layout is None:
        return {"codes": PlaneShape((rows, columns), activation_type)}
    whole = max(layout.group_columns, 256 if layout.has_supers else CHUNK_COLUMNS)
    if columns % whole:
        raise UnsupportedError(
            f"{tensor.name} has rows of {columns} values, which are not whole groups of {whole}; run the model "
            "in another format, or with --device cpu."
        )
    return layout.shapes(rows, columns)
