"""Memory of an accelerator: arenas of the plan's arrays, and a model's weights out of its checkpoint."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from residency.formats import unpack_rows
from residency.formats.planes import PlaneLayout, to_planes
from residency.kernels.device import DeviceExperts, DeviceMatrix
from residency.planner.plan import Buffer
from residency.spec.device_layout import DeviceLayout, DevicePlane, DeviceTensor
from residency.spec.model import ModelSpec, MoeSpec, TensorSpec
from residency.store.convert import stored_chunks
from residency.store.device_disk import LayerFiles
from residency.store.device_experts import DeviceExpertSlots
from residency.store.device_stream import StreamedLayers

Progress = Callable[[int, int], None]  # bytes done, bytes in all

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
}
_ALIGNMENT = 256
_RANDOM_VALUE = 0.02  # the largest of made-up groups: products of a few thousand columns stay around 1


class DeviceArena:
    """The plan's buffers as tensors of one allocation, and twins of the first ones, the inputs, in pinned memory."""

    def __init__(self, buffers: Iterable[Buffer], inputs: Iterable[str], device: str) -> None:
        listed, names = tuple(buffers), set(inputs)
        offsets, end = [], 0
        for buffer in listed:
            offsets.append(end)
            end += -(-buffer.num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._bytes = torch.zeros(end, dtype=torch.uint8, device=device)
        self.tensors = {
            each.name: _typed(self._bytes[at : at + each.num_bytes], each.dtype, each.shape)
            for each, at in zip(listed, offsets, strict=True)
        }
        self._input_bytes = max(
            at + each.num_bytes for each, at in zip(listed, offsets, strict=True) if each.name in names
        )
        self._host = torch.zeros(self._input_bytes, dtype=torch.uint8, pin_memory=device != "cpu")
        self._uploaded: Any = None if device == "cpu" else torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.inputs: dict[str, npt.NDArray[Any]] = {
            each.name: _typed(self._host[at : at + each.num_bytes], each.dtype, each.shape).numpy()
            for each, at in zip(listed, offsets, strict=True)
            if each.name in names
        }

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self._bytes.numel()

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Write `inputs` inside; they are brought to the device at the end. Waits until those before have arrived: a
        prompt's chunks are started one after another, and nothing is read back between them.
        """
        if self._uploaded is not None:
            self._uploaded.synchronize()
        yield
        self._bytes[: self._input_bytes].copy_(self._host, non_blocking=True)
        if self._uploaded is not None:
            self._uploaded.record()


class DeviceWeights:
    """The tensors of a model on a device, by the names of `transformers`, asked for in the order of a forward pass.

    The layers that a layout streams lie in pinned RAM. Asking for the first tensor of one makes the device wait until
    the layer has arrived in its slot, and starts the copy of a later one, on a stream of its own, into the slot whose
    last reader has been started. Nothing here waits on the host, so a CUDA graph records the copies with the rest.
    Experts that are `paged` are not among these.
    """

    residents: None = None  # spans that stream from a store are the processor's

    def __init__(
        self,
        model: ModelSpec,
        layout: DeviceLayout,
        activation_type: str,
        device: str,
        paged: DeviceExpertSlots | None = None,
        files: LayerFiles | None = None,
    ) -> None:
        """`files` are of the layers on disk."""
        self.paged = paged
        self._model = model
        self._layout = layout
        self._type = DTYPES[activation_type]
        self._tensors = {tensor.name: tensor for tensor in model.tensors}
        self._layer_of = {tensor.name: index for index, layer in enumerate(model.layers) for tensor in layer.tensors}
        self._bytes = torch.zeros(layout.resident_bytes, dtype=torch.uint8, device=device)
        self._streamed = StreamedLayers(layout, device, files)

    @property
    def num_bytes(self) -> int:
        """Bytes on the device, slots included."""
        return self._layout.device_bytes

    def close(self) -> None:
        """Let the pinned RAM go; no step is under way any more."""
        self._streamed.close()

    def begin_step(self, *, copies: bool = True) -> None:
        """Start copying the first streamed layers, before anything of a step is computed; without `copies`, in a step
        that reads none of them, nothing is copied.
        """
        self._streamed.begin(copies=copies)
        if copies and self.paged is not None:
            self.paged.begin()

    def kept_vector(self, name: str) -> npt.NDArray[np.float32]:
        """A bias from where it is kept between steps, on the host."""
        plane = self._layout.tensors[name].planes["codes"]
        if plane.layer in self._layout.disk_layers:
            return self._streamed.stored(plane.layer, plane.offset, plane.num_bytes).view(np.float32)
        values: npt.NDArray[np.float32] = self._home(plane).cpu().numpy()
        return values

    @property
    def head(self) -> DeviceMatrix:
        """The matrix that makes logits: the output head, or the embedding tied to it."""
        return self.matrix((self._model.head or self._model.embedding).name)

    @property
    def embedding(self) -> DeviceMatrix:
        """The matrix whose rows tokens begin as."""
        return self.matrix(self._model.embedding.name)

    def matrix(self, name: str) -> DeviceMatrix:
        """A matrix."""
        tensor, placed = self._tensors[name], self._layout.tensors[name]
        order = None if tensor.packed is None or tensor.packed.order is None else self.vector(tensor.packed.order)
        planes = {part: self._view(plane) for part, plane in placed.planes.items()}
        return _matrix(tensor, placed, planes, order)

    def experts(self, index: int) -> DeviceExperts:
        """The experts of a layer that is a mixture."""
        layer = self._model.layers[index]
        assert isinstance(layer.mlp, MoeSpec)
        if self.paged is None:
            gate, up, down = (self.matrix(tensor.name) for tensor in layer.experts)
            return DeviceExperts(spec=layer.mlp, gate=gate, up=up, down=down)
        gate, up, down = (self._paged_matrix(tensor, self.paged) for tensor in layer.experts)
        return DeviceExperts(spec=layer.mlp, gate=gate, up=up, down=down, paged=self.paged.paged(index))

    def _paged_matrix(self, tensor: TensorSpec, paged: DeviceExpertSlots) -> DeviceMatrix:
        placed = paged.layout.tensors[tensor.name]
        return _matrix(tensor, placed, {part: _plane(paged.first_slot, at) for part, at in placed.planes.items()})

    def vector(self, name: str) -> torch.Tensor:
        """A norm's weights or a bias, as float32; an order of columns, as int32."""
        return self._view(self._layout.tensors[name].planes["codes"])

    def load(self, progress: Progress | None = None) -> None:
        """Read all tensors from their sources. FileError if a source is shorter than it was."""
        done = 0
        streamed = {index: layer.tensors[-1].name for index, layer in enumerate(self._model.layers)}
        for tensor in self._model.tensors:
            layer = self._layer_of.get(tensor.name)
            if self.paged is not None and layer is not None and tensor.name in self.paged.layout.tensors:
                self._load_experts(tensor, layer, self.paged)
            elif layer is None or not self._streamed.is_kept(layer):
                self._load_tensor(tensor)
            if layer in self._layout.disk_layers and tensor.name == streamed[layer]:
                self._streamed.keep(layer, self._streamed.home(layer))
            done += tensor.num_bytes
            if progress:
                progress(done, self._model.weight_bytes)

    def randomise(self, seed: int = 0) -> None:
        """Make the weights up: of the right shapes and sizes, so that speed can be measured, and without a meaning.

        Streamed layers that are alike have the same, and so have experts: to make up all of a large model on the host
        would take minutes.
        """
        here = {kind: torch.Generator(device=kind).manual_seed(seed) for kind in {"cpu", self._bytes.device.type}}
        alike: dict[object, list[int]] = {}
        for layer in self._layout.streamed_layers:
            alike.setdefault(self._model.layers[layer].likeness, []).append(layer)
        self._make_up(None, here[self._bytes.device.type])
        for first, *others in alike.values():
            self._make_up(first, here["cpu"])
            for layer in (first, *others):
                self._streamed.keep(layer, self._streamed.home(first))
        if self.paged is not None:
            self._randomise_experts(self.paged, here["cpu"])

    def _make_up(self, layer: int | None, generator: torch.Generator) -> None:
        """Of a streamed layer, or of all that stays on the device."""
        for placed in self._layout.tensors.values():
            for part, plane in placed.planes.items():
                if plane.layer == layer:
                    _fill(self._home(plane), part, plane, placed.layout, generator)

    def _randomise_experts(self, paged: DeviceExpertSlots, generator: torch.Generator) -> None:
        made: dict[object, torch.Tensor] = {}
        for layer in paged.layout.expert_bytes:
            spec = self._model.layers[layer]
            if paged.is_kept(layer):
                continue
            if spec.likeness not in made:
                made[spec.likeness] = paged.home(layer, 0)
                for tensor in spec.experts:
                    placed = paged.layout.tensors[tensor.name]
                    for part, plane in placed.planes.items():
                        _fill(_plane(paged.home(layer, 0), plane), part, plane, placed.layout, generator)
            for expert in range(paged.layout.per_layer):
                paged.home(layer, expert).copy_(made[spec.likeness])
            paged.keep(layer)

    def _load_experts(self, tensor: TensorSpec, layer: int, paged: DeviceExpertSlots) -> None:
        if not paged.is_kept(layer):
            placed = paged.layout.tensors[tensor.name]
            for number, copy in enumerate(tensor.each_copy):
                home = paged.home(layer, number)
                views = {part: _plane(home, plane) for part, plane in placed.planes.items()}
                self._load_rows(copy, placed.layout, views, 0)
        if tensor is self._model.layers[layer].experts[-1]:
            paged.keep(layer)

    def _load_tensor(self, tensor: TensorSpec) -> None:
        placed = self._layout.tensors[tensor.name]
        views = {part: self._home(plane) for part, plane in placed.planes.items()}
        if len(tensor.shape) == 1:
            (values,) = stored_chunks(tensor, as_rows=True)
            views["codes"].view(torch.uint8).copy_(torch.from_numpy(values))
            return
        first = 0
        for copy in tensor.each_copy:
            first = self._load_rows(copy, placed.layout, views, first)

    def _load_rows(
        self, tensor: TensorSpec, layout: PlaneLayout | None, views: Mapping[str, torch.Tensor], first: int
    ) -> int:
        """Put a matrix into planes from a row on; the row after its last."""
        for rows_RB in stored_chunks(tensor, as_rows=True):
            for part, plane in self._planes(tensor, layout, rows_RB).items():
                into = views[part][first : first + len(rows_RB)]
                into.copy_(plane.view(into.dtype))
            first += len(rows_RB)
        return first

    def _planes(
        self, tensor: TensorSpec, layout: PlaneLayout | None, rows_RB: npt.NDArray[np.uint8]
    ) -> dict[str, torch.Tensor]:
        if layout is None:
            return {"codes": torch.from_numpy(unpack_rows(tensor.format, rows_RB)).to(self._type)}
        return {part: torch.from_numpy(plane) for part, plane in to_planes(tensor.format, rows_RB).items()}

    def _view(self, plane: DevicePlane) -> torch.Tensor:
        """Where kernels read a plane, which for a streamed layer is its slot."""
        return _plane(self._bytes if plane.layer is None else self._streamed.slot(plane.layer), plane)

    def _home(self, plane: DevicePlane) -> torch.Tensor:
        """Where a plane is kept between steps."""
        return _plane(self._bytes if plane.layer is None else self._streamed.home(plane.layer), plane)


def _matrix(
    tensor: TensorSpec, placed: DeviceTensor, planes: dict[str, torch.Tensor], order: torch.Tensor | None = None
) -> DeviceMatrix:
    rows, columns = tensor.shape
    return DeviceMatrix(rows=rows, columns=columns, layout=placed.layout, planes=planes, order=order)


def _fill(
    view: torch.Tensor, part: str, plane: DevicePlane, layout: PlaneLayout | None, generator: torch.Generator
) -> None:
    """Fill a plane with values of a usual size."""
    if len(plane.shape) == 1:
        view.fill_(1.0)
    elif part == "codes" and layout is None:
        view.normal_(0, plane.shape[1] ** -0.5, generator=generator)
    elif layout is not None and view.is_floating_point():
        view.fill_(_RANDOM_VALUE / 2 ** (layout.code_bits - 1))
    elif layout is not None and part == "zeros":
        view.fill_(2 ** (layout.code_bits - 1))
    else:
        view.view(torch.uint8).random_(0, 256, generator=generator)


def _plane(held: torch.Tensor, plane: DevicePlane) -> torch.Tensor:
    dtype = DTYPES[plane.dtype]
    num_bytes = int(np.prod(plane.shape)) * dtype.itemsize
    return held[plane.offset : plane.offset + num_bytes].view(dtype).view(plane.shape)


def _typed(part: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    return part.view(DTYPES[dtype]).view(shape)
