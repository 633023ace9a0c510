"""Reading folders with safetensors: what is there, and what is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residency.errors import FileError, ModelError, UnsupportedError
from residency.spec import open_checkpoint
from residency.spec.safetensors import read_safetensors
from support.folders import safetensors_bytes, write_folder
from support.models import SmallModel, random_weights

TINY = SmallModel(architecture="qwen3", num_layers=1, vocabulary=272)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
INDEX = "model.safetensors.index.json"


def write(path: Path, header: object, data: bytes = bytes(64)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_are_where_the_safetensors_package_finds_them(dtype: str, tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors", reason="the safetensors package is the other side of the comparison")
    values = {"a": np.ones((3, 5), np.float32), "b": np.zeros(7, np.float32)}
    file = tmp_path / "m.safetensors"
    file.write_bytes(safetensors_bytes(values, dtype))
    raw = file.read_bytes()
    theirs = {name: bytes(tensor["data"]) for name, tensor in package.deserialize(raw)}
    ours = {t.name: raw[t.offset : t.offset + t.num_bytes] for t in read_safetensors(file).values()}
    assert ours == theirs


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_folder_holds_every_tensor(num_shards: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY, num_shards=num_shards)
    assert open_checkpoint(folder).tensors.keys() == random_weights(TINY).keys()


def test_a_folder_is_called_by_its_name(tmp_path: Path) -> None:
    assert open_checkpoint(write_folder(tmp_path / "small", TINY)).name == "small"


def test_a_single_file_may_have_any_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert len(open_checkpoint(folder).tensors) == len(random_weights(TINY))


def test_a_changed_shard_gives_another_fingerprint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY, num_shards=2)
    checkpoint = open_checkpoint(folder)
    before = checkpoint.fingerprint
    with open(folder / "model-00002-of-00002.safetensors", "ab") as shard:
        shard.write(b"\0")
    assert checkpoint.fingerprint != before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "JSON cannot be read"),
        (b"[]", "JSON is no object"),
        (b"{", "JSON cannot be read"),
        (b"\xff\xfe", "JSON cannot be read"),
        (b"[" * 100_000, "JSON cannot be read"),
        (b'{"a": ' * 50_000, "JSON cannot be read"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON cannot be read"),
        ({"a": 1}, "'a' is no object"),
        ({"a": entry(shape=None)}, "has the shape None"),
        ({"a": entry(shape=[2**70, 2**70])}, "claims the bytes"),
        ({"a": entry(shape=[-4])}, "has the shape"),
        ({"a": entry(shape=[True])}, "has the shape"),
        ({"a": entry(shape=[1] * 9 + [4])}, "has the shape"),
        ({"a": entry(offsets=[0])}, "has the offsets"),
        ({"a": entry(offsets=[16, 0])}, "claims the bytes 16 to 0"),
        ({"a": entry(offsets=[0, 12])}, "claims the bytes 0 to 12"),
        ({"a": entry(offsets=[2**70, 2**70 + 16])}, "claims the bytes"),
        ({"a": entry(offsets=[56, 72])}, "8 bytes past the file's end"),
        ({"a": entry(), "b": entry(offsets=[8, 24])}, "8 bytes before 'a' ends"),
    ],
)
def test_a_damaged_header_is_refused(header: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message):
        read_safetensors(write(tmp_path, header))


@pytest.mark.parametrize("dtype", ["F4", "Q4_K", None, 5])
def test_an_unsupported_format_is_named(dtype: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"'a' is {dtype!r}, which is not supported"):
        read_safetensors(write(tmp_path, {"a": entry(dtype=dtype)}))


@pytest.mark.parametrize("claimed", [2**64 - 1, 2**60, 5, 200_000_000])
def test_a_header_longer_than_the_file_is_refused(claimed: int, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", claimed) + b"{}")
    with pytest.raises(FileError, match=f"claims a header of {claimed}"):
        read_safetensors(tmp_path / "m.safetensors")


@pytest.mark.parametrize("length", [0, 3, 7])
def test_a_file_shorter_than_its_length_field_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(bytes(length))
    with pytest.raises(FileError, match="truncated"):
        read_safetensors(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..\\a.safetensors", "model.bin", 5]
)
def test_an_index_that_leaves_its_folder_is_refused(shard: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(FileError, match="no file of this folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("index", [{}, [], {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map_is_refused(index: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(FileError):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY, num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileError, match=r"lacks model-00002-of-00002\.safetensors"):
        open_checkpoint(folder)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"nowhere.weight": "model.safetensors"}}))
    with pytest.raises(FileError, match=r"lacks the tensor 'nowhere\.weight'"):
        open_checkpoint(folder)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds no config\.json; give a folder with config\.json"):
        open_checkpoint(tmp_path)


def test_a_folder_with_a_gguf_file_asks_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(FileError, match="give the GGUF file in it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"model_type": 3}', "[" * 100_000])
def test_a_damaged_configuration_is_refused(config: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY)
    (folder / "config.json").write_text(config)
    with pytest.raises(FileError):
        open_checkpoint(folder)


def test_a_folder_with_pickles_alone_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", TINY)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileError, match="save the model again as safetensors"):
        open_checkpoint(folder)


@FUZZ
@given(data=st.data())
def test_any_changed_bytes_of_a_header_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    original = safetensors_bytes({"a": np.ones((3, 5), np.float32), "b": np.zeros(7, np.float32)})
    changed = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, 200))
        changed[at : at + 1] = data.draw(st.binary(max_size=4) | st.sampled_from([b"[", b"{", b"9", b'"', b"-", b"e9"]))
    (tmp_path / "m.safetensors").write_bytes(bytes(changed))
    try:
        read_safetensors(tmp_path / "m.safetensors")
    except ModelError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "shape", "dtype"]), inner),
    max_leaves=8,
)


@FUZZ
@given(
    header=st.dictionaries(
        st.text(max_size=4),
        st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON,
        max_size=3,
    )
)
def test_any_json_in_a_header_is_read_or_refused(header: dict[str, Any], tmp_path: Path) -> None:
    try:
        read_safetensors(write(tmp_path, header))
    except ModelError:
        pass
