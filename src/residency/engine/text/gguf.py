"""A tokenizer from the metadata of a GGUF file (ggml's docs/gguf.md, the keys tokenizer.ggml.*)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from residency.engine.text.pretokenizers import find_pre_tokenizer
from residency.engine.text.table_tokenizer import TableTokenizer
from residency.engine.text.tables import DamagedTables, Tables, build_tables, keep_tables, map_tables
from residency.engine.text.tokenizer import END_TOKENS
from residency.errors import FileError, UnsupportedError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
STYLES = {"gpt2": "byte-level", "llama": "sentencepiece"}  # by tokenizer.ggml.model
SPACE_MARK = "\u2581"


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, kept_at: Path | None = None) -> TableTokenizer:
    """The tokenizer that `metadata` describes.

    kept_at: where its tables are kept, mapped when they are there and written when not. FileError if the metadata
    contradicts itself, UnsupportedError for a kind of tokenizer that residency does not know.
    """
    if kept_at is not None:
        with suppress(OSError, DamagedTables):
            return TableTokenizer(map_tables(kept_at))
    data = _Vocabulary(metadata).tables()
    if kept_at is None:
        return TableTokenizer(Tables(data))
    return TableTokenizer(keep_tables(kept_at, data))


class _Vocabulary:
    """The metadata's arrays and switches, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        model = metadata.get("tokenizer.ggml.model")
        if model not in STYLES:
            raise UnsupportedError(
                f"The model's tokenizer is of the kind {model!r}, which residency does not know; it knows "
                f"{' and '.join(map(repr, STYLES))}."
            )
        self.style = STYLES[model]
        self.texts = [str(text) for text in self._array("tokens", None)]
        self.kinds = [int(kind) for kind in self._array("token_type", len(self.texts))] or [NORMAL] * len(self.texts)

    def _array(self, key: str, count: int | None) -> Sequence[Any]:
        values = self._metadata.get(f"tokenizer.ggml.{key}", ())
        if count is None and not len(values):
            raise FileError(f"The model's file has no tokenizer.ggml.{key}; fetch a file that carries its tokenizer.")
        if count is not None and len(values) not in (0, count):
            raise FileError(
                f"The model's file is damaged: tokenizer.ggml.{key} has {len(values)} values for {count} tokens."
            )
        return values  # type: ignore[no-any-return]

    def _token_id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None or int(value) == 0xFFFFFFFF:  # what some writers put for none
            return None
        if not 0 <= int(value) < len(self.texts):
            raise FileError(
                f"The model's file is damaged: tokenizer.ggml.{key}_token_id is {value}, and there are "
                f"{len(self.texts)} tokens."
            )
        return int(value)

    def _switch(self, key: str, default: bool) -> bool:
        return bool(self._metadata.get(f"tokenizer.ggml.{key}", default))

    def tables(self) -> bytes:
        byte_level = self.style == "byte-level"
        pieces = self._byte_level_pieces() if byte_level else self._sentencepiece_pieces()
        scores = [] if byte_level else [float(score) for score in self._array("scores", len(self.texts))]
        if not byte_level and not scores:
            raise FileError("The model's file has no tokenizer.ggml.scores; fetch a file that carries its tokenizer.")
        return build_tables(
            pieces=pieces,
            findable=[kind not in (UNKNOWN, CONTROL, BYTE) for kind in self.kinds],
            scores=scores,
            merges=self._merges() if byte_level else (),
            settings=self._settings(pieces),
        )

    def _byte_level_pieces(self) -> list[bytes]:
        alphabet = byte_alphabet()
        table = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
        known = set(alphabet)
        return [
            text.translate(table).encode("latin-1")
            if kind in (NORMAL, UNUSED) and known.issuperset(text)
            else text.encode()
            for text, kind in zip(self.texts, self.kinds, strict=True)
        ]

    def _sentencepiece_pieces(self) -> list[bytes]:
        pieces = []
        for text, kind in zip(self.texts, self.kinds, strict=True):
            if kind == BYTE:
                pieces.append(bytes([self._byte_of(text)]))
            else:
                pieces.append(text.replace(SPACE_MARK, " ").encode())
        return pieces

    def _byte_of(self, text: str) -> int:
        try:
            return int(text.removeprefix("<0x").removesuffix(">"), 16) & 0xFF
        except ValueError:
            raise FileError(f"The model's file is damaged: the byte token {text[:80]!r} names no byte.") from None

    def _merges(self) -> list[tuple[int, int, int]]:
        ids = {text: token_id for token_id, text in enumerate(self.texts)}
        merges = []
        for rank, merge in enumerate(self._array("merges", None)):
            cut = merge.find(" ", 1)
            left, right = ids.get(merge[:cut]), ids.get(merge[cut + 1 :])
            joined = ids.get(merge[:cut] + merge[cut + 1 :])
            if cut < 0:
                raise FileError(
                    f"The model's file is damaged: merge {rank} of its tokenizer, {merge[:80]!r}, has no two parts."
                )
            if left is not None and right is not None and joined is not None:
                merges.append((left, right, joined))
        return merges

    def _settings(self, pieces: Sequence[bytes]) -> dict[str, Any]:
        byte_level = self.style == "byte-level"
        pre_name = str(self._metadata.get("tokenizer.ggml.pre", "default"))
        pre = find_pre_tokenizer(pre_name) if byte_level else None
        single_bytes: dict[int, int] = {}
        for token_id, (piece, kind) in enumerate(zip(pieces, self.kinds, strict=True)):
            if len(piece) == 1 and kind == (NORMAL if byte_level else BYTE):
                single_bytes[piece[0]] = token_id
        named = (self._token_id(key) for key in ("eos", "eot", "eom"))
        end_ids = {token_id for token_id in named if token_id is not None}
        end_ids |= {i for i, text in enumerate(self.texts) if text in END_TOKENS and self.kinds[i] != NORMAL}
        bos_id, eos_id = self._token_id("bos"), self._token_id("eos")
        specials = {
            self.texts[i]: [i, kind != USER_DEFINED]
            for i, kind in enumerate(self.kinds)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        }
        return {
            "style": self.style,
            "expressions": pre.expressions if pre else [],
            "whole_words_first": bool(pre and pre.whole_words_first),
            "bos_id": bos_id,
            "eos_id": eos_id,
            "unknown_id": self._token_id("unknown"),
            "end_ids": sorted(end_ids),
            "add_bos": self._switch("add_bos_token", pre.begins_with_bos if pre else True) and bos_id is not None,
            "add_eos": self._switch("add_eos_token", False) and eos_id is not None,
            "add_space_prefix": not byte_level and self._switch("add_space_prefix", True),
            "single_bytes": [single_bytes.get(byte) for byte in range(256)],
            "cuts_at_spaces": not byte_level
            and not any(_has_inner_space(p, k) for p, k in zip(pieces, self.kinds, strict=True)),
            "specials": specials,  # text: [id, whether it steers the model rather than being text]
        }


def _has_inner_space(piece: bytes, kind: int) -> bool:
    """Whether a piece that text may become has a space after something else: then no cut before spaces is safe."""
    return kind not in (UNKNOWN, CONTROL, BYTE) and b" " in piece.lstrip(b" ")
