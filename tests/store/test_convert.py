"""A store is whole or absent, and holds what its checkpoint holds."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from residency.errors import FileError, StoreError
from residency.models.specs import model_spec
from residency.spec import ModelSpec, open_checkpoint
from residency.spec.layout import store_layout
from residency.store.convert import convert
from residency.store.weights import ensure_store
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import small_model

KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from residency.models.specs import model_spec
from residency.spec import open_checkpoint
from residency.store.convert import convert

def progress(done_bytes, total_bytes):
    if done_bytes > total_bytes // 2:
        os.kill(os.getpid(), signal.SIGKILL)

convert(model_spec(open_checkpoint(Path(sys.argv[1]))), Path(sys.argv[2]), progress=progress)
"""


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", small_model("llama"), "Q4_K")


@pytest.fixture
def model(path: Path) -> ModelSpec:
    return model_spec(open_checkpoint(path))


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


def killed_conversion(path: Path, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(path), str(folder)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL


def refuse_at_the_end(code: int) -> Callable[[int], None]:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("number_format", ["F32", "Q4_1", "Q6_K"])
def test_a_store_is_as_long_as_its_layout_says(number_format: str, tmp_path: Path) -> None:
    model = model_spec(open_checkpoint(write_gguf(tmp_path / "m.gguf", small_model("qwen2"), number_format)))
    convert(model, tmp_path / "store")
    assert (tmp_path / "store" / "weights").stat().st_size == store_layout(model).total_bytes


def test_a_store_is_within_three_percent_of_its_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small_model("llama", vocabulary=4096), "Q4_1")
    model = model_spec(open_checkpoint(path))
    convert(model, tmp_path / "store")
    assert (tmp_path / "store" / "weights").stat().st_size < 1.03 * path.stat().st_size


def test_progress_ends_at_the_bytes_of_all_tensors(model: ModelSpec, tmp_path: Path) -> None:
    seen: list[int] = []
    convert(model, tmp_path / "store", progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen) and seen[-1] == sum(entry.num_bytes for entry in store_layout(model).entries)


def test_a_killed_conversion_leaves_no_store(path: Path, tmp_path: Path) -> None:
    killed_conversion(path, tmp_path / "stores" / "store")
    assert not (tmp_path / "stores" / "store").exists()


def test_the_next_conversion_removes_what_a_killed_one_left(path: Path, model: ModelSpec, tmp_path: Path) -> None:
    killed_conversion(path, tmp_path / "stores" / "store")
    convert(model, tmp_path / "stores" / "store")
    assert [entry.name for entry in (tmp_path / "stores").iterdir()] == ["store"]


def test_an_interrupted_conversion_leaves_nothing(model: ModelSpec, tmp_path: Path) -> None:
    def interrupt(_: int, __: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "stores" / "store", progress=interrupt)
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_conversion_that_somebody_else_finished_first_is_as_good(model: ModelSpec, tmp_path: Path) -> None:
    convert(model, tmp_path / "theirs")

    def finish_first(done_bytes: int, _: int) -> None:
        if not (tmp_path / "stores" / "store").exists():
            shutil.copytree(tmp_path / "theirs", tmp_path / "stores" / "store")

    convert(model, tmp_path / "stores" / "store", progress=finish_first)
    assert [entry.name for entry in (tmp_path / "stores").iterdir()] == ["store"]


def test_a_disk_without_room_is_refused_with_what_is_missing(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 1 << 30, 1024))
    with pytest.raises(StoreError, match=r"1\.0 KiB are free, .* too little\. Free that much"):
        convert(model, tmp_path / "stores" / "store")


def test_a_disk_that_becomes_full_is_named_in_one_sentence_of_what_happened(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse_at_the_end(errno.ENOSPC))
    with pytest.raises(StoreError, match="the disk is full; it needs"):
        convert(model, tmp_path / "stores" / "store")


def test_a_disk_that_becomes_full_is_left_as_it_was(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse_at_the_end(errno.ENOSPC))
    with pytest.raises(StoreError):
        convert(model, tmp_path / "stores" / "store")
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_file_that_has_become_shorter_is_refused_with_how_much(path: Path, model: ModelSpec, tmp_path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    with pytest.raises(FileError, match=r"ends \d+ bytes inside the tensor"):
        convert(model, tmp_path / "stores" / "store")


def test_a_whole_store_is_not_converted_again(model: ModelSpec, stores: Path) -> None:
    folder = ensure_store(model, "f" * 64)
    written = (folder / "weights").stat().st_mtime_ns
    assert (ensure_store(model, "f" * 64) / "weights").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["weights", "store.json"])
def test_a_store_that_lost_its_end_is_converted_anew(model: ModelSpec, stores: Path, name: str) -> None:
    folder = ensure_store(model, "f" * 64)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert (ensure_store(model, "f" * 64) / name).read_bytes() == whole


@pytest.mark.parametrize("name", ["weights", "store.json"])
def test_a_store_that_lost_a_file_is_converted_anew(model: ModelSpec, stores: Path, name: str) -> None:
    folder = ensure_store(model, "f" * 64)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    assert (ensure_store(model, "f" * 64) / name).read_bytes() == whole


def test_a_damaged_store_leaves_nothing_beside_its_successor(model: ModelSpec, stores: Path) -> None:
    folder = ensure_store(model, "f" * 64)
    (folder / "store.json").unlink()
    ensure_store(model, "f" * 64)
    assert list(stores.iterdir()) == [folder]


def test_the_same_model_in_a_folder_and_in_shards_has_the_same_store(tmp_path: Path) -> None:
    for name, shards in (("one", 1), ("three", 3)):
        model = model_spec(open_checkpoint(write_folder(tmp_path / name, small_model("gemma3"), num_shards=shards)))
        convert(model, tmp_path / f"{name}.store")
    assert (tmp_path / "one.store/weights").read_bytes() == (tmp_path / "three.store/weights").read_bytes()
