"""From an answer, full of objects, to its record: figures, reasons and where each figure comes from."""

from residency.hardware import Device
from residency.planner.answers import (
    AnswerRecord,
    ChangeFigures,
    DeviceFigures,
    ForecastFigures,
    ModelFigures,
    Origin,
    PhaseFigures,
    PlacementFigures,
)
from residency.planner.deployment import Deployment, Question
from residency.planner.engines import can_run
from residency.planner.placing import DeviceBytes
from residency.planner.quality import measured_losses
from residency.planner.search import Answer
from residency.planner.serving import Phase, ServingForecast
from residency.spec.model import ModelSpec
from residency.spec.state import KvFormat
from residency.units import binary_bytes, decimal_bytes, operations_rate, rate, seconds

_FITTED_DEVICES = ("A100", "H100")  # those whose measurements the efficiencies are fitted to


def record(answer: Answer) -> AnswerRecord:
    """The record of an answer."""
    question, deployment = answer.question, answer.deployment
    forecast = deployment.forecast
    assert forecast is not None
    return AnswerRecord(
        model=model_figures(deployment.model, deployment.choice.kv),
        machine=question.machine.name,
        status=question.device.status,
        engine=question.engine.name,
        goal=question.goal,
        fits=deployment.fits,
        missing_bytes=deployment.placement.missing_bytes,
        placement=_placement(deployment, question.engine.chunk_tokens(question.device), forecast),
        devices=tuple(
            _device(each, usable_bytes=question.device.usable_bytes)
            for _ in range(deployment.choice.replicas)
            for each in deployment.placement.devices
        ),
        forecast=_forecast(question, deployment, forecast, answer.turning_batch),
        training=None,
        bottleneck=_bottleneck(question, deployment, forecast),
        reasons=_reasons(answer),
        nearest=None
        if answer.nearest is None
        else _change(_option(answer.nearest, question), answer.nearest, deployment),
        changes=tuple(_change(change.option, change.deployment, deployment) for change in answer.changes),
        weighed=answer.num_weighed,
        optimal=answer.is_optimal,
        origins=_origins(question, deployment),
    )


def model_figures(model: ModelSpec, kv: KvFormat) -> ModelFigures:
    """What is told of a model, its states with keys and values in the format `kv`."""
    return ModelFigures(
        name=model.name,
        architecture=model.architecture,
        format=model.format_label,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        weight_bytes=model.weight_bytes,
        checkpoint_bytes=model.checkpoint_bytes,
        read_bytes_per_token=model.read_bytes_per_token,
        max_context_tokens=model.max_context_tokens,
        states=model.states(kv),
        notes=model.notes,
    )


def _device(device: DeviceBytes, *, usable_bytes: int) -> DeviceFigures:
    return DeviceFigures(
        **vars(device), free=device.free, missing_bytes=device.missing_bytes, usable_bytes=usable_bytes
    )


def _placement(deployment: Deployment, chunk_tokens: int, forecast: ServingForecast) -> PlacementFigures:
    choice, load, placement = deployment.choice, deployment.load, deployment.placement
    return PlacementFigures(
        quant=choice.quant,
        kv_format=choice.kv.name,
        tensor_parallel=choice.tensor_parallel,
        pipeline_parallel=choice.pipeline_parallel,
        replicas=choice.replicas,
        context_tokens=load.context_tokens,
        prompt_tokens=load.prompt_tokens,
        concurrency=load.concurrency,
        chunk_tokens=chunk_tokens,
        ram_bytes=choice.replicas * placement.ram_bytes,
        disk_bytes=choice.replicas * placement.disk_bytes,
        ram_cache_bytes=choice.replicas * placement.ram_cache_bytes,
        perplexity_rise=deployment.loss,
        drafted_tokens=forecast.drafted_tokens,
    )


def _forecast(
    question: Question, deployment: Deployment, forecast: ServingForecast, turning_batch: int | None
) -> ForecastFigures:
    together = forecast.decode_tokens_per_second * deployment.choice.replicas
    price = question.machine.price_per_hour
    return ForecastFigures(
        decode_tokens_per_second=together,
        decode_tokens_per_second_alone=forecast.decode_tokens_per_second_alone,
        decode_tokens_per_second_per_sequence=together / deployment.load.concurrency,
        prefill_tokens_per_second=forecast.prefill_tokens_per_second,
        time_to_first_token_seconds=forecast.time_to_first_token_seconds,
        time_to_first_token_seconds_at_concurrency=forecast.time_to_first_token_seconds_together,
        bound=forecast.together.bound,
        prefill_bound=forecast.prefill.bound,
        turning_batch=turning_batch,
        plain_roofline_tokens_per_second=forecast.plain_roofline_tokens_per_second,
        decode=_phase(forecast.together),
        decode_alone=_phase(forecast.alone),
        prefill=_phase(forecast.prefill),
        price_per_million_tokens=None if price is None else price / 3600 / together * 1e6,
    )


def _phase(phase: Phase) -> PhaseFigures:
    taken = phase.seconds
    return PhaseFigures(
        read_bytes=phase.read_bytes,
        operations=phase.operations,
        read_seconds=taken.read,
        compute_seconds=taken.compute,
        overhead_seconds=taken.overhead + max(0.0, taken.unevenness),
        exchange_seconds=taken.exchange,
        transfer_seconds=taken.transfer,
        seconds=taken.total,
        bound=taken.bound,
    )


def _change(option: str, changed: Deployment, deployment: Deployment) -> ChangeFigures:
    freed = deployment.choice.replicas * deployment.placement.num_bytes
    return ChangeFigures(
        option=option,
        fits=changed.fits,
        missing_bytes=changed.placement.missing_bytes,
        freed_bytes=max(0, freed - changed.choice.replicas * changed.placement.num_bytes),
        max_concurrency=changed.choice.replicas * min(each.max_concurrency for each in changed.placement.devices),
        decode_tokens_per_second=changed.tokens_per_second,
        perplexity_rise=changed.loss,
    )


def _option(deployment: Deployment, question: Question) -> str:
    """What to ask for to get this deployment."""
    choice, load = deployment.choice, deployment.load
    options = [f"--kv {choice.kv.name.lower()}"]
    if choice.quant is not None:
        options.insert(0, f"--quant {choice.quant}")
    options.append(f"--tp {choice.tensor_parallel}")
    if choice.pipeline_parallel > 1:
        options.append(f"--pp {choice.pipeline_parallel}")
    if choice.may_spill and deployment.placement.spilled.num_bytes:
        options.append("--spill")
    if load.context_tokens != question.load.context_tokens:
        options.append(f"--context {load.context_tokens}")
    if load.concurrency != question.load.concurrency:
        options.append(f"--concurrency {load.concurrency}")
    return " ".join(options)


def _bottleneck(question: Question, deployment: Deployment, forecast: ServingForecast) -> str:
    """Which cause takes most of a step of decoding, with what was divided by what."""
    taken, device = forecast.together.seconds, question.device
    causes = {
        f"reading {decimal_bytes(forecast.together.read_bytes)} on each device at "
        f"{rate(forecast.together.read_bytes / taken.read)}": taken.read,
        f"computing {operations_rate(forecast.together.operations).removesuffix('/s')} on each device at "
        f"{operations_rate(forecast.together.operations / taken.compute)}": taken.compute,
        f"starting the kernels of {len(deployment.model.layers)} layers": taken.overhead,
        f"exchanges among {deployment.choice.tensor_parallel * deployment.choice.pipeline_parallel} "
        f"of {device.name}": taken.exchange,
        "bringing what lies in other tiers": taken.transfer,
    }
    largest = max(causes, key=lambda cause: causes[cause])
    return f"{largest} takes {seconds(causes[largest])} of a step's {seconds(taken.total)}"


def _reasons(answer: Answer) -> tuple[str, ...]:
    question, choice, placement = answer.question, answer.deployment.choice, answer.deployment.placement
    ranks = choice.tensor_parallel
    reasons = []
    if len(kinds := question.machine.compute_devices()) > 1:
        reasons.append(f"of {len(kinds)} kinds of devices the first, {question.device.name}, holds the model")
    if choice.num_devices == 1 and placement.fits and not placement.spilled.num_bytes:
        reasons.append("one device holds all of it, so nothing has to be exchanged")
    if ranks > 1:
        reasons.append(f"each matrix is shared by {ranks} devices, which then read it {ranks} times as fast")
    if choice.pipeline_parallel > 1:
        reasons.append(f"layers follow each other on {choice.pipeline_parallel} stages, which hand little on")
    if choice.replicas > 1:
        reasons.append(f"{choice.replicas} replicas answer side by side, as the model leaves room for them")
    if placement.ram_cache_bytes:
        reasons.append(f"{binary_bytes(placement.ram_cache_bytes)} of keys and values are attended to in RAM")
    if placement.ram_bytes or placement.disk_bytes:
        kind = "experts, of which a step reads few," if placement.spilled.ram_experts else "layers"
        tiers = [f"{binary_bytes(placement.ram_bytes)} in RAM"] if placement.ram_bytes else []
        tiers += [f"{binary_bytes(placement.disk_bytes)} on disk"] if placement.disk_bytes else []
        reasons.append(f"what does not fit into device memory lies elsewhere, {kind} first: {' and '.join(tiers)}")
    if question.goal is not None and answer.is_optimal:
        reasons.append(
            f"of {answer.num_weighed} deployments that were weighed, none serves {question.goal} noticeably better"
        )
    elif question.goal is not None:
        reasons.append(f"none of {answer.num_weighed} deployments that were weighed fits")
    return tuple(reasons)


def _origins(question: Question, deployment: Deployment) -> dict[str, Origin]:
    engine, device = question.engine, question.device
    counted = dict(engine.origins)
    known_machine = question.machine.measured_unix_seconds is not None or "H100" in device.name
    if counted["runtime"].origin == "measured" and not known_machine:
        counted["runtime"] = Origin(origin="extrapolated", how=counted["runtime"].how)
    if counted["activations"].origin == "exact" and not can_run(deployment.model):
        how = "shapes of the step's arrays; the engine cannot run this model yet"
        counted["activations"] = Origin(origin="modelled", how=how)
    if deployment.choice.quant is not None:
        how = f"every tensor's shape, matrices in {deployment.choice.quant}"
        counted["weights"] = Origin(origin="modelled", how=how)
    if question.budget_bytes is not None:
        counted["budget_bytes"] = Origin(origin="exact", how="as asked for")
    return {
        "model": Origin(origin="exact", how="shapes and formats, from the configuration or from the files' headers"),
        **counted,
        "kv_cache": Origin(
            origin="exact", how=f"bytes a token and fixed bytes, in pages of {engine.page_tokens} tokens"
        ),
        "forecast": _speed_origin(device),
        "perplexity_rise": _rise_origin(question, deployment.choice.quant),
    }


def _rise_origin(question: Question, quant: str | None) -> Origin:
    measured = measured_losses(question.model).get((quant or "").lower())
    if measured is None:
        return Origin(origin="extrapolated", how="measured on Llama 3 8B by llama.cpp, or assumed")
    return Origin(origin="measured", how=f"{measured.source}; that of keys and values in fewer bits is assumed")


def _speed_origin(device: Device) -> Origin:
    assumed = [name for name, figure in device.figures.items() if figure.origin == "assumed"]
    if device.kind == "cpu":
        how = "roofline of a whole step" + (
            f", assumed are {', '.join(assumed)}" if assumed else ", all rates measured"
        )
        return Origin(origin="extrapolated" if assumed else "modelled", how=how)
    if any(name in device.name for name in _FITTED_DEVICES):
        return Origin(origin="modelled", how="roofline by operator; efficiencies fitted to runs on A100 and H100")
    how = "roofline by operator over listed rates, with A100's and H100's efficiencies"
    return Origin(origin="extrapolated", how=how)
