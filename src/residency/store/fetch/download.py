"""One file over HTTP (or from a file:// address): resumed, verified, and complete or not there at all."""

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from residency.errors import FetchError
from residency.store.fetch.resolve import Progress
from residency.units import decimal_bytes

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30.0
MAX_FRUITLESS_ATTEMPTS = 5  # in a row, without a byte more
FIRST_PAUSE_SECONDS = 0.25  # doubled after each fruitless attempt
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
HASH_PREFIX_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach servers. Without a proxy, the environment's proxy settings hold."""

    certificates: str | None = None  # a file of trusted authorities
    proxy: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # sent to the address's own host alone

    def open(self, url: str, **headers: str) -> Any:
        """The response to GET. OSError (urllib's HTTPError and URLError among them)."""
        parts = urlsplit(url)
        if parts.username is not None and parts.hostname is not None:
            import base64

            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
            host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
            url = urlunsplit(parts._replace(netloc=host))
        context = ssl.create_default_context(cafile=self.certificates) if parts.scheme == "https" else None
        handlers: list[urllib.request.BaseHandler] = [_KeepSecrets()]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        if self.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        request = urllib.request.Request(url, headers={**self.headers, **headers})
        return urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_SECONDS)


class _KeepSecrets(urllib.request.HTTPRedirectHandler):
    """Follows redirections without telling another host what was meant for the first."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            for name in ("Authorization", "Cookie"):
                request.remove_header(name)
        return request


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file somewhere else and what is known of it."""

    url: str
    what: str  # for people
    num_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None  # of the file as a git blob
    connection: Connection = field(default_factory=Connection, repr=False)

    @property
    def key(self) -> str:
        """Changes with the content, so that a part is never continued with something else."""
        known = self.sha256 or self.git_sha1 or hashlib.sha256(self.url.encode()).hexdigest()
        return known[:HASH_PREFIX_CHARACTERS]


def download(remote: RemoteFile, target: Path, *, progress: Progress) -> None:
    """`target`, complete and verified; FetchError if not, and then no `target`.

    Bytes that came before an interruption stay beside it in a .part file, from which the next call goes on; a part
    that proves wrong, or that fills the disk, is removed.
    """
    part = target.with_name(f"{target.name}.{remote.key}.part")
    with explained(remote.what, part), locked(part, remote.what):
        have_bytes = part.stat().st_size
        if remote.num_bytes is not None:
            if have_bytes > remote.num_bytes:
                os.truncate(part, 0)
                have_bytes = 0
            require_space(target.parent, remote.num_bytes - have_bytes, remote.what)
        _transfer(remote, part, progress)
        _verify(remote, part)
        os.replace(part, target)


@contextmanager
def explained(what: str, scratch: Path) -> Iterator[None]:
    """Operating system errors as FetchErrors; a full disk gets its bytes back."""
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            with suppress(OSError):
                scratch.unlink()
            raise FetchError(
                f"The disk of {scratch.parent} became full while {what} was fetched; free some space, or set "
                "RESIDENCY_CACHE to a folder on another disk."
            ) from error
        raise FetchError(f"{what} could not be kept in {scratch.parent}: {error.strerror or error}.") from error


@contextmanager
def locked(part: Path, what: str) -> Iterator[None]:
    """Nobody else writes `part`, which exists, meanwhile. FetchError if somebody does already."""
    with open(part, "ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows: an open file cannot be replaced there, which is as good
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"Another process is fetching {what}; wait for it, or end it and try again.") from None
        yield


def require_space(folder: Path, need_bytes: int, what: str) -> None:
    """FetchError if the disk of `folder` has less than `need_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if need_bytes > free_bytes:
        raise FetchError(
            f"{what} needs {decimal_bytes(need_bytes)} more on the disk of {folder}, which has "
            f"{decimal_bytes(free_bytes)} free: {decimal_bytes(need_bytes - free_bytes)} too little. "
            "Free some space, or set RESIDENCY_CACHE to a folder on another disk."
        )


def _transfer(remote: RemoteFile, part: Path, progress: Progress) -> None:
    """Appends to `part` until it is whole, again and again while it grows."""
    fruitless = 0
    while True:
        before_bytes = part.stat().st_size
        if remote.num_bytes is not None and before_bytes == remote.num_bytes:
            progress(before_bytes, before_bytes)
            return
        problem: Exception | None = None
        try:
            if _receive(remote, part, before_bytes, progress):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part is longer than the file: it is of something else
                os.truncate(part, 0)
            elif error.code not in PASSING_STATUSES:
                raise FetchError(refusal(remote.what, error.code, remote.url)) from error
            problem = error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            if remote.url.startswith("file:"):
                raise FetchError(
                    f"{remote.what} could not be read from {shown(remote.url)}: {reason(error)}."
                ) from error
            problem = error
        grown = part.stat().st_size > before_bytes
        fruitless = 0 if grown else fruitless + 1
        if fruitless == MAX_FRUITLESS_ATTEMPTS:
            raise FetchError(
                f"{remote.what} could not be fetched from {shown(remote.url)}: {reason(problem)}. Check the network "
                f"and try again; {decimal_bytes(part.stat().st_size)} are here already and stay."
            ) from problem
        if fruitless:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (fruitless - 1))


def _receive(remote: RemoteFile, part: Path, have_bytes: int, progress: Progress) -> bool:
    """One request; whether the file is whole afterwards."""
    headers = {"Accept-Encoding": "identity"}
    if have_bytes:
        headers["Range"] = f"bytes={have_bytes}-"
    with closing(remote.connection.open(remote.url, **headers)) as response:
        if have_bytes and not _continues(response, have_bytes):  # the server cannot resume
            os.truncate(part, 0)
            have_bytes = 0
        length = response.headers.get("Content-Length")
        total_bytes = remote.num_bytes or (have_bytes + int(length) if length else 0)
        with open(part, "ab") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                have_bytes += len(chunk)
                if total_bytes and have_bytes > total_bytes:
                    break
                progress(have_bytes, max(total_bytes, have_bytes))
    return have_bytes >= total_bytes


def _continues(response: Any, have_bytes: int) -> bool:
    content_range = response.headers.get("Content-Range") or ""
    return getattr(response, "status", None) == 206 and content_range.startswith(f"bytes {have_bytes}-")


def _verify(remote: RemoteFile, part: Path) -> None:
    num_bytes = part.stat().st_size
    if remote.num_bytes is not None and num_bytes != remote.num_bytes:
        part.unlink()
        raise FetchError(
            f"{remote.what} has {num_bytes} bytes at {shown(remote.url)} and should have {remote.num_bytes}; it was "
            "thrown away. Try again, or another mirror."
        )
    for want, digest in (
        (remote.sha256, hashlib.sha256()),
        (remote.git_sha1, hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)),
    ):
        if want is not None:
            with open(part, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
            check_digest(remote.what, digest.hexdigest(), want, part)


def check_digest(what: str, got: str, want: str, scratch: Path) -> None:
    """FetchError, with `scratch` removed, if `got` is not the digest that is wanted."""
    if got != want:
        scratch.unlink()
        raise FetchError(
            f"{what} is not what it should be: its checksum is {got[:16]}… and should be {want[:16]}…; it was thrown "
            "away. Try again, or another mirror."
        )


def refusal(what: str, status: int, url: str) -> str:
    """A sentence for an HTTP status that will not pass by itself."""
    if status in (401, 403):
        return (
            f"{shown(url)} refuses {what} (HTTP {status}): log in there, or set the token that it wants, and try again."
        )
    if status in (404, 410):
        return f"{what} is not at {shown(url)} (HTTP {status}); check the name."
    return f"{shown(url)} could not give {what} (HTTP {status}); try again later."


def reason(error: Exception | None) -> str:
    """What kept a request from being answered, in a few words."""
    if error is None:
        return "the connection ended early"
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    return str(getattr(error, "reason", None) or error or type(error).__name__).rstrip(".")


def shown(url: str) -> str:
    """An address for people: the host, without secrets and queries."""
    parts = urlsplit(url)
    return parts.hostname or unquote(parts.path)
