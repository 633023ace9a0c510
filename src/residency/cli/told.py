"""An answer in words: what fits where, what is the bottleneck, and what would change it."""

from collections.abc import Sequence

from residency.cli.tables import columns, paragraph
from residency.planner.answers import AnswerRecord, ChangeFigures, DeviceFigures, ForecastFigures
from residency.planner.explain import speed
from residency.units import binary_bytes, count, decimal_bytes, seconds

_MOST_CHANGES = 8


def in_words(answer: AnswerRecord) -> str:
    """The answer as paragraphs, each behind a word of the margin."""
    parts = [("plan", _plan(answer)), ("memory", columns(_memory(answer), right=range(1, 9))), ("fits", _fits(answer))]
    if answer.forecast is not None:
        parts.append(("speed", _speed(answer, answer.forecast)))
    if answer.training is not None:
        parts.append(("step", _training(answer)))
    parts.append(("why", list(answer.reasons)))
    parts.append(("changes", columns(_changes(answer), right=range(1, 6)) if answer.changes else []))
    parts.append(("figures", _origins(answer)))
    parts.append(("notes", list(answer.model.notes)))
    return "\n".join(paragraph(lead, lines) for lead, lines in parts if lines)


def _plan(answer: AnswerRecord) -> list[str]:
    model, placement = answer.model, answer.placement
    status = "" if answer.status == "shipped" else f" ({answer.status})"
    goal = f" · for {answer.goal}" if answer.goal else ""
    shares = [
        f"{number} {what}"
        for number, what in (
            (placement.tensor_parallel, "tensor-parallel ranks"),
            (placement.pipeline_parallel, "pipeline stages"),
            (placement.replicas, "replicas"),
        )
        if number > 1
    ]
    sequences = "1 sequence" if placement.concurrency == 1 else f"{placement.concurrency} sequences"
    return [
        f"{model.name} · {model.architecture} · {placement.quant or model.format} · "
        f"{count(model.parameters)} parameters · on {answer.machine}{status} · {answer.engine}{goal}",
        " · ".join(
            [
                f"{sequences} of {placement.context_tokens} tokens",
                *([f"keys and values in {placement.kv_format}"] if answer.training is None else []),
                *shares,
            ]
        ),
    ]


def _memory(answer: AnswerRecord) -> list[Sequence[str]]:
    """A row for each kind of device that holds the same; how many there are goes with the name."""
    is_training = answer.training is not None
    more = ("GRADIENTS", "OPTIMIZER") if is_training else ("KV CACHE",)
    rows: list[Sequence[str]] = [("DEVICE", "BUDGET", "WEIGHTS", *more, "ACTIVATIONS", "RUNTIME", "FREE")]
    alike: dict[DeviceFigures, int] = {}
    for device in answer.devices:
        alike[device] = alike.get(device, 0) + 1
    for device, number in alike.items():
        held = (device.gradients, device.optimizer) if is_training else (device.kv_cache,)
        amounts = (device.budget_bytes, device.weights, *held, device.activations, device.runtime)
        rest = binary_bytes(device.free) if not device.missing_bytes else f"-{binary_bytes(device.missing_bytes)}"
        name = device.name if number == 1 else f"{number} x {device.name}"
        rows.append((name, *map(binary_bytes, amounts), rest))
    placement = answer.placement
    for tier, weights, cache in (
        ("RAM", placement.ram_bytes, placement.ram_cache_bytes),
        ("disk", placement.disk_bytes, 0),
    ):
        cells = [binary_bytes(num_bytes) if num_bytes else "" for num_bytes in (weights, cache)]
        if weights or cache:
            rows.append((tier, "", *cells, *("" for _ in rows[0][4:])))
    return rows


def _fits(answer: AnswerRecord) -> list[str]:
    placement = answer.placement
    if not answer.fits:
        lines = [f"no: {binary_bytes(answer.missing_bytes)} are missing, all devices together"]
        if answer.nearest is not None:
            lines.append(f"the nearest that fits: {answer.nearest.option}{_gain(answer.nearest)}")
        return lines
    if answer.training is not None:
        return ["yes"]
    replicas = placement.replicas
    sequences = replicas * min(device.max_concurrency for device in answer.devices)
    tokens = replicas * min(device.pool_tokens for device in answer.devices)
    room = f"{tokens} tokens, {sequences:.1f} sequences of {placement.context_tokens}" if tokens else "any context"
    if sequences < placement.concurrency:  # more are kept than the engine promises
        return [
            f"yes, by the bytes that are kept; {answer.engine}, which counts a step beside each window, tells of {room}"
        ]
    return [f"yes: there is room for {room}"]


def _gain(change: ChangeFigures) -> str:
    return f" ({speed(change.decode_tokens_per_second)} tokens/s)" if change.decode_tokens_per_second else ""


def _speed(answer: AnswerRecord, forecast: ForecastFigures) -> list[str]:
    placement = answer.placement
    hypothetical = "" if answer.fits else "if it fitted: "
    lines = [
        f"{hypothetical}{speed(forecast.decode_tokens_per_second_alone)} tokens/s alone, first token after "
        f"{seconds(forecast.time_to_first_token_seconds)}"
    ]
    if placement.concurrency > 1:
        lines.append(
            f"{speed(forecast.decode_tokens_per_second)} tokens/s with {placement.concurrency} sequences, "
            f"{speed(forecast.decode_tokens_per_second_per_sequence)} each, first token after "
            f"{seconds(forecast.time_to_first_token_seconds_at_concurrency)}"
        )
    turning = f", compute-bound from {forecast.turning_batch} sequences on" if forecast.turning_batch else ""
    lines.append(f"decoding is {forecast.bound}-bound{turning}; prompts are {forecast.prefill_bound}-bound")
    lines.append(f"{answer.bottleneck}")
    if placement.drafted_tokens:
        lines.append(f"the draft proposes {placement.drafted_tokens} tokens a round, and is read for each of them")
    lines.append(
        f"bytes over the listed rate alone would be {speed(forecast.plain_roofline_tokens_per_second)} tokens/s: "
        f"{decimal_bytes(forecast.decode_alone.read_bytes)} a token on each device"
    )
    if forecast.price_per_million_tokens is not None:
        lines.append(f"{forecast.price_per_million_tokens:.2f} for a million tokens, at the machine file's price")
    return lines


def _training(answer: AnswerRecord) -> list[str]:
    training = answer.training
    assert training is not None
    return [f"the peak is {binary_bytes(training.peak)}, at: {training.peak_phase}", *training.arithmetic]


def _changes(answer: AnswerRecord) -> list[Sequence[str]]:
    if answer.training is not None:
        return [
            ("OPTION", "FREES", "FITS"),
            *((c.option, binary_bytes(c.freed_bytes), _room(c)) for c in answer.changes),
        ]
    rows: list[Sequence[str]] = [("OPTION", "FREES", "FITS", "SEQUENCES", "TOKENS/S", "PERPLEXITY")]
    for change in answer.changes[:_MOST_CHANGES]:
        rows.append(
            (
                change.option,
                binary_bytes(change.freed_bytes),
                _room(change),
                f"{change.max_concurrency:.1f}",
                speed(change.decode_tokens_per_second) if change.decode_tokens_per_second else "",
                f"+{change.perplexity_rise:.1%}",
            )
        )
    return rows


def _room(change: ChangeFigures) -> str:
    return "yes" if change.fits else f"-{binary_bytes(change.missing_bytes)}"


def _origins(answer: AnswerRecord) -> list[str]:
    return [f"{name.replace('_', ' ')}: {origin.origin}, {origin.how}" for name, origin in answer.origins.items()]
