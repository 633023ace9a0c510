"""`residency bench`: how fast a model is on this machine, and how near to the machine's limits."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from residency.cli.bench_places import Place, place_of
from residency.cli.expert_paging import expert_paging
from residency.cli.options import (
    DeviceName,
    PlanOptions,
    device_option,
    json_option,
    memory_bytes,
    model_argument,
    random_weights_option,
)
from residency.cli.planned import fetched, measured_machine
from residency.cli.progress import Progress
from residency.cli.sweep import sweep_lines
from residency.cli.sweep import sweep_memory as swept
from residency.cli.tables import columns
from residency.errors import UsageError
from residency.hardware import Machine
from residency.models.made_up import RandomWeights
from residency.planner import Plan
from residency.planner.explain import MEANINGLESS, speed
from residency.spec.model import ModelSpec
from residency.units import decimal_bytes, operations_rate, rate, seconds
from residency.verifier.bench import Asked, Limits, Speed, bench_data, measure
from residency.verifier.opened import opened
from residency.verifier.profile import StepProfile, profile_decode, profile_prefill
from residency.verifier.roofline import Point, Roofline, roofline_svg, write_png
from residency.verifier.sweep import sweep_svg

_USUAL = Asked()
_PROFILED_CONTEXT_TOKENS, _PROFILED_PROMPT_TOKENS = 128, 512
_MOST_TOKENS = 1 << 24


def numbers(least: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """A callback for an option such as "16,512": whole numbers from `least` on, UsageError for anything else."""

    def parse(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        if text is None:
            return None
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not all(word.isascii() and word.isdigit() and least <= int(word[:9]) <= _MOST_TOKENS for word in words):
            raise UsageError(
                f"--{param.name} takes numbers from {least} on, such as 16,512; {text[:40]!r} is not that."
            )
        return tuple(dict.fromkeys(int(word) for word in words))

    return parse


@click.command("bench")
@model_argument
@click.option("--prompt", callback=numbers(1), metavar="N,...", help="Prefill prompts of these tokens (16,512,4096).")
@click.option("--context", callback=numbers(0), metavar="N,...", help="Decode after these tokens (0,1024,4096).")
@click.option("--batch", callback=numbers(1), metavar="N,...", help="Decode so many sequences together (1,2,4,8,16).")
@click.option(
    "--decode-tokens",
    type=click.IntRange(min=1, max=4096),
    default=_USUAL.decode_tokens,
    show_default=True,
    metavar="N",
    help="Steps of each decode.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1, max=1000),
    default=_USUAL.repeats,
    show_default=True,
    metavar="N",
    help="Repetitions; the median counts.",
)
@click.option("--threads", type=int, metavar="N", help="Threads to compute with (default: all allowed).")
@click.option("--memory", callback=memory_bytes, metavar="SIZE", help="Budget of the whole process, such as 400MiB.")
@device_option
@random_weights_option
@click.option("--sweep-memory", is_flag=True, help="Speed and peak in ever more memory, down to the least, instead.")
@click.option("--profile", is_flag=True, help="Show one step of decode and one of prefill by operator instead.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw the roofline.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The same as pixels.")
@click.option(
    "--expert-trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.npy",
    help="Decode along these routes instead: whole numbers (steps, mixture layers, experts of a token).",
)
@json_option
def command(
    model: str,
    prompt: tuple[int, ...] | None,
    context: tuple[int, ...] | None,
    batch: tuple[int, ...] | None,
    decode_tokens: int,
    repeat: int,
    threads: int | None,
    memory: int | None,
    device: DeviceName | None,
    random_weights: RandomWeights | None,
    sweep_memory: bool,
    profile: bool,
    svg: Path | None,
    png: Path | None,
    expert_trace: Path | None,
    as_json: bool,
) -> None:
    """Measure MODEL: prefill by prompt, decode by context and by batch, beside the forecast and the machine's limits.

    Where one of --prompt, --context and --batch is given, only what is given is measured. Sequences that decode
    together have 64 tokens of context each. --profile takes the first of --context, --prompt and --batch.

    \b
    Examples:
      residency bench smollm2-135m
      residency bench model.gguf --batch 1,8 --svg roofline.svg
      residency bench model.gguf --profile --context 4096 --batch 8
      residency bench model.gguf --sweep-memory --svg sweep.svg
      residency bench mixture.gguf --memory 3GiB --expert-trace routes.npy
      residency bench meta-llama/Llama-2-7b-hf --device cuda --random-weights int4
    """
    if device == "cuda" and (profile or sweep_memory or expert_trace):
        raise UsageError("--profile, --sweep-memory and --expert-trace are of the processor; leave --device away.")
    if expert_trace is not None:
        expert_paging(model, expert_trace, memory=memory, threads=threads, as_json=as_json)
        return
    if profile and (svg or png):
        raise UsageError("--profile shows one step; leave --svg and --png to a measurement.")
    if sweep_memory:
        if profile or prompt or context or batch or memory:
            raise UsageError("--sweep-memory chooses budgets and prompts itself; give --threads, --svg or --png alone.")
        _sweep(model, threads, svg, png, as_json)
        return
    options = PlanOptions(memory_bytes=memory, threads=threads, device=device, random_weights=random_weights)
    with Progress() as progress:
        place = place_of(model, options, progress)
        if profile:
            steps = _profiles(place, progress, context=context, prompt=prompt, batch=batch)
            _print_profiles(steps, as_json)
            return
        asked = _asked(place.spec, prompt, context, batch, decode_tokens, repeat)
        plan = place.plan_for(asked.batched_tokens if asked.sequences else asked.longest_tokens, 1)
        if plan.is_made_up:
            progress.say(MEANINGLESS)
        progress.say("the limits, alone")
        limits = place.limits(plan)
        speeds = measure(asked, place.plan_for, place.machine, say=progress.say, progress=progress)
    picture = roofline_svg(_roofline(limits, speeds), " · ".join(_heading(plan, place)))
    _draw(picture, svg, png)
    if as_json:
        click.echo(json.dumps(bench_data(plan, place.machine, limits, speeds), ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(plan, place, limits, speeds)))


def _sweep(model: str, threads: int | None, svg: Path | None, png: Path | None, as_json: bool) -> None:
    with Progress() as progress:
        path = fetched(model, progress)
        sweep, points = swept(path, measured_machine(progress), threads=threads, progress=progress)
    plan = sweep.whole
    _draw(sweep_svg(sweep, points, f"{plan.model_name}, {plan.threads} threads, larger than memory"), svg, png)
    if as_json:
        click.echo(json.dumps({"model": plan.model_name, "sweep": [point.to_data() for point in points]}))
    else:
        click.echo("\n".join(sweep_lines(points)))


def _draw(picture: str, svg: Path | None, png: Path | None) -> None:
    if svg is not None:
        svg.write_text(picture, "utf-8")
    if png is not None:
        write_png(picture, png)


def _asked(
    spec: ModelSpec,
    prompt: tuple[int, ...] | None,
    context: tuple[int, ...] | None,
    batch: tuple[int, ...] | None,
    decode_tokens: int,
    repeats: int,
) -> Asked:
    """What was given; where nothing was, the usual as far as the model's context reaches."""
    if prompt is None and context is None and batch is None:
        usual = Asked(decode_tokens=decode_tokens, repeats=repeats)
        return usual.within(spec.max_context_tokens)
    return Asked(
        prompt_tokens=prompt or (),
        context_tokens=context or (),
        sequences=batch or (),
        decode_tokens=decode_tokens,
        repeats=repeats,
    )


def _profiles(
    place: Place,
    progress: Progress,
    *,
    context: tuple[int, ...] | None,
    prompt: tuple[int, ...] | None,
    batch: tuple[int, ...] | None,
) -> list[StepProfile]:
    """Decode and prefill; only one of them where only its extents were given."""
    assert isinstance(place.machine, Machine), "a device's own profilers show its kernels"
    sequences = batch[0] if batch else 1
    context_tokens = context[0] if context else _PROFILED_CONTEXT_TOKENS
    prompt_tokens = prompt[0] if prompt else _PROFILED_PROMPT_TOKENS
    shows_decode, shows_prefill = bool(context or batch or not prompt), bool(prompt or not (context or batch))
    longest = max(context_tokens if shows_decode else 0, prompt_tokens if shows_prefill else 0, 1)
    profiles = []
    with opened(place.plan_for(longest + 3, sequences), progress) as model:
        if shows_decode:
            profiles.append(profile_decode(model, place.machine, context_tokens=context_tokens, sequences=sequences))
        if shows_prefill:
            profiles.append(profile_prefill(model, place.machine, prompt_tokens=prompt_tokens))
    return profiles


def _roofline(limits: Limits, speeds: Sequence[Speed]) -> Roofline:
    points = tuple(
        Point(
            label=_name(each),
            kind=each.kind,
            operations_per_byte=each.operations_per_byte,
            operations_per_second=each.operations_per_second,
        )
        for each in speeds
    )
    return Roofline(
        bytes_per_second=limits.read_bytes_per_second,
        operations_per_second=limits.operations_per_second,
        prompt_operations_per_second=limits.prompt_operations_per_second,
        points=points,
    )


def _name(each: Speed) -> str:
    if each.kind == "prefill":
        return f"prefill {each.context_tokens}"
    if each.sequences > 1:
        return f"decode x{each.sequences}"
    return f"decode after {each.context_tokens}"


def _heading(plan: Plan, place: Place) -> list[str]:
    threads = [f"{plan.threads} threads"] if plan.device is None else []
    return [plan.model_name, plan.format_label, *threads, place.name]


def _lines(plan: Plan, place: Place, limits: Limits, speeds: Sequence[Speed]) -> list[str]:
    """The table for people."""
    head = ["", "tokens/s", "least to most", "forecast", "bytes a step", "read", "of memory", "of compute"]
    rows = [
        [
            _name(each),
            speed(each.tokens_per_second),
            f"{speed(min(each.samples))} to {speed(max(each.samples))}",
            speed(each.forecast_tokens_per_second),
            decimal_bytes(each.read_bytes_per_step),
            rate(each.read_bytes_per_second),
            f"{each.read_bytes_per_second / limits.read_bytes_per_second:.0%}",
            f"{each.share_of_operations(limits):.0%}",
        ]
        for each in speeds
    ]
    products = operations_rate(limits.operations_per_second)
    if plan.device is None:
        now = f" by the probe, {rate(limits.read_loop_bytes_per_second)} by a read loop now"
        products += f", {operations_rate(limits.prompt_operations_per_second)} of prompts"
    else:
        now = " by copies"
    return [
        " · ".join(_heading(plan, place)),
        *([MEANINGLESS] if plan.is_made_up else []),
        f"memory {rate(limits.read_bytes_per_second)}{now} · matrix products {products}",
        "",
        *columns([head, *rows], right=tuple(range(1, len(head)))),
    ]


def _print_profiles(steps: Sequence[StepProfile], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"profiles": [step.to_data() for step in steps]}))
        return
    click.echo("\n\n".join("\n".join(_profile_lines(step)) for step in steps))


def _profile_lines(step: StepProfile) -> list[str]:
    head = ["kernel", "matrix", "launches", "time", "of step", "bytes", "rate", "operations", "of the limit"]
    rows: list[list[Any]] = [
        [
            each.kernel,
            each.shape,
            str(each.launches),
            seconds(each.seconds),
            f"{each.seconds / step.seconds:.1%}",
            decimal_bytes(each.read_bytes),
            rate(each.read_bytes / each.seconds) if each.seconds else "",
            operations_rate(each.operations / each.seconds) if each.seconds else "",
            f"{each.share_of_limit:.0%}",
        ]
        for each in step.operators
    ]
    return [f"{step.what}: {seconds(step.seconds)}", "", *columns([head, *rows], right=tuple(range(2, len(head))))]
