"""The command line: one file per verb, imported when the verb is called.

Exit codes: 0 done; 1 a check that does not hold (verify); 2 bad input, in one sentence; 70 a fault of residency's own;
130 interrupted; 141 nobody reads what is printed.
"""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from residency import __version__
from residency.errors import ResidencyError

BAD_INPUT, OWN_FAULT, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141
VERBS = {
    "run": "Answer a prompt, or chat, inside a memory budget.",
    "serve": "Serve a model to OpenAI's clients, inside a memory budget.",
    "batch": "Answer a file of requests in OpenAI's batch format; go on after a kill.",
    "plan": "Show what fits here or on any machine, where, and how fast.",
    "compare": "Hold models and machines beside each other.",
    "explain": "Tell a saved plan in words.",
    "inspect": "Show a model from its file headers alone.",
    "prepare": "Do what only a first run does: fetch, measure, compile, convert.",
    "pull": "Fetch a model, or list those that the catalog knows.",
    "probe": "Show what this machine can do, as measured.",
    "machines": "List the machines that plans can be made for, with the source of each figure.",
    "verify": "Hold a forecast against its run, or measure perplexity.",
    "quantize": "Make a smaller checkpoint, and say what it cost in quality.",
    "evaluate": "Measure perplexity on a text, and how far a model is from a reference.",
    "bench": "Measure speed and how near it is to the machine's limits.",
    "completion": "Print the script that completes commands in a shell.",
}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class Residency(click.Group):
    """The verbs, loaded lazily, and every exception in the one form that users see."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order in which people meet them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"residency.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing any verb."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; quietly end where nobody reads its output any more."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            _discard_output()
            raise click.exceptions.Exit(BROKEN_PIPE) from None

    def main(self, args: Sequence[str] | None = None, *positional: Any, **options: Any) -> Any:
        """Parse and run; always ends in SystemExit, with a sentence on stderr where something went wrong."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        options["standalone_mode"] = False
        try:
            code = super().main(args, *positional, **options)
        except Exception as error:
            if os.environ.get("RESIDENCY_DEBUG"):
                import traceback

                traceback.print_exc()
            code = _explain(error)
        sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Say what happened in one sentence; returns the exit code."""
    match error:
        case click.Abort():
            return INTERRUPTED
        case click.ClickException():
            return _explain_usage(error)
        case ResidencyError():
            return _say(str(error), BAD_INPUT)
        case MemoryError():
            return _say("the memory that this process may have is used up; give a smaller --context.", BAD_INPUT)
        case OSError():
            return _say(_system_sentence(error), BAD_INPUT)
    kind, reason = type(error).__name__, " ".join(str(error).split())[:300]
    return _say(
        f"a fault of residency's own ({kind}: {reason}); set RESIDENCY_DEBUG=1 to see where, and please report it.",
        OWN_FAULT,
    )


def _explain_usage(error: click.ClickException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # where click has it: it carries the help text
        click.echo(error.format_message())
        return BAD_INPUT
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" See {context.command_path} --help." if context else ""
    message = " ".join(error.format_message().split())
    return _say(f"{message.rstrip('.')}.{hint}", BAD_INPUT)


def _system_sentence(error: OSError) -> str:
    place = f" ({str(error.filename)[:200]})" if error.filename is not None else ""
    if error.errno in _FULL_DISK:
        return f"the disk is full{place}; free some space, or set RESIDENCY_CACHE to a folder on another disk."
    if isinstance(error, PermissionError):
        return f"the operating system does not allow it{place}; change the permissions, or use another place."
    return f"{error.strerror or error}{place}."


def _say(sentence: str, code: int) -> int:
    click.echo(f"residency: {sentence}", err=True)
    return code


def _discard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's last flush does not complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass


@click.command(cls=Residency, name="residency", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="residency %(version)s")
def main() -> None:
    """Run a language model in the memory you have, and know beforehand what will fit and how fast it will go.

    \b
    Example:
      residency run smollm2-135m "Why is the sky blue?" --memory 400MiB
    """
