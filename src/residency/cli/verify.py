"""`residency verify`: whether a forecast was true, or how good a model is."""

import json
from dataclasses import replace
from pathlib import Path

import click

from residency.cli.evaluate import read_text, scoring_plan
from residency.cli.options import PlanOptions, json_option, model_argument, plan_options
from residency.cli.planned import is_plan_file, planned
from residency.cli.prepare import prepare_first
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.errors import UsageError
from residency.planner.explain import MEANINGLESS, placement, speed
from residency.units import mib
from residency.verifier.forecast import GENERATED_TOKENS, Comparison, Tolerances, compare, run_as_forecast
from residency.verifier.perplexity import CHUNK_TOKENS, measure_perplexity

DOES_NOT_HOLD = 1
_USUAL = Tolerances()
_PERCENT = click.FloatRange(min=0)


@click.command("verify")
@model_argument
@plan_options
@click.option(
    "--perplexity",
    "text_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure perplexity on this text instead.",
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Only the text's first N chunks of 512 tokens.")
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=2),
    default=GENERATED_TOKENS,
    show_default=True,
    metavar="N",
    help="Tokens of each of the two answers, at most.",
)
@click.option(
    "--memory-tolerance",
    type=_PERCENT,
    default=100 * _USUAL.memory,
    show_default=True,
    metavar="PERCENT",
    help="What each class of memory may differ by.",
)
@click.option(
    "--peak-tolerance",
    type=_PERCENT,
    default=100 * _USUAL.peak,
    show_default=True,
    metavar="PERCENT",
    help="What memory in all may differ by.",
)
@click.option(
    "--speed-tolerance",
    type=_PERCENT,
    default=100 * _USUAL.speed,
    show_default=True,
    metavar="PERCENT",
    help="What the speed of decoding may differ by.",
)
@json_option
def command(
    model: str,
    asked: PlanOptions,
    text_path: Path | None,
    chunks: int | None,
    answer_tokens: int,
    memory_tolerance: float,
    peak_tolerance: float,
    speed_tolerance: float,
    as_json: bool,
) -> None:
    """Run MODEL (or a plan) briefly and hold the forecast against what was measured; exit with 1 if they differ.

    Differences of memory below 2 MiB always hold. With --perplexity, measure how well MODEL predicts a text: in chunks
    of 512 tokens, of each of which the second half is scored.

    \b
    Examples:
      residency verify smollm2-135m --memory 400MiB
      residency verify model.gguf --perplexity wiki.test.raw --chunks 8 --json
    """
    prepare_first(model, asked)
    if text_path is not None:
        _verify_perplexity(model, asked, text_path, chunks, as_json)
        return
    if chunks is not None:
        raise UsageError("--chunks counts those of a text; give --perplexity FILE too, or leave it away.")
    tolerances = Tolerances(memory=memory_tolerance / 100, peak=peak_tolerance / 100, speed=speed_tolerance / 100)
    with Progress() as progress:
        plan = planned(model, asked, progress)
        if plan.is_made_up:
            progress.say(MEANINGLESS)
        comparisons = compare(run_as_forecast(plan, answer_tokens=answer_tokens, progress=progress), tolerances)
    holds = all(each.holds for each in comparisons)
    if as_json:
        streaming = None if plan.streaming is None else plan.streaming.to_data()
        compared = [each.to_data() for each in comparisons]
        click.echo(json.dumps({"holds": holds, "comparisons": compared, "streaming": streaming}))
    else:
        if plan.streaming is not None:
            click.echo(placement(plan.streaming))
        click.echo("\n".join(_table(comparisons)))
    if not holds:
        raise click.exceptions.Exit(DOES_NOT_HOLD)


def _verify_perplexity(model: str, asked: PlanOptions, text_path: Path, chunks: int | None, as_json: bool) -> None:
    if asked.context_tokens is not None or is_plan_file(model):
        raise UsageError(f"perplexity is measured with a context of {CHUNK_TOKENS}; leave --context and plans away.")
    text = read_text(text_path)
    with Progress() as progress:
        plan = scoring_plan(model, replace(asked, context_tokens=CHUNK_TOKENS), progress)
        measured = measure_perplexity(plan, text, max_chunks=chunks, progress=progress)
    if as_json:
        click.echo(json.dumps({"model": plan.model_name, "perplexity": measured.to_data()}, ensure_ascii=False))
    else:
        click.echo(f"perplexity {measured.value:.4f} ± {measured.error:.4f} over {measured.chunks} chunks")


def _table(comparisons: tuple[Comparison, ...]) -> list[str]:
    rows = [("", "FORECAST", "MEASURED", "DIFFERENCE", "ALLOWED", "")]
    for each in comparisons:
        figures = (each.forecast, each.measured, each.difference, each.allowed)
        forecast, measured, difference, allowed = (_figure(each.unit, figure) for figure in figures)
        sign = "+" if each.difference > 0 else ""
        verdict = "holds" if each.holds else "differs"
        rows.append((each.name.replace("_", " "), forecast, measured, sign + difference, "±" + allowed, verdict))
    return columns(rows, right=(1, 2, 3, 4))


def _figure(unit: str, figure: float) -> str:
    if unit == "bytes":
        return ("-" if figure < 0 else "") + mib(abs(round(figure)))
    return f"{'-' if figure < 0 else ''}{speed(abs(figure))} {unit}"
