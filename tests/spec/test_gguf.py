"""Reading GGUF headers: what is there, and what is refused."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residency.errors import FileError, ModelError, UnsupportedError
from residency.formats import FORMATS
from residency.spec import Checkpoint, open_checkpoint
from support.gguf_files import CHAT_TEMPLATE, MERGES, SPECIAL_TOKENS, byte_characters, write_gguf
from support.models import SmallModel, small_model

TINY = SmallModel(architecture="llama", num_layers=1, vocabulary=272)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(num_tensors: int, num_entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries)


def architecture(name: str = "llama") -> bytes:
    return string("general.architecture") + struct.pack("<I", 8) + string(name)


def tensor(name: str, shape: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), type_id, offset)


def opened(path: Path, data: bytes) -> Checkpoint:
    file = path / "m.gguf"
    file.write_bytes(data)
    return open_checkpoint(file)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", TINY, "Q4_0").read_bytes()


def test_the_metadata_is_what_was_written(tmp_path: Path) -> None:
    config = open_checkpoint(write_gguf(tmp_path / "m.gguf", small_model("qwen3"))).config
    found = [config[key] for key in ("qwen3.block_count", "tokenizer.chat_template", "tokenizer.ggml.add_bos_token")]
    assert found == [3, CHAT_TEMPLATE, False]


@pytest.mark.parametrize(
    ("stem", "name"),
    [("Tiny-1B-Instruct.Q4_1", "Tiny-1B-Instruct"), ("tiny-q4_k_m", "tiny"), ("tiny-BF16", "tiny"), ("tiny", "tiny")],
)
def test_a_model_is_called_by_its_file_without_the_format(tmp_path: Path, stem: str, name: str) -> None:
    assert open_checkpoint(write_gguf(tmp_path / f"{stem}.gguf", small_model("qwen3"))).name == name


def test_a_name_loses_its_control_characters(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a\33[2J\nb.gguf", small_model("qwen3"))
    assert open_checkpoint(path).name == "a [2J b"


def test_a_vocabulary_is_what_was_written(tmp_path: Path) -> None:
    tokens = open_checkpoint(write_gguf(tmp_path / "m.gguf", small_model("llama"))).config["tokenizer.ggml.tokens"]
    words = [merge.replace(" ", "") for merge in MERGES]
    assert list(tokens)[:266] == [*byte_characters(), *words, *SPECIAL_TOKENS]


def test_an_array_of_numbers_is_what_was_written(tmp_path: Path) -> None:
    kinds = open_checkpoint(write_gguf(tmp_path / "m.gguf", small_model("llama"))).config["tokenizer.ggml.token_type"]
    np.testing.assert_array_equal(kinds[262:267], [1, 3, 3, 3, 5])


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_are_where_the_gguf_package_finds_them(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", TINY, name)
    theirs = {t.name: (t.data_offset, t.n_bytes, t.tensor_type.name) for t in gguf.GGUFReader(path).tensors}
    ours = {t.name: (t.offset, t.num_bytes, t.format.name) for t in open_checkpoint(path).tensors.values()}
    assert ours == theirs


def test_a_shape_is_given_outermost_first(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", TINY)
    assert open_checkpoint(path).tensors["token_embd.weight"].shape == (272, 256)


def test_version_2_is_read(small_file: bytes, tmp_path: Path) -> None:
    assert opened(tmp_path, b"GGUF" + struct.pack("<I", 2) + small_file[8:]).architecture == "llama"


def test_a_changed_file_has_another_fingerprint(small_file: bytes, tmp_path: Path) -> None:
    before = opened(tmp_path, small_file).fingerprint
    assert opened(tmp_path, small_file + b"\0").fingerprint != before


def test_an_unchanged_file_keeps_its_fingerprint(small_file: bytes, tmp_path: Path) -> None:
    assert opened(tmp_path, small_file).fingerprint == open_checkpoint(tmp_path / "m.gguf").fingerprint


def test_the_fingerprint_of_a_deleted_file_is_refused(small_file: bytes, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, small_file)
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(FileError):
        _ = checkpoint.fingerprint


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", FileError, "not a GGUF file"),
        (b"GG", FileError, "not a GGUF file"),
        (b"PK\3\4" + bytes(100), FileError, "not a GGUF file"),
        (b"GGUF", FileError, "the version needs 4 bytes and 0 are left"),
        (header(0, 0, 1), UnsupportedError, "version 1"),
        (header(0, 0, 3 << 24), UnsupportedError, "big-endian"),
        (header(2**60, 0), FileError, "claims 1152921504606846976 tensors, and a file of 24 bytes has room for 0"),
        (header(0, 2**60), FileError, "claims 1152921504606846976 metadata entries"),
        (header(0, 0), FileError, "general.architecture"),
        (header(0, 1) + struct.pack("<Q", 2**63) + bytes(50), FileError, "claims 9223372036854775808 bytes"),
        (header(0, 1) + struct.pack("<Q", 500) + bytes(50), FileError, "needs 500 bytes and 50 are left"),
        (header(0, 1) + string("a") + struct.pack("<I", 77) + bytes(50), FileError, "unknown type 77"),
        (header(0, 1) + string("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(9), UnsupportedError, "array of arrays"),
        (header(0, 1) + string("a") + struct.pack("<IIQ", 9, 99, 1) + bytes(9), FileError, "unknown type 99"),
        (header(0, 1) + string("a") + struct.pack("<IIQ", 9, 4, 2**61) + bytes(9), FileError, "room for 2"),
        (header(0, 1) + string("a") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(9), FileError, "room for 1"),
        (header(0, 1) + string("a") + struct.pack("<IIQ", 9, 8, 2) + string("x") + bytes(7), FileError, "1 of them"),
        (header(0, 1) + struct.pack("<Q", 1) + b"\xff" + bytes(50), FileError, "not UTF-8"),
        (header(0, 2) + architecture() + architecture(), FileError, "'general.architecture' occurs twice"),
    ],
)
def test_a_damaged_header_is_refused(data: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        opened(tmp_path, data)


def entry(key: str, type_id: int, code: str, value: Any) -> bytes:
    return string(key) + struct.pack("<I" + code, type_id, value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor("a", (4,)), tensor("a", (4,), offset=32)], "the tensor 'a' occurs twice"),
        ([tensor("a", (4, 4)), tensor("b", (4,), offset=32)], "32 bytes before 'a' ends"),
        ([tensor("a", (4,), offset=4)], "not a multiple of 32"),
        ([tensor("a", (4,), offset=2**63)], "past the file's end"),
        ([tensor("a", (4,), offset=320)], "past the file's end"),
        ([tensor("a", (2**63, 2**63))], "claims the shape"),
        ([tensor("a", (0, 4))], "claims the shape"),
        ([tensor("a", (1, 1, 1, 1, 1))], "claims 5 dimensions"),
        ([tensor("a", ())], "claims 0 dimensions"),
        ([tensor("a", (4, 31), type_id=2)], "whole blocks of 32"),
    ],
)
def test_a_damaged_tensor_is_refused(tensors: list[bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message):
        opened(tmp_path, header(len(tensors), 1) + architecture() + b"".join(tensors) + bytes(256))


@pytest.mark.parametrize(("type_id", "name"), [(40, "NVFP4"), (4000, "type 4000")])
def test_an_unsupported_format_is_named(type_id: int, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"'a' is {name}, which is not supported; supported are F32"):
        opened(tmp_path, header(1, 1) + architecture() + tensor("a", (256,), type_id) + bytes(2000))


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment: int, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="alignment"):
        opened(tmp_path, header(0, 2) + architecture() + entry("general.alignment", 4, "I", alignment))


def part(directory: Path, number: int, *tensors: str, count: int = 2, promised: int = 2) -> Path:
    """A file of a model in two: the first holds the metadata, and each some tensors of 64 bytes."""
    entries = [entry("split.count", 2, "H", 2)]
    if number == 1:
        entries += [architecture(), entry("split.tensors.count", 5, "i", promised)]
    head = header(len(tensors), len(entries)) + b"".join(entries)
    head += b"".join(tensor(name, (16,), 0, 64 * index) for index, name in enumerate(tensors))
    path = directory / f"tiny-q4_0-{number:05}-of-{count:05}.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(64 * len(tensors)))
    return path


@pytest.mark.parametrize("given", [0, 1])
def test_any_part_of_a_split_model_opens_all_of_it(given: int, tmp_path: Path) -> None:
    parts = [part(tmp_path, 1, "a"), part(tmp_path, 2, "b")]
    found = open_checkpoint(parts[given])
    assert (found.name, found.architecture, [found.tensors[name].path for name in "ab"]) == ("tiny", "llama", parts)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"00002-of-00002\.gguf could not be read"):
        open_checkpoint(part(tmp_path, 1, "a"))


def test_parts_that_hold_a_tensor_twice_are_refused(tmp_path: Path) -> None:
    part(tmp_path, 2, "a")
    with pytest.raises(FileError, match="'a' is in an earlier part too"):
        open_checkpoint(part(tmp_path, 1, "a"))


def test_parts_that_hold_fewer_tensors_than_promised_are_refused(tmp_path: Path) -> None:
    part(tmp_path, 2)
    with pytest.raises(FileError, match="hold 1 tensors and promise 2"):
        open_checkpoint(part(tmp_path, 1, "a"))


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is one of 2 parts; name them"):
        open_checkpoint(part(tmp_path, 1, "a", count=3))


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file or folder"):
        open_checkpoint(tmp_path / "nothing.gguf")


@pytest.mark.parametrize("cut", [0.1, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(cut: float, small_file: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        opened(tmp_path, small_file[: int(len(small_file) * cut)])


def read_within_memory(path: Path, data: bytes) -> None:
    """Opens and decodes everything; any refusal must be a ModelError, and memory stays a small multiple of the file."""
    tracemalloc.start()
    try:
        config = opened(path, data).config
        for value in config.values():
            if not isinstance(value, str | int | float):
                list(value)
    except ModelError:
        pass
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 4 * len(data) + 1_000_000


@FUZZ
@given(data=st.data())
def test_any_changed_bytes_of_a_header_are_read_or_refused(
    data: st.DataObject, small_file: bytes, tmp_path: Path
) -> None:
    changed = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 8000))
        replacement = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n))
            | st.sampled_from([2**60, 2**63, 2**64 - 1, 2**32, 0]).map(lambda n: struct.pack("<Q", n))
        )
        changed[at : at + len(replacement)] = replacement
    read_within_memory(tmp_path, bytes(changed))


@FUZZ
@given(length=st.integers(0, 12000))
def test_a_file_cut_anywhere_in_its_header_is_refused(length: int, small_file: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        opened(tmp_path, small_file[:length])


@FUZZ
@given(
    body=st.binary(max_size=300),
    num_tensors=st.sampled_from([0, 1, 2, 2**60]),
    num_entries=st.sampled_from([0, 1, 3, 2**60]),
)
def test_any_bytes_behind_the_counts_are_read_or_refused(
    body: bytes, num_tensors: int, num_entries: int, tmp_path: Path
) -> None:
    read_within_memory(tmp_path, header(num_tensors, num_entries) + body)
