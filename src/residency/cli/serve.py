"""`residency serve`: a model behind OpenAI's interface, inside a memory budget."""

import ctypes
import json
import os
from pathlib import Path
from typing import Literal

import click

from residency.cli.options import PlanOptions, json_option, memory_bytes, model_argument, plan_options
from residency.cli.planned import is_plan_file, planned, save_plan
from residency.cli.prepare import prepare_first
from residency.cli.progress import Progress
from residency.engine.calibrate import this_machine
from residency.engine.ceiling import held_to_budget
from residency.engine.device import pinned_swap
from residency.engine.engine import Engine
from residency.engine.kv_store import MOST_SLOTS, KvStoreSpace
from residency.engine.service import Service
from residency.engine.swap import SwapSpace
from residency.errors import UsageError
from residency.paths import cache_folder
from residency.planner import Plan
from residency.planner.explain import explain
from residency.planner.memory import DEFAULT_CONTEXT_TOKENS
from residency.records import to_data

SERVE_FOOTPRINT = "residency.server.footprint"
API_KEY_VARIABLE = "RESIDENCY_API_KEY"
DEFAULT_SEQUENCES = 16
DEFAULT_KV_STORE = "4GiB"
DEFAULT_INTERVAL_MS = 25  # forty pieces of text a second: more than anybody reads
Admission = Literal["guaranteed", "optimistic"]
_UNTOUCHED_BYTES = 512 * 1024**2  # the stacks of forty threads, of which each touches little
_M_ARENA_MAX = -8  # of mallopt(3)

max_sequences_option = click.option(
    "--max-sequences",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Answers that are computed side by side.  [default: {DEFAULT_SEQUENCES}]",
)
admission_option = click.option(
    "--admission",
    type=click.Choice(["optimistic", "guaranteed"]),
    default="optimistic",
    show_default=True,
    help="optimistic: requests share pages and one may have to begin again; guaranteed: none ever does, fewer run.",
)


@click.command("serve", short_help="Serve a model to OpenAI's clients, inside a memory budget.")
@model_argument
@plan_options
@max_sequences_option
@admission_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for everybody's.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free one.")
@click.option("--queue", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--swap",
    "swap_bytes",
    callback=memory_bytes,
    metavar="BYTES",
    help="Room on disk, with --device cuda in RAM, for requests that others have taken the pages of, where that is "
    "quicker than beginning again.",
)
@click.option(
    "--kv-store",
    "kv_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep computed prompts there: for those that begin alike, now and after a restart.",
)
@click.option(
    "--kv-store-size",
    "kv_bytes",
    callback=memory_bytes,
    default=DEFAULT_KV_STORE,
    show_default=True,
    metavar="BYTES",
    help="The most that they take.",
)
@click.option(
    "--stream-interval",
    "interval_ms",
    type=click.IntRange(0, 1000),
    default=DEFAULT_INTERVAL_MS,
    show_default=True,
    metavar="MS",
    help="How long a token may wait to be sent with those after it, where steps are quicker; 0: none does.",
)
@click.option("--name", "names", multiple=True, metavar="NAME", help="What clients call the model (default: MODEL).")
@click.option("--api-key", "api_keys", multiple=True, metavar="KEY", help=f"Ask for it; better in {API_KEY_VARIABLE}.")
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN", help="Allow web pages of this origin, or of '*'.")
@click.option("--drain", type=click.IntRange(min=0), default=30, show_default=True, help="Seconds to end in.")
@click.option("--plan-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep the plan.")
@json_option
def command(
    model: str,
    asked: PlanOptions,
    max_sequences: int | None,
    admission: Admission,
    host: str,
    port: int,
    queue: int,
    swap_bytes: int | None,
    kv_folder: Path | None,
    kv_bytes: int,
    interval_ms: int,
    names: tuple[str, ...],
    api_keys: tuple[str, ...],
    origins: tuple[str, ...],
    drain: int,
    plan_out: Path | None,
    as_json: bool,
) -> None:
    """Serve MODEL: a catalog name, a GGUF file, a folder, a hub id, or a plan kept with --plan-out.

    The plan is printed first, then the address. What is not for one request alone, the KV cache above all, takes the
    rest of --memory. Ctrl-C, or SIGTERM, finishes what has begun and ends.

    \b
    Examples:
      residency serve smollm2-135m --memory 400MiB
      curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    require_server()
    from residency.server.app import App, Limits  # imported here: other verbs must not pay for a server
    from residency.server.logs import log_to_stderr
    from residency.server.model import Model
    from residency.server.serving import bound_socket, listen, serve

    keys = api_keys or tuple(filter(None, os.environ.get(API_KEY_VARIABLE, "").split(",")))
    names = names or (name_of(model),)
    with bound_socket(host, port) as bound:
        plan = serving_plan(model, asked, max_sequences, keeps_pages=kv_folder is not None)
        swap, store = swap_space(plan, swap_bytes), kv_space(plan, kv_folder, kv_bytes)
        if plan_out is not None:
            save_plan(plan, plan_out)
        if not as_json:
            click.echo(explain(plan))
        few_arenas()
        log_to_stderr()
        with (
            Progress() as progress,
            Engine.open(plan, progress=progress) as engine,
            Service(
                engine,
                queue_limit=queue,
                admission=admission,
                swap=swap,
                store=store,
                stream_interval_seconds=interval_ms / 1000,
            ) as service,
            Model.of(engine, names=names) as served,
        ):
            progress.close()
            served.prepare_grammars()
            app = App(
                service,
                served,
                plan,
                Limits(api_keys=keys, cors_origins=origins, max_requests=2 * (queue + plan.max_sequences)),
            )
            address = f"{listen(bound)}/v1"
            if as_json:
                click.echo(json.dumps({"url": address, "model": names[0], "plan": to_data(plan)}))
            else:
                known = f" · {service.metrics().loop.kept_pages} pages kept" if store is not None else ""
                sequences = f"{plan.max_sequences} sequences"
                click.echo(f"serves {names[0]} at {address} · {sequences} · admission {admission}{known}")
            with held_to_budget(plan, untouched_bytes=_UNTOUCHED_BYTES):
                serve(app, service, bound, drain_seconds=drain)


def require_server() -> None:
    """UsageError where the libraries of the extra [serve] are not installed."""
    try:
        import residency.server.serving  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing; install it with: pip install 'residency[serve]'.") from error


def serving_plan(model: str, asked: PlanOptions, max_sequences: int | None, *, keeps_pages: bool = False) -> Plan:
    """The plan of a server, whose process takes more than a run's, and more again with a KV store. Does first what only
    a first run does.
    """
    if max_sequences is not None and is_plan_file(model):
        raise UsageError(f"{model} is a plan and has decided --max-sequences; leave it away, or plan anew.")
    from residency.server.intake import body_bytes_for

    prepare_first(model, asked)
    longest_body = body_bytes_for(asked.context_tokens or DEFAULT_CONTEXT_TOKENS)
    footprint = f"{SERVE_FOOTPRINT} {longest_body}" + (f" {MOST_SLOTS}" if keeps_pages else "")
    with Progress() as progress:
        return planned(model, asked, progress, max_sequences=max_sequences or DEFAULT_SEQUENCES, footprint=footprint)


def swap_space(plan: Plan, num_bytes: int | None) -> SwapSpace | None:
    """So much of the cache folder, as quick as this machine's disk was measured, or of RAM beside a device; none for no
    bytes.
    """
    if not num_bytes:
        return None
    if plan.device is not None:
        return pinned_swap(num_bytes)
    disk = this_machine().tier("disk")
    return SwapSpace(folder=cache_folder(), num_bytes=num_bytes, bytes_per_second=disk.read_bytes_per_second(threads=1))


def kv_space(plan: Plan, folder: Path | None, num_bytes: int) -> KvStoreSpace | None:
    """Where prompts' pages are kept, as quick as this machine's disk was measured. None, and a word about it, where the
    plan's model computes them sooner than that disk gives them.
    """
    if folder is None:
        return None
    rate = this_machine().tier("disk").read_bytes_per_second(threads=1)
    space = KvStoreSpace(folder=folder, num_bytes=num_bytes, bytes_per_second=rate)
    if space.pays(plan):
        return space
    click.echo("--kv-store is not used: a page is forecast to be computed sooner than it is read.", err=True)
    return None


def name_of(model: str) -> str:
    """What clients call a model: its catalog name or hub id, or the name of its file."""
    if is_plan_file(model):
        return Plan.from_json(Path(model).read_text("utf-8")).model_path.stem
    path = Path(model)
    return path.stem if path.is_file() else path.name if path.is_dir() else model


def few_arenas() -> None:
    """Let all threads allocate from two arenas: freed memory of one thread is used again by others (glibc)."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    except (OSError, AttributeError):
        pass  # another C library
