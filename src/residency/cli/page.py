"""An answer as one page of HTML that needs nothing else: the memory map, the roofline, and what could be traded."""

from collections.abc import Iterator
from dataclasses import replace
from html import escape

from residency.cli.charts import Axis, Bar, Part, Point, bars, curve, even_ticks, roofline
from residency.cli.told import in_words
from residency.planner.answers import AnswerRecord, DeviceFigures, ForecastFigures
from residency.spec.state import StateSpec
from residency.units import binary_bytes

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d8dde3; --dim: #57606a;
  --weights: #4269d0; --kv-cache: #c98500; --activations: #e4572e; --runtime: #2a9d8f; --gradients: #8f4fd1;
  --optimizer: #3b8f42; --mark: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #30363d; --dim: #9da7b1;
  --weights: #7c9cf5; --kv-cache: #efb118; --activations: #ff8a66; --runtime: #6cc5b0; --gradients: #bb8cf0;
  --optimizer: #6fce78; --mark: #ff938a; } }
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--weights); padding-left: .8rem; }
.no { border-color: var(--mark); }
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif; fill: var(--ink); }
.frame { fill: none; stroke: var(--ink); } .axis { fill: none; stroke: var(--ink); } .grid { stroke: var(--faint); }
.line { fill: none; stroke: var(--weights); stroke-width: 2.5; } .mark { fill: var(--mark); }
.tick, .title, .note { fill: var(--dim); color: var(--dim); }
.weights { fill: var(--weights); } .kv-cache { fill: var(--kv-cache); } .activations { fill: var(--activations); }
.runtime { fill: var(--runtime); } .gradients { fill: var(--gradients); } .optimizer { fill: var(--optimizer); }
.legend span { white-space: nowrap; margin-right: 1.2rem; } .legend i { display: inline-block; width: .8em;
  height: .8em; margin-right: .35em; border: 1px solid var(--dim); }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, monospace;
  border-top: 1px solid var(--faint); padding-top: 1rem; }
"""
_NEAR = 0.03  # of all bytes: marks that are nearer would hide each other
_CLASSES = ("weights", "kv_cache", "gradients", "optimizer", "activations", "runtime")


def page(answer: AnswerRecord) -> str:
    """The page's text."""
    title = f"{answer.model.name} on {answer.machine}"
    parts = [f"<h1>{escape(title)}</h1>", _verdict(answer), "<h2>Memory</h2>", _legend(answer), _memory(answer)]
    if answer.forecast is not None:
        parts += [
            "<h2>Roofline</h2>",
            _note("A step under the slope waits for memory, one under the flat for arithmetic."),
        ]
        parts.append(_roofline(answer.forecast))
        parts += ["<h2>Context against concurrency</h2>", _room(answer)]
        parts += ["<h2>Quality against bytes</h2>", _quality(answer)]
    parts += ["<h2>In words</h2>", f"<pre>{escape(in_words(answer))}</pre>"]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _verdict(answer: AnswerRecord) -> str:
    if answer.fits:
        free = min(device.free for device in answer.devices)
        return f'<p class="verdict">It fits; {binary_bytes(free)} are free on the fullest device.</p>'
    text = f"It does not fit: {binary_bytes(answer.missing_bytes)} are missing."
    if answer.nearest is not None:
        text += f" The nearest that fits: {answer.nearest.option}."
    return f'<p class="verdict no">{escape(text)}</p>'


def _legend(answer: AnswerRecord) -> str:
    present = [name for name in _CLASSES if any(getattr(device, name) for device in answer.devices)]
    marks = (
        f'<span><i style="background: var(--{name.replace("_", "-")})"></i>{name.replace("_", " ")}</span>'
        for name in present
    )
    return f'<p class="legend">{"".join(marks)}<span><i></i>free</span></p>'


def _memory(answer: AnswerRecord) -> str:
    alike: dict[DeviceFigures, int] = {}
    for device in answer.devices:
        alike[device] = alike.get(device, 0) + 1
    rows = [
        Bar(
            name=f"{number} x {device.name}, {binary_bytes(device.budget_bytes)} each"
            if number > 1
            else f"{device.name}, {binary_bytes(device.budget_bytes)}",
            parts=tuple(Part(name=name.replace("_", " "), num_bytes=getattr(device, name)) for name in _CLASSES),
            whole_bytes=device.budget_bytes,
        )
        for device, number in alike.items()
    ]
    placement = answer.placement
    tiers = (("RAM", placement.ram_bytes, placement.ram_cache_bytes), ("disk", placement.disk_bytes, 0))
    for name, weights, cache in tiers:
        if weights or cache:
            parts = (Part(name="weights", num_bytes=weights), Part(name="kv cache", num_bytes=cache))
            rows.append(Bar(name=f"{name}, {binary_bytes(weights + cache)}", parts=parts, whole_bytes=weights + cache))
    return bars(rows)


def _roofline(forecast: ForecastFigures) -> str:
    decode, prefill = forecast.decode, forecast.prefill
    points = [
        Point(name=name, x=phase.operations / phase.read_bytes, y=phase.operations / phase.seconds)
        for name, phase in (("one sequence", forecast.decode_alone), ("all sequences", decode), ("a prompt", prefill))
    ]
    return roofline(
        points if forecast.decode != forecast.decode_alone else [points[0], points[2]],
        bytes_per_second=decode.read_bytes / decode.read_seconds,
        operations_per_second=prefill.operations / prefill.compute_seconds,
    )


def _room(answer: AnswerRecord) -> str:
    """How many sequences of each context fit beside the weights."""
    placement, states = answer.placement, answer.model.states
    room = placement.replicas * min(device.max_concurrency for device in answer.devices)
    kept = _kept(states, placement.context_tokens)
    if not room or not kept:
        return _note("There is no room for any context beside the weights.")
    longest = answer.model.max_context_tokens
    contexts = [c for c in (2**power for power in range(9, 24)) if c <= longest] or [longest]
    values = [(float(each), room * kept / _kept(states, each)) for each in contexts]
    most, least = max(y for _, y in values), min(y for _, y in values)
    x = Axis(
        title="context in tokens",
        low=contexts[0] * 0.9,
        high=contexts[-1] * 1.1 + 1,
        ticks=tuple((float(each), f"{each // 1024} Ki" if each >= 1024 else str(each)) for each in contexts[::2]),
        is_logarithmic=True,
    )
    ticks = tuple((10.0**power, f"{10.0**power:g}") for power in range(-3, 7) if least / 10 < 10**power <= most * 10)
    y = Axis(title="sequences at a time", low=least / 2, high=most * 2, ticks=ticks, is_logarithmic=True)
    asked = Point(name="asked for", x=placement.context_tokens, y=placement.concurrency)
    return curve(x, y, values, [asked], name="how many sequences of each context fit")


def _kept(states: tuple[StateSpec, ...], tokens: int) -> int:
    return sum(state.sequence_bytes(tokens) for state in states)


def _quality(answer: AnswerRecord) -> str:
    placement = answer.placement
    used = placement.ram_bytes + placement.ram_cache_bytes + placement.disk_bytes
    used += sum(getattr(device, name) for device in answer.devices for name in _CLASSES)
    points = list(_formats(answer, used))
    if len(points) < 2:
        return _note("No other format is known for this model.")
    gib = 1024**3
    most_bytes, most_loss = max(point.x for point in points) / gib, max(point.y for point in points)
    most_loss = max(0.01, most_loss)
    x = Axis(
        title="GiB on all devices and tiers together",
        low=0,
        high=most_bytes * 1.1,
        ticks=even_ticks(most_bytes * 1.1, "{:g}".format),
    )
    y = Axis(
        title="rise of perplexity",
        low=0,
        high=most_loss * 1.2,
        ticks=even_ticks(most_loss * 1.2, "{:.1%}".format),
    )
    marks = [Point(name=point.name, x=point.x / gib, y=point.y) for point in points]
    note = _note("The rise was measured on this model, or on Llama 3 8B, or is assumed; it orders formats.")
    return note + curve(x, y, [], marks, name="rise of perplexity by bytes of each format")


def _formats(answer: AnswerRecord, used_bytes: int) -> Iterator[Point]:
    placement = answer.placement
    now = f"{placement.quant or answer.model.format} + {placement.kv_format}"
    yield Point(name=now, x=used_bytes, y=placement.perplexity_rise)
    last: Point | None = None
    for change in answer.changes:
        if not change.option.startswith(("--quant", "--kv")):
            continue
        point = Point(name=change.option, x=used_bytes - change.freed_bytes, y=change.perplexity_rise)
        if last is not None and last.y == point.y and abs(last.x - point.x) < _NEAR * used_bytes:
            last = replace(last, name=f"{last.name} or {change.option.split()[1]}")
            continue
        if last is not None:
            yield last
        last = point
    if last is not None:
        yield last


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
