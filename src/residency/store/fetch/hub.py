"""A model from a hub that speaks Hugging Face's protocol: which of its files are needed, and those files."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from residency.errors import FetchError, UnsupportedError
from residency.store.fetch.download import Connection, RemoteFile, download, explained, reason, refusal, require_space
from residency.store.fetch.resolve import Progress

PREFERRED_FORMAT = "Q4_K_M"
MAX_CHOICES_SHOWN = 12
BESIDE_SAFETENSORS = frozenset(
    "config.json generation_config.json model.safetensors.index.json tokenizer.json tokenizer_config.json "
    "tokenizer.model special_tokens_map.json chat_template.jinja chat_template.json".split()
)
SPLIT_FILE = re.compile(r".*-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """owner/name, with @revision or :file where given."""

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository, with the digests that the hub knows of it."""

    name: str
    num_bytes: int | None
    sha256: str | None  # of large files
    git_sha1: str | None  # of the others


def fetch_from_hub(
    name: HubName, folder: Path, *, progress: Progress, notice: Callable[[str], None] | None = None
) -> Path:
    """The GGUF file, or the folder with config.json, below `folder`. FetchError; what has come by then is kept."""
    info = _ask(name)
    commit = str(info.sha)
    files = choose_files(name, [_described(each) for each in info.siblings or ()], notice)
    place = folder / name.repo.replace("/", "--") / re.sub(r"[^\w.-]", "_", commit)
    missing = [each for each in files if not _is_here(place / each.name, each)]
    with explained(name.repo, place / "any"):
        parts_bytes = sum(part.stat().st_size for part in place.rglob("*.part"))
        require_space(place, sum(each.num_bytes or 0 for each in missing) - parts_bytes, name.repo)
    total_bytes = sum(each.num_bytes or 0 for each in files)
    done_bytes = total_bytes - sum(each.num_bytes or 0 for each in missing)
    for each in missing:
        download(_remote(name, each, commit), place / each.name, progress=_offset(progress, done_bytes, total_bytes))
        done_bytes += each.num_bytes or 0
    return place / files[0].name if files[0].name.endswith(".gguf") else place


def _offset(progress: Progress, before_bytes: int, all_bytes: int) -> Progress:
    """A progress within all files from that of the file which comes after `before_bytes`."""

    def report(done_bytes: int, total_bytes: int) -> None:
        progress(before_bytes + done_bytes, max(all_bytes, before_bytes + total_bytes))

    return report


def _is_here(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.num_bytes


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _ask(name: HubName) -> Any:
    """What the hub says of the repository. FetchError in one sentence, whatever kept it from answering."""
    try:
        from huggingface_hub import HfApi, errors  # imported here: it takes a fifth of a second
    except ImportError as error:
        raise FetchError(f"{name.repo} is on a hub, which needs a package: pip install huggingface-hub") from error
    try:
        return HfApi(endpoint=_endpoint()).model_info(name.repo, revision=name.revision, files_metadata=True)
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{name.repo} asks for its licence to be accepted; accept it on its page, run hf auth login, and try again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(f"{name.repo} has no revision {name.revision!r}; check it, or leave it out.") from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"The hub has no model {name.repo}, or it is private; check the name, or run hf auth login, and try again."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise FetchError(f"{name.repo} is not here and HF_HUB_OFFLINE forbids fetching it; unset that.") from error
    except errors.HFValidationError as error:
        raise FetchError(f"{name.repo} cannot be a hub's name for a model ({reason(error)}); check it.") from error
    except Exception as error:  # the library lets its HTTP client's exceptions through, whichever client that is
        status = getattr(getattr(error, "response", None), "status_code", None)
        host = _endpoint() or "https://huggingface.co"
        if status is not None:
            raise FetchError(refusal(name.repo, int(status), host)) from error
        raise FetchError(f"The hub at {host} cannot be reached: {reason(error)[:200]}. Check the network.") from error


def _described(sibling: Any) -> HubFile:
    large = sibling.lfs
    return HubFile(
        name=sibling.rfilename,
        num_bytes=large.size if large else sibling.size,
        sha256=large.sha256 if large else None,
        git_sha1=None if large else sibling.blob_id,
    )


def _remote(name: HubName, file: HubFile, commit: str) -> RemoteFile:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    return RemoteFile(
        url=hf_hub_url(name.repo, file.name, revision=commit, endpoint=_endpoint()),
        what=f"{file.name} of {name.repo}",
        num_bytes=file.num_bytes,
        sha256=file.sha256,
        git_sha1=file.git_sha1,
        connection=Connection(headers=build_hf_headers()),
    )


def choose_files(name: HubName, files: Sequence[HubFile], notice: Callable[[str], None] | None = None) -> list[HubFile]:
    """The files that make one model: a single GGUF file, or config.json with safetensors and the tokenizer.

    FetchError if the repository has none, or leaves a choice that only a person can make; it lists the choices.
    """
    by_name = {each.name: each for each in files if _is_plain(each.name)}
    if name.file is not None:
        if name.file not in by_name:
            close = difflib.get_close_matches(name.file, by_name, n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else _choices(name, _gguf_names(by_name))
            raise FetchError(f"{name.repo} has no file {name.file}. {hint}")
        return [_whole(name, by_name[name.file])]
    weights = [each for each in by_name if each.endswith(".safetensors") and "/" not in each]
    if weights and "config.json" in by_name:
        models = [each for each in weights if each.startswith("model")] or weights
        return [by_name[each] for each in sorted(by_name) if each in BESIDE_SAFETENSORS or each in models]
    ggufs = _gguf_names(by_name)
    preferred = [each for each in ggufs if PREFERRED_FORMAT in each.upper()]
    if len(ggufs) == 1:
        return [_whole(name, by_name[ggufs[0]])]
    if len(preferred) == 1:
        if notice:
            notice(f"{name.repo} has {len(ggufs)} GGUF files; {preferred[0]} was chosen. {_choices(name, ggufs)}")
        return [_whole(name, by_name[preferred[0]])]
    if ggufs:
        raise FetchError(f"{name.repo} has {len(ggufs)} GGUF files. {_choices(name, ggufs)}")
    raise FetchError(f"{name.repo} has neither a GGUF file nor config.json with safetensors; name another model.")


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _gguf_names(names: Sequence[str] | dict[str, HubFile]) -> list[str]:
    return sorted(each for each in names if each.lower().endswith(".gguf") and "mmproj" not in each.lower())


def _choices(name: HubName, ggufs: Sequence[str]) -> str:
    if not ggufs:
        return "It has no GGUF files."
    more = f" and {len(ggufs) - MAX_CHOICES_SHOWN} more" if len(ggufs) > MAX_CHOICES_SHOWN else ""
    at = f"@{name.revision}" if name.revision else ""
    return f"Name one as {name.repo}{at}:{ggufs[0]}; there are {', '.join(ggufs[:MAX_CHOICES_SHOWN])}{more}."


def _whole(name: HubName, file: HubFile) -> HubFile:
    if SPLIT_FILE.fullmatch(file.name):
        raise UnsupportedError(
            f"{file.name} of {name.repo} is one part of a split GGUF file, which residency does not read; "
            "name a whole one."
        )
    return file
