"""`residency run`: a prompt, or a conversation, inside a memory budget."""

import json
from pathlib import Path

import click

from residency.cli.answer import print_answer
from residency.cli.options import PlanOptions, json_option, model_argument, plan_options
from residency.cli.planned import planned, save_plan
from residency.cli.prepare import prepare_first
from residency.cli.progress import Progress
from residency.cli.prompts import conversation, prompt_of, read_prompt
from residency.engine.ceiling import held_to_budget
from residency.engine.engine import Engine
from residency.engine.report import Report
from residency.engine.sampler import Sampling
from residency.errors import UsageError
from residency.planner.explain import MEANINGLESS, explain, speed
from residency.units import mib, seconds

INTERRUPTED = 130


@click.command("run", short_help="Answer a prompt, or chat, inside a memory budget.")
@model_argument
@click.argument("prompt", required=False)
@plan_options
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of the answer at most.")
@click.option("--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest token.")
@click.option("--top-k", type=int, metavar="K", help="Choose among the K likeliest tokens.")
@click.option(
    "--top-p", type=float, metavar="P", help="Choose among the likeliest that together have this probability."
)
@click.option(
    "--min-p", type=float, metavar="P", help="Choose among those with this part of the likeliest's probability."
)
@click.option("--repetition-penalty", type=float, default=1.0, metavar="R", help="Above 1: avoid tokens that occurred.")
@click.option("--seed", type=int, metavar="N", help="Equal seeds give equal answers.")
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without its chat template.")
@click.option("--quiet", "-q", is_flag=True, help="Print the answer alone.")
@click.option("--plan-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep the plan.")
@json_option
def command(
    model: str,
    prompt: str | None,
    asked: PlanOptions,
    max_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    seed: int | None,
    system: str | None,
    raw: bool,
    quiet: bool,
    plan_out: Path | None,
    as_json: bool,
) -> None:
    """Answer PROMPT with MODEL: a catalog name, a GGUF file, a folder, a hub id, or a plan kept with --plan-out.

    Without a PROMPT (or with "-") it is read from standard input; on a terminal, a conversation begins (Ctrl-C stops
    an answer, Ctrl-D ends). What the run will need is printed before it starts, what it needed afterwards.

    \b
    Examples:
      residency run smollm2-135m "Why is the sky blue?" --memory 400MiB
      residency run model.gguf --system "Answer in French." --temperature 0.7 --seed 1 < question.txt
      residency run smollm2-135m "Hello" --plan-out plan.json && residency run plan.json "Hello"
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if raw and system is not None:
        raise UsageError("--raw gives the model the prompt alone; leave --system away, or write it into the prompt.")
    text = read_prompt(prompt, chatting=not (as_json or raw))
    prepare_first(model, asked)
    with Progress() as progress:
        plan = planned(model, asked, progress)
        if plan_out is not None:
            save_plan(plan, plan_out)
        if not (as_json or quiet):
            click.echo(explain(plan))
        elif plan.is_made_up:
            progress.say(MEANINGLESS)
        with Engine.open(plan, progress=progress) as engine, held_to_budget(plan):
            progress.close()
            if text is None:
                report = conversation(engine, system=system, max_tokens=max_tokens, sampling=sampling)
                if report is not None and not quiet:
                    click.echo(ran_lines(report))
                return
            request = prompt_of(engine, text, system=system, raw=raw)
            answer = print_answer(engine.stream(request, max_tokens=max_tokens, sampling=sampling), visible=not as_json)
            report = answer.report
    if as_json:
        click.echo(json.dumps(report.to_data(), ensure_ascii=False))
    elif not quiet:
        click.echo(ran_lines(report))
    if answer.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


def ran_lines(report: Report) -> str:
    """What a run did, its forecast beside it: two lines without a newline at the end."""
    forecast, measured = report.plan.memory, report.memory
    tokens = f"{report.completion_tokens} token{'s' if report.completion_tokens != 1 else ''}"
    return (
        f"ran    {tokens} · {_speed(report)}\n"
        f"       peak {mib(measured.peak)} (forecast {_in_mib(forecast.peak)}): "
        f"weights {_in_mib(measured.weights)} ({_in_mib(forecast.weights)}) · "
        f"KV {_in_mib(measured.kv_cache)} of {_in_mib(forecast.kv_cache)} · "
        f"activations {_in_mib(measured.activations)} ({_in_mib(forecast.activations)}) · "
        f"runtime {_in_mib(measured.runtime)} ({_in_mib(forecast.runtime)})"
    )


def _speed(report: Report) -> str:
    if report.completion_tokens < 2:  # decoding begins with the second
        return f"the first after {seconds(report.seconds.first_token)}"
    return (
        f"{speed(report.decode_tokens_per_second)} tokens/s "
        f"(forecast {speed(report.plan.forecast.decode_tokens_per_second)}) · {_limit(report)}"
    )


def _limit(report: Report) -> str:
    if report.disk is not None and report.plan.forecast.bound == "disk":
        return f"{report.disk.utilisation:.0%} of what this machine's disk reads"
    if report.expert_hit_rate is not None:
        return f"{report.expert_hit_rate:.0%} of the experts needed were in memory"
    return f"{report.bandwidth.utilisation:.0%} of this machine's memory bandwidth"


def _in_mib(num_bytes: int) -> str:
    return mib(num_bytes).removesuffix(" MiB")
