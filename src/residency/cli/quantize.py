"""`residency quantize`: a smaller checkpoint, and what its quality has become."""

import json
from pathlib import Path

import click
import numpy as np

from residency.cli.evaluate import read_text, table
from residency.cli.options import json_option, memory_bytes, model_argument
from residency.cli.planned import fetched
from residency.cli.progress import Progress
from residency.engine.arena import peak_resident_bytes
from residency.engine.text import Tokenizer, load_tokenizer
from residency.errors import QualityError, UsageError
from residency.models.registry import forward_of
from residency.models.specs import model_spec
from residency.quantize.folder import FolderTarget
from residency.quantize.gguf_file import Blocks, GgufTarget
from residency.quantize.gptq import DAMPING
from residency.quantize.grids import IntegerScheme
from residency.quantize.job import Job, Quantization, Target
from residency.quantize.layouts import Layout, LayoutName, usual_layout
from residency.quantize.memory import forecast_bytes, samples_that_fit
from residency.quantize.methods import Awq, Gptq, Method, MethodName, Rtn
from residency.quantize.samples import Tokens, first_samples, spread_samples
from residency.spec.model import ModelSpec
from residency.spec.opening import open_checkpoint
from residency.spec.requantize import GGML, requantized
from residency.units import mib
from residency.verifier.evaluation import Evaluation, evaluation_of_logits
from residency.verifier.perplexity import CHUNK_TOKENS

INTEGERS = {"int8": 8, "int4": 4, "int3": 3}  # into a folder
BLOCKS = GGML  # into a GGUF file
USUAL_SAMPLES, JUDGED_SAMPLES, SAMPLE_TOKENS = 64, 8, 512


@click.command("quantize")
@model_argument
@click.option(
    "--to", "number_format", type=click.Choice([*INTEGERS, *BLOCKS]), required=True, help="What weights become."
)
@click.option(
    "--group",
    type=click.IntRange(min=32),
    metavar="N",
    help="Columns that share a scale (default: 128 for int4 and int3, whole rows for int8).",
)
@click.option("--symmetric/--asymmetric", default=None, help="Whether zero is the middle code (default: for int8).")
@click.option(
    "--method", type=click.Choice(["rtn", "gptq", "awq"]), help="How (default: gptq with --calibration, else rtn)."
)
@click.option(
    "--layout",
    type=click.Choice(["gptq", "awq", "compressed-tensors"]),
    help="Whose files to write (default: the method's; compressed-tensors for rtn).",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="OUT", help="The new folder.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Text like what the model will see."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Of the calibration text (default: {USUAL_SAMPLES}, or as many as fit --memory).",
)
@click.option(
    "--sample-tokens",
    type=click.IntRange(min=16),
    default=SAMPLE_TOKENS,
    show_default=True,
    metavar="N",
    help="Tokens of each sample.",
)
@click.option(
    "--damping", type=click.FloatRange(min=0, min_open=True), default=DAMPING, show_default=True, help="GPTQ's."
)
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Measure the quality on this text.")
@click.option(
    "--chunks", type=click.IntRange(min=1), default=JUDGED_SAMPLES, show_default=True, metavar="N", help="Of that text."
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0),
    metavar="NATS",
    help="Write nothing if the mean KL divergence from MODEL is above this.",
)
@click.option("--memory", callback=memory_bytes, metavar="SIZE", help="Budget of the whole process, such as 1200MB.")
@json_option
def command(
    model: str,
    number_format: str,
    group: int | None,
    symmetric: bool | None,
    method: MethodName | None,
    layout: LayoutName | None,
    out: Path,
    calibration: Path | None,
    samples: int | None,
    sample_tokens: int,
    damping: float,
    text: Path | None,
    chunks: int,
    max_kl: float | None,
    memory: int | None,
    as_json: bool,
) -> None:
    """Make a smaller checkpoint of MODEL, layer by layer, and say what it cost in quality.

    A run that was ended goes on with the same command. --text measures how far the result is from MODEL: give a text
    that is not the calibration's.

    \b
    Examples:
      residency quantize smollm2-135m --to int8 -o smollm2-int8
      residency quantize FOLDER --to int4 --group 128 --method gptq --calibration mine.txt --text wiki.txt -o OUT
      residency quantize FOLDER --to int4 --method awq --calibration mine.txt --text wiki.txt --max-kl 0.05 -o OUT
    """
    with Progress() as progress:
        checkpoint = open_checkpoint(fetched(model, progress))
        spec = model_spec(checkpoint)
        forward_of(spec)
        tokenizer = load_tokenizer(checkpoint)
        method_, target = _asked(spec, number_format, group, symmetric, method, layout, damping, calibration)
        judged_ST = _judged(tokenizer, text, chunks, max_kl)
        num_samples = samples_that_fit(
            spec,
            method_,
            wanted=samples or USUAL_SAMPLES,
            budget_bytes=memory,
            judged=len(judged_ST),
            sample_tokens=sample_tokens,
        )
        job = Job(
            checkpoint=checkpoint,
            spec=spec,
            out=out,
            method=method_,
            target=target,
            calibration_ST=_calibration(tokenizer, calibration, num_samples, sample_tokens),
            judged_ST=judged_ST,
        )
        evaluation = _quantized(job, max_kl, progress)
    forecast = forecast_bytes(spec, method_, samples=num_samples, judged=len(judged_ST), sample_tokens=sample_tokens)
    report = _report(job, evaluation, forecast)
    click.echo(json.dumps(report, ensure_ascii=False) if as_json else "\n".join(_told(job, evaluation, forecast)))


def _asked(
    spec: ModelSpec,
    number_format: str,
    group: int | None,
    symmetric: bool | None,
    name: MethodName | None,
    layout: LayoutName | None,
    damping: float,
    calibration: Path | None,
) -> tuple[Method, Target]:
    """How to quantize, and what to write."""
    if number_format in BLOCKS:
        if not (group is None and symmetric is None and name in (None, "rtn") and layout is None):
            raise UsageError(
                f"{number_format} is a format of GGUF's blocks, which fixes groups and method; leave --group, "
                "--symmetric, --method and --layout away."
            )
        formats = {tensor.name: tensor.format for tensor in requantized(spec, number_format).tensors}
        blocks = Blocks(formats=formats, needs_inputs=calibration is not None)
        return blocks, GgufTarget(label=number_format, formats=formats)
    chosen = name or ("gptq" if calibration else "rtn")
    bits = INTEGERS[number_format]
    scheme = IntegerScheme(
        bits=bits,
        group=group if group is not None or bits == 8 else 128,
        symmetric=bits == 8 if symmetric is None else symmetric,
    )
    target = FolderTarget(layout=Layout(name=layout or usual_layout(chosen, scheme), scheme=scheme))
    if chosen == "gptq":
        return Gptq(scheme=scheme, damping=damping), target
    return Awq(scheme=scheme) if chosen == "awq" else Rtn(scheme=scheme), target


def _quantized(job: Job, max_kl: float | None, progress: Progress) -> Evaluation | None:
    """The job done, or refused by its quality."""
    with Quantization(job, progress) as quantization:
        quantization.run()
        evaluation = evaluation_of_logits(quantization.scored_logits()) if len(job.judged_ST) else None
        if max_kl is not None and evaluation is not None and evaluation.divergence is not None:
            found = evaluation.divergence.mean
            if not found <= max_kl:
                quantization.discard()
                raise QualityError(
                    f"the result's mean KL divergence from {job.spec.name} is {found:.4f}, {found - max_kl:.4f} above "
                    f"--max-kl {max_kl:g}, and nothing was written; take more bits, smaller groups or --method gptq."
                )
        quantization.publish()
    return evaluation


def _calibration(tokenizer: Tokenizer, path: Path | None, num_samples: int, tokens: int) -> Tokens:
    if not num_samples:
        return np.zeros((0, tokens), np.int64)
    if path is None:
        raise UsageError("gptq and awq look at text like what the model will see; give --calibration FILE.")
    return spread_samples(tokenizer, read_text(path), num_samples, tokens)


def _judged(tokenizer: Tokenizer, path: Path | None, chunks: int, max_kl: float | None) -> Tokens:
    if path is not None:
        return first_samples(tokenizer, read_text(path), chunks, CHUNK_TOKENS)
    if max_kl is not None:
        raise UsageError("--max-kl is measured on a text; give --text FILE.")
    return np.zeros((0, CHUNK_TOKENS), np.int64)


def _report(job: Job, evaluation: Evaluation | None, forecast: int) -> dict[str, object]:
    return {
        "model": job.spec.name,
        "out": str(job.out),
        "source_bytes": job.checkpoint.file_bytes,
        "bytes": _size(job.out),
        "peak_bytes": {"forecast": forecast, "measured": peak_resident_bytes()},
        **({} if evaluation is None else evaluation.to_data()),
    }


def _told(job: Job, evaluation: Evaluation | None, forecast: int) -> list[str]:
    lines = [
        f"{job.out}: {mib(_size(job.out))}, from {mib(job.checkpoint.file_bytes)}",
        f"memory: {mib(peak_resident_bytes())} at most, {mib(forecast)} forecast",
    ]
    return lines if evaluation is None else [*lines, "", *table(evaluation)]


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.iterdir()))
