"""Tokens are those of the published algorithms, on small vocabularies made here and on real models where present."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from residency.engine.text import StreamDecoder, load_chat_template, load_tokenizer, tokenizer_from_gguf
from residency.engine.text.gguf import byte_alphabet
from residency.errors import FileError, UnsupportedError
from support.real_models import real_model

TORTURE = json.loads((Path(__file__).parent / "torture.json").read_text())
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
SOME_TEXT = "the cat sat on the mat; the cats' hats 2024 über naïve 猫 and the theatre of that other thing " * 3


def byte_level_metadata(pre: Any = "gpt-2", num_merges: Any = 120) -> Any:
    """A byte-level vocabulary whose merges are frequent neighbours in SOME_TEXT."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    tokens = [letters[byte] for byte in range(256)]
    merges: list[str] = []
    words = [[letters[byte] for byte in word.encode()] for word in SOME_TEXT.replace(" ", "| ").split("|")]
    while len(merges) < num_merges:
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        left, right = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(f"{left} {right}")
        tokens.append(left + right)
        for word in words:
            for i in range(len(word) - 2, -1, -1):
                if word[i : i + 2] == [left, right]:
                    word[i : i + 2] = [left + right]
    tokens += ["<|endoftext|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [NORMAL] * (len(tokens) - 2) + [CONTROL] * 2,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }


def sentencepiece_metadata(*, add_space_prefix: Any = True, seed: int = 0) -> Any:
    """A vocabulary of random substrings with random scores, every byte, and some single characters."""
    rng = random.Random(seed)
    text = SOME_TEXT.replace(" ", "\u2581")
    found = {text[i : i + rng.randint(2, 6)] for i in (rng.randrange(len(text)) for _ in range(400))}
    pieces = sorted(found | set("abcdefghijklmnopqrstuvwxyz\u2581"))
    rng.shuffle(pieces)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank // 2) for rank in range(len(pieces))],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }


def greedy_sentencepiece(metadata: Any, text: str) -> Any:
    """SentencePiece's BPE as it is defined: join the neighbours of the highest score, the leftmost first."""
    kinds = metadata["tokenizer.ggml.token_type"]
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"]) if kinds[i] == NORMAL}
    scores = metadata["tokenizer.ggml.scores"]
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        joins = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not joins:
            break
        _, i = min(joins)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [i for s in symbols for i in ([ids[s]] if s in ids else [3 + byte for byte in s.encode()])]


def library_twin(metadata: Any) -> Any:
    """The same byte-level vocabulary in the `tokenizers` library, cut as GPT-2 cuts."""
    tokenizers = pytest.importorskip("tokenizers")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    twin = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    twin.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return twin


@pytest.mark.parametrize("name", MODELS)
def test_a_real_models_tokens_are_those_of_llama_cpp(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("residency.spec.gguf")
    path = real_model(name)
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    tokenizer = load_tokenizer(gguf.read_gguf(path))
    got = [tokenizer.encode(text, add_special=False) for text in TORTURE["texts"]]
    assert got == TORTURE["ids"][name]


def test_the_default_models_template_names_its_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("residency.spec.gguf")
    path = real_model("smollm2-135m")
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    template = load_chat_template(gguf.read_gguf(path))
    assert template is not None
    rendered = template.render([{"role": "user", "content": "Hi"}])
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("text", [text for text in TORTURE["texts"] if "<|" not in text])
def test_byte_level_tokens_are_those_of_the_tokenizers_library(text: str) -> None:
    metadata = byte_level_metadata()
    assert tokenizer_from_gguf(metadata).encode(text, add_special=False) == library_twin(metadata).encode(text).ids


@pytest.mark.parametrize("seed", range(8))
def test_sentencepiece_tokens_are_those_of_the_greedy_definition(seed: int) -> None:
    metadata, rng = sentencepiece_metadata(add_space_prefix=False, seed=seed), random.Random(seed)
    text = "".join(rng.choice("the catsonm  \n猫é") for _ in range(300))
    assert tokenizer_from_gguf(metadata).encode(text, add_special=False) == greedy_sentencepiece(metadata, text)


@pytest.mark.parametrize("text", TORTURE["texts"])
@pytest.mark.parametrize("metadata", [byte_level_metadata(), sentencepiece_metadata()], ids=["byte-level", "pieces"])
def test_decoding_gives_back_the_text(metadata: Any, text: str) -> None:
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=False)) == text


@pytest.mark.parametrize("metadata", [byte_level_metadata(), sentencepiece_metadata()], ids=["byte-level", "pieces"])
def test_a_stream_is_the_whole_text_and_never_half_a_character(metadata: Any) -> None:
    tokenizer, text = tokenizer_from_gguf(metadata), "naïve 猫👩‍👩‍👧 cats"
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.feed(token_id) for token_id in tokenizer.encode(text, add_special=True)]
    assert ("".join(parts), decoder.flush(), "\ufffd" in "".join(parts)) == (text, "", False)


def test_a_character_that_never_completes_is_replaced_at_the_end() -> None:
    tokenizer = tokenizer_from_gguf(byte_level_metadata())
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(token_id) for token_id in tokenizer.encode("👩", add_special=False)[:2]] == ["", ""]
    assert decoder.flush() == "\ufffd"


def test_a_continued_text_keeps_its_space() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata())
    ids = tokenizer.encode("the", add_special=False)
    decoder = StreamDecoder(tokenizer, starts_text=False)
    assert "".join(map(decoder.feed, ids)) == " the"


def test_special_tokens_in_a_strangers_text_stay_text() -> None:
    tokenizer = tokenizer_from_gguf(byte_level_metadata())
    ids = tokenizer.encode("a<|im_end|>", add_special=False, parse_special=False)
    assert not tokenizer.eos_ids & set(ids)


def test_special_tokens_are_parsed_when_asked() -> None:
    metadata = byte_level_metadata()
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode("a<|im_end|>", add_special=False)[-1] == len(metadata["tokenizer.ggml.tokens"]) - 1


def test_every_end_token_ends_an_answer() -> None:
    metadata = byte_level_metadata()
    num_tokens = len(metadata["tokenizer.ggml.tokens"])
    assert tokenizer_from_gguf(metadata).eos_ids == {num_tokens - 2, num_tokens - 1}


def test_sentencepiece_texts_begin_with_bos() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata())
    assert tokenizer.encode("the", add_special=True)[0] == tokenizer.bos_id


def test_a_lone_surrogate_is_replaced() -> None:
    tokenizer = tokenizer_from_gguf(byte_level_metadata())
    assert tokenizer.decode(tokenizer.encode("a\ud800b", add_special=False)) == "a\ufffdb"


def test_kept_tables_need_no_metadata(tmp_path: Path) -> None:
    kept_at = tmp_path / "kept.tables"
    ids = tokenizer_from_gguf(byte_level_metadata(), kept_at=kept_at).encode(SOME_TEXT, add_special=True)
    assert tokenizer_from_gguf({}, kept_at=kept_at).encode(SOME_TEXT, add_special=True) == ids


@pytest.mark.parametrize("keep_bytes", [0, 7, 100, 5000])
def test_damaged_tables_are_built_again(tmp_path: Path, keep_bytes: Any) -> None:
    kept_at = tmp_path / "kept.tables"
    metadata = byte_level_metadata()
    ids = tokenizer_from_gguf(metadata, kept_at=kept_at).encode(SOME_TEXT, add_special=True)
    kept_at.write_bytes(kept_at.read_bytes()[:keep_bytes])
    assert tokenizer_from_gguf(metadata, kept_at=kept_at).encode(SOME_TEXT, add_special=True) == ids


def test_an_unknown_pre_tokenizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"'klingon'.*qwen2"):
        tokenizer_from_gguf(byte_level_metadata(pre="klingon"))


@pytest.mark.parametrize("key", ["tokens", "merges"])
def test_a_missing_array_is_named(key: Any) -> None:
    metadata = byte_level_metadata()
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(FileError, match=f"tokenizer.ggml.{key}"):
        tokenizer_from_gguf(metadata)
