"""`residency completion`: what a shell needs to complete commands, options, models and files."""

import click
from click.shell_completion import get_completion_class

from residency.cli.main import main


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes verbs, options, models and files in a SHELL.

    \b
    Examples:
      residency completion bash >> ~/.bashrc
      residency completion zsh > "${fpath[1]}/_residency"
      residency completion fish > ~/.config/fish/completions/residency.fish
    """
    completer = get_completion_class(shell)
    assert completer is not None, "click knows these shells"
    script = completer(main, {}, "residency", "_RESIDENCY_COMPLETE")
    click.echo(script.source_template % script.source_vars())
