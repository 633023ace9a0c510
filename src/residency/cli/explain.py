"""`residency explain`: a saved plan or answer in words."""

import json
from pathlib import Path

import click

from residency.cli.told import in_words
from residency.errors import FileError
from residency.planner import Plan
from residency.planner.answers import AnswerRecord
from residency.planner.explain import explain


@click.command("explain")
@click.argument("plan", metavar="PLAN", type=click.Path(path_type=Path))
def command(plan: Path) -> None:
    """Tell in words what the file PLAN says: what `residency plan` has written with --json or --plan-out.

    \b
    Examples:
      residency plan llama-3-8b --on rtx4090 --json > answer.json
      residency explain answer.json
    """
    click.echo(explained(plan))


def explained(path: Path) -> str:
    """The file in words. FileError where it is neither a plan nor an answer."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise FileError(f"{path} could not be read: {reason}; write one with residency plan --json.") from None
    if _is_run(text):
        return explain(Plan.from_json(text))
    return in_words(AnswerRecord.from_json(text))


def _is_run(text: str) -> bool:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return False  # reading it as an answer says what is wrong
    return isinstance(data, dict) and "plan_version" in data
