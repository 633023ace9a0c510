"""What verbs have in common: the model's name, amounts of memory, and the options that make a plan."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from residency.errors import UsageError
from residency.models.made_up import RandomWeights
from residency.spec.state import AnyKvName
from residency.store.fetch import CATALOG
from residency.units import parse_bytes

DeviceName = Literal["cpu", "cuda"]
F = TypeVar("F", bound=Callable[..., Any])


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For shells: the catalog's names that begin so, else files."""
    names = [CompletionItem(name) for name in CATALOG if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def memory_bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """The bytes that an option names, such as "400MiB"; UsageError where it names none."""
    return None if text is None else parse_bytes(text)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a user may ask of a plan; None leaves the choice to the planner."""

    memory_bytes: int | None = None
    context_tokens: int | None = None
    threads: int | None = None
    kv_format: AnyKvName | None = None
    device: DeviceName | None = None
    random_weights: RandomWeights | None = None

    def __post_init__(self) -> None:
        """UsageError where weights are to be made up on the processor."""
        if self.random_weights is not None and self.device != "cuda":
            raise UsageError("--random-weights makes weights on a device; give --device cuda too.")

    def refuse_any(self, source: str) -> None:
        """UsageError if something is asked for that the plan `source` has decided."""
        given = {
            "--memory": self.memory_bytes,
            "--context": self.context_tokens,
            "--threads": self.threads,
            "--kv": self.kv_format,
            "--device": self.device,
            "--random-weights": self.random_weights,
        }
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{source} is a plan and has decided {name}; leave it away, or plan anew.")


model_argument = click.argument("model", metavar="MODEL", shell_complete=complete_model)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where to compute (default: cpu); cuda needs a GPU and: pip install 'residency[gpu]'.",
)


random_weights_option = click.option(
    "--random-weights",
    type=click.Choice(get_args(RandomWeights)),
    help="Make weights up instead of reading them, in the model's own formats (source) or in integers; with --device "
    "cuda. What the model then writes has no meaning.",
)


def plan_options(function: F) -> F:
    """--memory, --context, --threads, --kv, --device and --random-weights, handed to the command as `asked:
    PlanOptions`.
    """

    def command(
        *arguments: Any,
        memory: int | None,
        context: int | None,
        threads: int | None,
        kv: AnyKvName | None,
        device: DeviceName | None,
        random_weights: RandomWeights | None,
        **others: Any,
    ) -> Any:
        asked = PlanOptions(
            memory_bytes=memory,
            context_tokens=context,
            threads=threads,
            kv_format=kv,
            device=device,
            random_weights=random_weights,
        )
        return function(*arguments, asked=asked, **others)

    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    command.__dict__.update(function.__dict__)
    decorated: Any = command
    for decorate in (
        random_weights_option,
        device_option,
        click.option(
            "--kv",
            type=click.Choice(get_args(AnyKvName), case_sensitive=False),
            help="Format of keys and values (default: INT8 where that was measured to change little, else F16; of the "
            "bytes of F16, F32 takes twice, INT8 about half, INT4 a quarter; BF16, the default there, and FP8 are for "
            "--device cuda).",
        ),
        click.option("--threads", type=int, metavar="N", help="Threads to compute with (default: all allowed)."),
        click.option("--context", type=int, metavar="TOKENS", help="Tokens of prompt and answer together."),
        click.option(
            "--memory",
            callback=memory_bytes,
            metavar="SIZE",
            help="Budget of the whole process, such as 400MiB or 2GB.",
        ),
    ):
        decorated = decorate(decorated)
    return decorated  # type: ignore[no-any-return]
