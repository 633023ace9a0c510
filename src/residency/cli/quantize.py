"""`residency quantize`: a smaller checkpoint, and what its quality has become."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from residency.cli.evaluate import read_text, table
from residency.cli.options import json_option, memory_bytes, model_argument
from residency.cli.planned import fetched
from residency.cli.progress import Progress
from residency.engine.arena import peak_resident_bytes
from residency.engine.text import Tokenizer, load_tokenizer
from residency.errors import QualityError, UsageError
from residency.formats import Format
from residency.models.registry import forward_of
from residency.models.specs import model_spec
from residency.planner.quality import MeasuredLoss, keep_loss
from residency.quantize.folder import FolderTarget, matrix_columns
from residency.quantize.gguf_file import Blocks, GgufTarget, gguf_bytes_beside
from residency.quantize.gptq import DAMPING
from residency.quantize.grids import IntegerScheme
from residency.quantize.job import Job, Quantization, Target, embedded
from residency.quantize.layouts import Layout, LayoutName, usual_layout
from residency.quantize.memory import forecast_bytes, samples_that_fit
from residency.quantize.methods import Awq, Gptq, Method, MethodName, Rtn
from residency.quantize.mixed import assigned, choices_of, scanned
from residency.quantize.samples import Tokens, first_samples, spread_samples, usual_text
from residency.quantize.scans import keep_scan, kept_scan
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec
from residency.spec.opening import open_checkpoint
from residency.spec.requantize import GGML, requantized
from residency.units import mib
from residency.verifier.evaluation import Evaluation, evaluation_of_logits
from residency.verifier.perplexity import CHUNK_TOKENS

INTEGERS = {"int8": 8, "int4": 4, "int3": 3}  # into a folder
BLOCKS = GGML  # into a GGUF file
USUAL_GROUP = 128
USUAL_SAMPLES, JUDGED_SAMPLES, SAMPLE_TOKENS = 64, 8, 512
SCANNED_SAMPLES, SCANNED_TOKENS = 2, 128  # enough to tell which matrices matter


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to quantize; None leaves the choice to the method or the format."""

    number_format: str | None
    target_size: int | None  # bytes of a mixed file
    group: int | None
    symmetric: bool | None
    method: MethodName | None
    layout: LayoutName | None
    damping: float
    calibrated: bool

    def method_and_target(self, spec: ModelSpec) -> tuple[Method, Target]:
        """What `--to` asks for."""
        if self.number_format is None:
            raise UsageError("say what weights become, by --to FORMAT or by --target-size SIZE.")
        if self.number_format in BLOCKS:
            self._refuse_integers(self.number_format)
            return self.blocks({t.name: t.format for t in requantized(spec, self.number_format).tensors})
        bits = INTEGERS[self.number_format]
        scheme = IntegerScheme(
            bits=bits,
            group=self.group if self.group is not None or bits == 8 else USUAL_GROUP,
            symmetric=bits == 8 if self.symmetric is None else self.symmetric,
        )
        name = self.method or ("gptq" if self.calibrated else "rtn")
        layout = self.layout or usual_layout(name, scheme, matrix_columns(spec))
        target = FolderTarget(layout=Layout(name=layout, scheme=scheme))
        if name == "gptq":
            return Gptq(scheme=scheme, damping=self.damping), target
        return Awq(scheme=scheme) if name == "awq" else Rtn(scheme=scheme), target

    @property
    def plan_label(self) -> str | None:
        """What plans call the result; None where they have no name for it."""
        if self.number_format in (*BLOCKS, "int8"):
            return self.number_format if self.method in (None, "rtn") else None
        if self.number_format != "int4" or self.symmetric is not None or self.group not in (None, USUAL_GROUP):
            return None
        name = self.method or ("gptq" if self.calibrated else "rtn")
        return "int4-g128" if name == "rtn" else name

    def mixed(
        self, checkpoint: Checkpoint, spec: ModelSpec, scan_ST: Tokens, progress: Progress
    ) -> tuple[Method, Target]:
        """What `--target-size` asks for: formats by a scan."""
        if self.number_format is not None or self.target_size is None:
            raise UsageError("--to names one format and --target-size mixes them; give one of both.")
        self._refuse_integers("a mixed file")
        costs = kept_scan(checkpoint, scan_ST)
        if costs is None:
            costs = scanned(spec, embedded(spec, scan_ST), lambda done, total: progress("scanning", done, total))
            keep_scan(checkpoint, scan_ST, costs)
        choices = choices_of(spec, costs)
        fixed = {t.name: t.format for t in requantized(spec, "q4_k_m").tensors if t.name not in choices}
        rest_bytes = gguf_bytes_beside(checkpoint, spec, fixed)
        return self.blocks(fixed | assigned(choices, self.target_size - rest_bytes))

    def blocks(self, formats: dict[str, Format]) -> tuple[Method, Target]:
        """GGUF's blocks in these formats."""
        blocks = Blocks(formats=formats, needs_inputs=self.calibrated)
        return blocks, GgufTarget(label=self.number_format or "mixed", formats=formats)

    def _refuse_integers(self, what: str) -> None:
        if not (self.group is None and self.symmetric is None and self.method in (None, "rtn") and self.layout is None):
            raise UsageError(
                f"{what} has GGUF's blocks, which fix groups and method; leave --group, --symmetric, --method and "
                "--layout away."
            )


@click.command("quantize")
@model_argument
@click.option("--to", "number_format", type=click.Choice([*INTEGERS, *BLOCKS]), help="What weights become.")
@click.option(
    "--target-size",
    callback=memory_bytes,
    metavar="SIZE",
    help="Instead of --to: a GGUF file of at most this, each matrix in the format that serves best, such as 350MB.",
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
    help="Whose files to write (default: the method's, compressed-tensors for rtn; gptq for short groups).",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="OUT", help="The new folder, or GGUF file."
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text like what the model will see (default, where a method needs one: Python's reference).",
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
    out: Path,
    calibration: Path | None,
    samples: int | None,
    sample_tokens: int,
    text: Path | None,
    chunks: int,
    max_kl: float | None,
    memory: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a smaller checkpoint of MODEL, layer by layer, and say what it cost in quality.

    A run that was ended goes on with the same command. --text measures how far the result is from MODEL: give a text
    that is not the calibration's.

    \b
    Examples:
      residency quantize smollm2-135m --to int8 -o smollm2-int8
      residency quantize FOLDER --to int4 --group 128 --method gptq --calibration mine.txt --text wiki.txt -o OUT
      residency quantize FOLDER --to int4 --method awq --calibration mine.txt --text wiki.txt --max-kl 0.05 -o OUT
      residency quantize model-f16.gguf --target-size 350MB --calibration mine.txt -o model-350.gguf
    """
    with Progress() as progress:
        checkpoint = open_checkpoint(fetched(model, progress))
        spec = model_spec(checkpoint)
        forward_of(spec)
        tokenizer = load_tokenizer(checkpoint)
        asked = Asked(calibrated=calibration is not None, **options)
        mixes = asked.target_size is not None
        method, target = asked.blocks({}) if mixes else asked.method_and_target(spec)
        judged_ST = _judged(tokenizer, text, chunks, max_kl)
        sizes = {
            "judged": len(judged_ST),
            "sample_tokens": sample_tokens,
            "scanned_tokens": SCANNED_SAMPLES * SCANNED_TOKENS if mixes else 0,
        }
        num_samples = samples_that_fit(spec, method, wanted=samples or USUAL_SAMPLES, budget_bytes=memory, **sizes)
        if mixes:
            scan_ST = _calibration(tokenizer, calibration, SCANNED_SAMPLES, SCANNED_TOKENS, progress)
            method, target = asked.mixed(checkpoint, spec, scan_ST, progress)
        job = Job(
            checkpoint=checkpoint,
            spec=spec,
            out=out,
            method=method,
            target=target,
            calibration_ST=_calibration(tokenizer, calibration, num_samples, sample_tokens, progress),
            judged_ST=judged_ST,
        )
        evaluation = _quantized(job, max_kl, progress)
    if evaluation is not None and text is not None and (label := asked.plan_label) is not None:
        keep_loss(spec, MeasuredLoss(label=label, part=evaluation.rise, tokens=evaluation.tokens, text=text.name))
    forecast = forecast_bytes(spec, method, samples=num_samples, **sizes)
    report = _report(job, evaluation, forecast)
    click.echo(json.dumps(report, ensure_ascii=False) if as_json else "\n".join(_told(job, evaluation, forecast)))


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


def _calibration(tokenizer: Tokenizer, path: Path | None, num_samples: int, tokens: int, progress: Progress) -> Tokens:
    if not num_samples:
        return np.zeros((0, tokens), np.int64)
    if path is None:
        progress.say("calibrating on Python's reference; --calibration FILE takes text like what the model will see.")
    return spread_samples(tokenizer, usual_text() if path is None else read_text(path), num_samples, tokens)


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
