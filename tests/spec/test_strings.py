"""Walking length-prefixed strings: exact, whatever the strings are."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residency.errors import FileError
from residency.spec.strings import CHUNK_BYTES, StringArray, string_starts, walk_strings

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.lists(
    st.text(max_size=12)
    | st.sampled_from(["", "\0", "\0" * 9, "\1" + "\0" * 7, "a" * 255, "b" * 256, "c" * 70000])
    | st.integers(0, 2**63).map(lambda n: struct.pack("<Q", n).decode("latin-1")),
    max_size=40,
)


def encoded(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in texts)


def walked(path: Path, data: bytes, num_strings: int) -> StringArray:
    file = path / "strings"
    file.write_bytes(data)
    with open(file, "rb") as opened:
        return walk_strings(opened, file, num_strings, len(data))


@FUZZ
@given(texts=TEXTS)
def test_strings_are_read_as_they_were_written(texts: list[str], tmp_path: Path) -> None:
    assert list(walked(tmp_path, encoded(texts) + b"behind", len(texts))) == texts


@FUZZ
@given(texts=TEXTS)
def test_strings_start_where_their_lengths_say(texts: list[str]) -> None:
    expected, position = [], 0
    for text in texts:
        expected.append(position)
        position += 8 + len(text.encode())
    assert string_starts(encoded(texts), len(texts)).tolist() == expected


def test_strings_that_span_chunks_are_read_whole(tmp_path: Path) -> None:
    texts = ["short", "x" * CHUNK_BYTES, "", "y" * (CHUNK_BYTES - 20), "end"]
    assert walked(tmp_path, encoded(texts), 5).decode() == texts


def test_a_missing_string_is_counted(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="2 of them missing"):
        walked(tmp_path, encoded(["a", "b"]), 4)


def test_a_string_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        walked(tmp_path, struct.pack("<Q", 2**64 - 1) + b"abc", 1)


def test_a_slice_is_a_list(tmp_path: Path) -> None:
    assert walked(tmp_path, encoded(["a", "b", "c"]), 3)[1:] == ["b", "c"]


def test_a_string_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not UTF-8"):
        walked(tmp_path, struct.pack("<Q", 1) + b"\xff", 1).decode()


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    strings = walked(tmp_path, encoded(["a", "b"]), 2)
    (tmp_path / "strings").write_bytes(b"")
    with pytest.raises(FileError, match="has changed"):
        strings.decode()
