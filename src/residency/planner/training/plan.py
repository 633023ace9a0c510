"""Training memory, class by class: weights, master weights, gradients, optimizer states, activations, and the peak."""

from residency.errors import UsageError
from residency.planner.training.memory import Origin, StageMemory, TrainingFigure, TrainingMemory
from residency.planner.training.options import TrainingOptions
from residency.planner.training.phases import StageActivations, stage_phases
from residency.planner.training.published import published_activation_bytes
from residency.planner.training.states import TensorBytes, gradient_bytes, share, tensor_bytes, weight_bytes
from residency.planner.training.tensors import DeviceTensor, absmax_bytes, check_targets, nf4_bytes, stage_tensors
from residency.spec.model import ModelSpec
from residency.spec.ranks import check_tensor_parallel

OF_TORCH = ("adamw", "sgd", "adafactor", "muon")  # compared with torch.optim


def plan_training(model: ModelSpec, training: TrainingOptions) -> TrainingMemory:
    """What each device holds while `model` is trained. UsageError for degrees that the model cannot be shared by,
    a context that it does not have, and adapters beside matrices that it does not have.
    """
    _check(model, training)
    stages = tuple(_stage(model, training, stage) for stage in range(training.pipeline_parallel))
    whole = TrainingOptions(lora=training.lora)
    return TrainingMemory(
        options=training,
        stages=stages,
        trainable_parameters=sum(t.num_values for t in stage_tensors(model, whole, 0) if t.trainable),
        published_activations=published_activation_bytes(model, training),
    )


def _stage(model: ModelSpec, training: TrainingOptions, stage: int) -> StageMemory:
    tensors = stage_tensors(model, training, stage)
    held = tensor_bytes(tensors, training)
    activations = StageActivations.of(model, training, stage)
    offloaded = _offloaded(held, tensors, training)
    on_device = TensorBytes(
        weights=0 if training.offload_parameters else held.weights,
        master_weights=0 if training.offload_optimizer else held.master_weights,
        gradients=0 if training.offload_optimizer and training.zero_stage >= 2 else held.gradients,
        optimizer=0 if training.offload_optimizer else held.optimizer,
    )
    return StageMemory(
        stage=stage,
        num_layers=len(model.layers) // training.pipeline_parallel,
        weights=on_device.weights,
        master_weights=on_device.master_weights,
        gradients=on_device.gradients,
        optimizer=on_device.optimizer,
        activations=activations.stored,
        ram=sum(figure.num_bytes for figure in offloaded),
        phases=stage_phases(model, training, stage, on_device, activations),
        figures=(*_figures(on_device, tensors, activations, training), *offloaded),
    )


def _offloaded(held: TensorBytes, tensors: tuple[DeviceTensor, ...], training: TrainingOptions) -> list[TrainingFigure]:
    """What one device keeps in RAM: optimizer states, master weights and float32 gradients (ZeRO-Offload, arXiv
    2101.06840: 16 bytes a parameter with AdamW), and parameters.
    """
    found = []
    if training.offload_optimizer:
        gradients = share(4 * sum(t.num_values for t in tensors if t.trainable), training.shards(1))
        found += [
            _ram("optimizer states", held.optimizer, f"{training.optimizer}, as on a device"),
            _ram("master weights", held.master_weights, "float32"),
            _ram("gradients", gradients, "float32, where the processor steps"),
        ]
    if training.offload_parameters:
        found.append(_ram("weights", held.weights, "this rank's share"))
    return [figure for figure in found if figure.num_bytes]


def _ram(name: str, num_bytes: int, arithmetic: str) -> TrainingFigure:
    return TrainingFigure(name=name, num_bytes=num_bytes, origin="modelled", arithmetic=arithmetic, place="ram")


def _figures(
    held: TensorBytes, tensors: tuple[DeviceTensor, ...], activations: StageActivations, training: TrainingOptions
) -> list[TrainingFigure]:
    """Every amount on the device with its arithmetic; classes that come to nothing are left out."""
    trainable = sum(t.num_values for t in tensors if t.trainable)
    gradient = sum(gradient_bytes(t, training) for t in tensors) // max(trainable, 1)
    shared = {stage: f" / {training.shards(stage)} ranks" if training.shards(stage) > 1 else "" for stage in (1, 2, 3)}
    states_origin: Origin = "exact" if training.optimizer in OF_TORCH else "modelled"
    lines: list[tuple[str, int, Origin, str]] = [
        *((name, num_bytes, "exact", text) for name, num_bytes, text in _weight_lines(held, tensors, training)),
        ("master weights", held.master_weights, "exact", f"{trainable:,} parameters x 4 bytes{shared[1]}"),
        ("gradients", held.gradients, "exact", f"{trainable:,} parameters x {gradient} bytes{shared[2]}"),
        ("optimizer states", held.optimizer, states_origin, f"{training.optimizer} of {trainable:,}{shared[1]}"),
    ]
    found = [
        TrainingFigure(name=name, num_bytes=num_bytes, origin=origin, arithmetic=arithmetic)
        for name, num_bytes, origin, arithmetic in lines
        if num_bytes
    ]
    return [*found, *activations.figures]


def _weight_lines(
    held: TensorBytes, tensors: tuple[DeviceTensor, ...], training: TrainingOptions
) -> list[tuple[str, int, str]]:
    """The weights in one line, or apart: adapters, or packed matrices, their scales and the rest."""
    values, lora = sum(t.num_values for t in tensors), training.lora
    if training.shards(3) > 1:
        return [("weights", held.weights, f"{values:,} parameters / {training.shards(3)} ranks")]
    each = f"x {training.numerics.weight_bytes} bytes"
    if lora is None:
        return [("weights", held.weights, f"{values:,} parameters {each}")]
    if not lora.nf4:
        adapters = [t for t in tensors if t.is_adapter]
        num_values, num_bytes = sum(t.num_values for t in adapters), sum(weight_bytes(t, training) for t in adapters)
        return [
            ("frozen weights", held.weights - num_bytes, f"{values - num_values:,} parameters {each}"),
            ("adapters", num_bytes, f"{num_values:,} parameters of rank {lora.rank}"),
        ]
    packed = sum(t.num_values for t in tensors if t.is_nf4)
    scales = absmax_bytes(tensors, double_quantization=lora.double_quantization)
    scale = "1 byte, and scales of scales" if lora.double_quantization else "4 bytes"
    rest = held.weights - nf4_bytes(tensors) - scales
    return [
        ("NF4 weights", nf4_bytes(tensors), f"{packed:,} parameters x 4 bits"),
        ("NF4 scales", scales, f"{packed:,} / 64 blocks x {scale}"),
        ("unquantized weights", rest, f"{values - packed:,} parameters, adapters included"),
    ]


def _check(model: ModelSpec, training: TrainingOptions) -> None:
    check_tensor_parallel(model, training.tensor_parallel)
    if training.lora:
        check_targets(model, training.lora)
    if len(model.layers) % training.pipeline_parallel:
        raise UsageError(
            f"{model.name} has {len(model.layers)} layers, which {training.pipeline_parallel} pipeline stages cannot "
            f"share evenly; give a divisor of {len(model.layers)}."
        )
    if training.context_tokens > model.max_context_tokens:
        raise UsageError(
            f"a context of {training.context_tokens} tokens is {training.context_tokens - model.max_context_tokens} "
            f"more than {model.name} has; give --context {model.max_context_tokens} or less."
        )
    if training.sequence_parallel and training.context_tokens % training.tensor_parallel:
        raise UsageError(
            f"{training.context_tokens} tokens cannot be shared evenly by {training.tensor_parallel} sequence-parallel "
            f"ranks; give a multiple of {training.tensor_parallel}."
        )
