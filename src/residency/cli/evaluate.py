"""`residency evaluate`: how well a model predicts a text, and how far it is from a reference."""

import json
from dataclasses import replace
from pathlib import Path

import click

from residency.cli.options import PlanOptions, json_option, model_argument, plan_options
from residency.cli.planned import is_plan_file, planned
from residency.cli.prepare import prepare_first
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.errors import FileError, UsageError
from residency.planner import Plan
from residency.planner.explain import MEANINGLESS
from residency.verifier.evaluation import Evaluation, evaluate
from residency.verifier.perplexity import CHUNK_TOKENS, STEP_TOKENS

_CONFIDENT = 1.96  # standard errors on either side hold 95% of a normal distribution


@click.command("evaluate")
@model_argument
@plan_options
@click.option(
    "--text",
    "text_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The text to predict; not one that the model was quantized with.",
)
@click.option(
    "--against",
    metavar="REFERENCE",
    help="Measure how far MODEL is from this one, which has the same vocabulary; its cache is in F32.",
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Only the text's first N chunks.")
@json_option
def command(
    model: str, asked: PlanOptions, text_path: Path, against: str | None, chunks: int | None, as_json: bool
) -> None:
    """Measure MODEL's perplexity on a text, and with a reference its KL divergence and how often both agree.

    The text is cut into chunks of --context tokens (512), each begun anew, and the second half of each is scored. An
    interval holds the truth with 95% confidence. A format of the KV cache is judged by giving MODEL as REFERENCE too.

    \b
    Examples:
      residency evaluate model-q4_k_m.gguf --text wiki.test.raw --chunks 8
      residency evaluate OUT --text wiki.test.raw --against smollm2-135m --json
    """
    if any(name is not None and is_plan_file(name) for name in (model, against)):
        raise UsageError("evaluate plans by itself; give the model, not a plan.")
    text = read_text(text_path)
    asked = replace(asked, context_tokens=asked.context_tokens or CHUNK_TOKENS)
    exact = replace(asked, kv_format="F32", memory_bytes=None)
    prepare_first(model, asked)
    if against is not None:
        prepare_first(against, exact)
    with Progress() as progress:
        plan = scoring_plan(model, asked, progress)
        reference = None if against is None else scoring_plan(against, exact, progress)
        measured = evaluate(plan, text, against=reference, max_chunks=chunks, progress=progress)
    if as_json:
        names = {"model": plan.model_name} | ({} if reference is None else {"reference": reference.model_name})
        click.echo(json.dumps({**names, **measured.to_data()}, ensure_ascii=False))
    else:
        click.echo("\n".join(table(measured)))


def read_text(path: Path) -> str:
    """A text's characters, every end of a line as \\n. FileError where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise FileError(f"the text {path} could not be read: {error.strerror}; give another file.") from error


def table(measured: Evaluation) -> list[str]:
    """The figures with their 95% intervals, for people."""
    perplexity, divergence = measured.perplexity, measured.divergence
    rows = [("perplexity", f"{perplexity.value:.4f}", f"± {_CONFIDENT * perplexity.error:.4f}")]
    if measured.reference is not None and divergence is not None:
        reference = measured.reference
        rows.append(("of the reference", f"{reference.value:.4f}", f"± {_CONFIDENT * reference.error:.4f}"))
        rows.append(("KL divergence, mean", f"{divergence.mean:.5f}", f"± {_CONFIDENT * divergence.error:.5f}"))
        rows.append(("KL divergence, 99%", f"{divergence.p99:.5f}", ""))
        rows.append(("same likeliest token", f"{divergence.top1_agreement:.2%}", ""))
    rows.append(("chunks", str(perplexity.chunks), ""))
    return columns(rows, right=(1,))


def scoring_plan(model: str, asked: PlanOptions, progress: Progress) -> Plan:
    """A plan for a chunk at a time, with keys and values in F16 where nothing else is asked for: weights are judged."""
    if asked.device != "cuda":
        asked = replace(asked, kv_format=asked.kv_format or "F16")
    plan = planned(model, asked, progress, chunk_tokens=STEP_TOKENS, logit_rows=STEP_TOKENS)
    if plan.is_made_up:
        progress.say(MEANINGLESS)
    return plan
