"""A folder with tokenizer.json tokenizes as the `tokenizers` library does."""

import json
from pathlib import Path
from typing import Any

import pytest

from residency.engine.text import StreamDecoder, tokenizer_from_folder
from residency.errors import FileError

tokenizers = pytest.importorskip("tokenizers")
TEXT = "naïve cats 猫👩‍👩‍👧 and\n\ttabs"


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """A byte-level vocabulary with two special tokens, and the files that stand beside it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"})
    )
    return tmp_path


def test_tokens_are_the_librarys(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer_from_folder(folder).encode(TEXT, add_special=False) == backend.encode(TEXT).ids


def test_a_stream_is_the_whole_text(folder: Path) -> None:
    tokenizer = tokenizer_from_folder(folder)
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.feed(token_id) for token_id in tokenizer.encode(TEXT, add_special=False)]
    assert ("".join(parts), "\ufffd" in "".join(parts)) == (TEXT, False)


def test_the_begin_and_end_tokens_come_from_the_configuration(folder: Path) -> None:
    tokenizer = tokenizer_from_folder(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, frozenset({1}))


def test_special_tokens_in_a_strangers_text_stay_text(folder: Path) -> None:
    tokenizer = tokenizer_from_folder(folder)
    parsed = [tokenizer.encode("<|im_end|>", add_special=False, parse_special=choice) for choice in (True, False)]
    assert (parsed[0], 1 in parsed[1]) == ([1], False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 1}'])
def test_a_damaged_file_is_named(folder: Path, content: Any) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(FileError, match=r"tokenizer\.json"):
        tokenizer_from_folder(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no tokenizer\.json"):
        tokenizer_from_folder(tmp_path)
