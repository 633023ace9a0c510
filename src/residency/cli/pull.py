"""`residency pull`: fetch a model, or list those that have a short name."""

import json

import click

from residency.cli.options import complete_model, json_option
from residency.cli.planned import fetched
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.store.fetch import CATALOG, find
from residency.units import decimal_bytes


@click.command("pull")
@click.argument("name", required=False, shell_complete=complete_model)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """Fetch the model NAME and print where it is; without a NAME, list the models that the catalog knows.

    A NAME is one of the catalog's or a hub id. An interrupted pull goes on where it stopped; checksums are verified.

    \b
    Examples:
      residency pull smollm2-135m
      residency pull owner/name:model-q4_k_m.gguf
    """
    if name is None:
        _list_models(as_json)
        return
    with Progress() as progress:
        path = fetched(name, progress)
    click.echo(json.dumps({"name": name, "path": str(path)}) if as_json else str(path))


def _list_models(as_json: bool) -> None:
    here = {name: find(name) for name in CATALOG}
    if as_json:
        models = [
            {
                "name": name,
                "description": entry.description,
                "licence": entry.licence,
                "bytes": entry.num_bytes,
                "path": None if here[name] is None else str(here[name]),
            }
            for name, entry in CATALOG.items()
        ]
        click.echo(json.dumps({"models": models}, ensure_ascii=False))
        return
    rows = [("NAME", "SIZE", "LICENCE", "FETCHED", "WHAT IT IS")]
    for name, entry in CATALOG.items():
        fetched_here = "yes" if here[name] else "no"
        rows.append((name, decimal_bytes(entry.num_bytes), entry.licence, fetched_here, entry.description))
    click.echo("\n".join(columns(rows, right=(1,))))
