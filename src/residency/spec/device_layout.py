"""Where each tensor lies in the memory of an accelerator: matrices in planes or plain values, vectors as float32."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from residency.errors import UnsupportedError
from residency.formats import I32
from residency.formats.planes import CHUNK_COLUMNS, PLANE_LAYOUTS, PlaneLayout, PlaneShape, plane_layout
from residency.spec.model import ModelSpec, TensorSpec

PLANE_ALIGNMENT = 256  # bytes: what a device reads at once, twice
DISK_ALIGNMENT = 4096  # bytes: a page, of which direct reads take whole ones
SLOTS = 2  # of streamed layers: one is computed while the next arrives
WINDOW_LAYERS = 2  # whose experts one step may bring to slots: a layer that computes, and the one that comes next
DISK_BUFFERS = 3  # in pinned RAM: one is copied from while two are read, so that the disk never waits


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
class ExpertsLayout:
    """Experts that are brought one by one. Each is its planes one after another, offsets from where it begins, in its
    home in RAM as in any slot on the device. An expert's number is its layer times `per_layer`, plus its own.
    """

    tensors: Mapping[str, DeviceTensor]  # of one expert of a layer, by the names of all
    expert_bytes: Mapping[int, int]  # of one expert of each layer that is a mixture
    num_layers: int  # all of the model's
    per_layer: int  # experts of the layer that has most
    num_experts: int  # of all mixtures together
    slots: int
    disk_experts: int  # for how many there is no home in RAM at any one time; if for one, all have a copy on disk

    @property
    def slot_bytes(self) -> int:
        """Bytes of the largest expert, in whole pages."""
        return _whole_pages(max(self.expert_bytes.values()))

    @property
    def device_bytes(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes

    @property
    def homes(self) -> int:
        """Experts for which there is a home in RAM."""
        return len(self.expert_bytes) * self.per_layer - self.disk_experts

    @property
    def host_bytes(self) -> int:
        """Bytes of pinned RAM."""
        return self.homes * self.slot_bytes

    @property
    def window(self) -> int:
        """Slots that the experts of one step may come to; those in the others stay."""
        return min(self.slots, WINDOW_LAYERS * self.per_layer)


@dataclass(frozen=True, kw_only=True)
class DeviceLayout:
    """All tensors of a model: those that stay on the device in one arena, in the order in which a token meets them;
    the last layers, where they do not fit, in RAM, from which each arrives in one of a few slots when it is needed, and
    some of these on disk; or the experts alone in RAM, and on disk.
    """

    tensors: Mapping[str, DeviceTensor]
    resident_bytes: int
    streamed_layers: tuple[int, ...]
    disk_layers: tuple[int, ...]  # of these, those that are in RAM for a moment only
    layer_bytes: int  # of the largest streamed layer, in whole pages
    experts: ExpertsLayout | None = None  # where they are brought one by one

    @property
    def device_bytes(self) -> int:
        """Bytes on the device, slots included."""
        slots_bytes = 0 if self.experts is None else self.experts.device_bytes
        return self.resident_bytes + min(SLOTS, len(self.streamed_layers)) * self.layer_bytes + slots_bytes

    @property
    def disk_buffers(self) -> int:
        """Buffers of a layer's bytes in pinned RAM that layers on the disk come through."""
        return min(DISK_BUFFERS, len(self.disk_layers))

    @property
    def host_bytes(self) -> int:
        """Bytes of pinned RAM."""
        held = len(self.streamed_layers) - len(self.disk_layers) + self.disk_buffers
        return held * self.layer_bytes + (0 if self.experts is None else self.experts.host_bytes)

    @property
    def has_planes(self) -> bool:
        """Whether any matrix is multiplied as codes."""
        placed = (self.tensors, {} if self.experts is None else self.experts.tensors)
        return any(tensor.layout is not None for tensors in placed for tensor in tensors.values())


def device_layout(
    model: ModelSpec,
    activation_type: str,
    *,
    num_streamed: int = 0,
    num_disk: int = 0,
    expert_slots: int = 0,
    disk_experts: int = 0,
) -> DeviceLayout:
    """Where `model` lies, whose plain matrices are kept in `activation_type`: the last `num_streamed` layers in RAM, of
    them `num_disk` on disk, evenly spread, so that the disk never waits for long; or all experts but `disk_experts` in
    RAM, with `expert_slots` on the device.

    UnsupportedError for a format that devices do not multiply.
    """
    streamed = tuple(range(len(model.layers) - num_streamed, len(model.layers)))
    layer_of = {tensor.name: index for index in streamed for tensor in model.layers[index].tensors}
    experts = _experts(model, activation_type, expert_slots, disk_experts) if expert_slots else None
    placed, ends = {}, dict.fromkeys((None, *streamed), 0)
    for tensor in model.tensors:
        if experts is not None and tensor.name in experts.tensors:
            continue
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
        disk_layers=tuple(streamed[(2 * index + 1) * num_streamed // (2 * num_disk)] for index in range(num_disk)),
        layer_bytes=_whole_pages(max((ends[layer] for layer in streamed), default=0)),
        experts=experts,
    )


def _experts(model: ModelSpec, activation_type: str, slots: int, disk_experts: int) -> ExpertsLayout:
    mixtures = {index: layer.experts for index, layer in enumerate(model.layers) if layer.experts}
    placed, ends = {}, dict.fromkeys(mixtures, 0)
    for index, tensors in mixtures.items():
        for tensor in tensors:
            layout, planes = _layout(model, tensor), {}
            for name, plane in _planes(replace(tensor, copies=1), layout, activation_type).items():
                planes[name] = DevicePlane(offset=ends[index], shape=plane.shape, dtype=plane.dtype)
                ends[index] += -(-plane.num_bytes // PLANE_ALIGNMENT) * PLANE_ALIGNMENT
            placed[tensor.name] = DeviceTensor(layout=layout, planes=planes)
    copies = [tensors[0].copies for tensors in mixtures.values()]
    return ExpertsLayout(
        tensors=placed,
        expert_bytes=ends,
        num_layers=len(model.layers),
        per_layer=max(copies),
        num_experts=sum(copies),
        slots=slots,
        disk_experts=disk_experts,
    )


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // DISK_ALIGNMENT) * DISK_ALIGNMENT


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
