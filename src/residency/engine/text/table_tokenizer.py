"""The tokenizer over a vocabulary's tables: byte-level BPE, and SentencePiece's BPE with bytes as the last resort."""

import re
from collections.abc import Callable, Iterable

from residency.engine.text.merging import merge
from residency.engine.text.pretokenizers import word_cutter
from residency.engine.text.specials import Specials
from residency.engine.text.tables import Tables
from residency.engine.text.tokenizer import well_formed

MAX_KEPT_WORDS = 8192
MAX_KEPT_CHARACTERS = 32
SPACE_MARK = "\u2581"
SPACED_WORD = re.compile(" +[^ ]*|[^ ]+")


class TableTokenizer:
    """A `Tokenizer` that touches only the pages of its tables that a text needs."""

    def __init__(self, tables: Tables) -> None:
        settings = tables.settings
        self._tables = tables
        self._byte_level = settings["style"] == "byte-level"
        self._expressions = tuple(settings["expressions"])
        self._whole_words_first: bool = settings["whole_words_first"]
        self._single_bytes: list[int | None] = settings["single_bytes"]
        self._add_space_prefix: bool = settings["add_space_prefix"]
        self._before: list[int] = [settings["bos_id"]] if settings["add_bos"] else []
        self._after: list[int] = [settings["eos_id"]] if settings["add_eos"] else []
        self._unknown_id: int | None = settings["unknown_id"]
        self._bos_id: int | None = settings["bos_id"]
        self._eos_ids = frozenset(settings["end_ids"])
        specials: dict[str, tuple[int, bool]] = settings["specials"]
        self._steering = frozenset(token_id for token_id, steers in specials.values() if steers)
        self._all_specials = Specials({text: token_id for text, (token_id, _) in specials.items()})
        self._text_specials = Specials({text: token_id for text, (token_id, steers) in specials.items() if not steers})
        self._cut: Callable[[str], list[str]] | None = None
        if not self._byte_level:
            self._cut = SPACED_WORD.findall if settings["cuts_at_spaces"] else lambda text: [text]
        self._kept: dict[str, tuple[int, ...]] = {}

    @property
    def vocabulary(self) -> int:
        return self._tables.num_tokens

    @property
    def bos_id(self) -> int | None:
        return self._bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._eos_ids

    @property
    def begins_with_space(self) -> bool:
        return self._add_space_prefix

    def is_special(self, token_id: int) -> bool:
        return token_id in self._steering

    def token_bytes(self, token_id: int) -> bytes:
        return self._tables.piece(token_id) if 0 <= token_id < self._tables.num_tokens else b""

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        data = b"".join(self.token_bytes(i) for i in ids if not (skip_special and self.is_special(i)))
        return (data.removeprefix(b" ") if self._add_space_prefix else data).decode(errors="replace")

    def encode(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        ids = list(self._before) if add_special else []
        specials = self._all_specials if parse_special else self._text_specials
        after_special = True
        for part in specials.split(well_formed(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                self._encode_plain(part, ids, after_special)
            after_special = isinstance(part, int)
        return ids + self._after if add_special else ids

    def _encode_plain(self, text: str, ids: list[int], after_special: bool) -> None:
        if not self._byte_level:
            text = (" " if self._add_space_prefix and after_special else "") + text.replace(SPACE_MARK, " ")
        if self._cut is None:
            self._cut = word_cutter(self._expressions)
        kept = self._kept
        for word in self._cut(text):
            found = kept.get(word)
            if found is None:
                found = tuple(self._byte_level_word(word) if self._byte_level else self._sentencepiece_word(word))
                if len(word) <= MAX_KEPT_CHARACTERS:
                    if len(kept) >= MAX_KEPT_WORDS:
                        kept.clear()
                    kept[word] = found
            ids.extend(found)

    def _byte_level_word(self, word: str) -> list[int]:
        data = word.encode()
        if self._whole_words_first and (whole := self._tables.find(data)) is not None:
            return [whole]
        return merge(self._bytes_one_by_one(data), self._tables.join_tokens)

    def _sentencepiece_word(self, word: str) -> list[int]:
        ids = []
        for piece in merge([character.encode() for character in word], self._tables.join_pieces):
            token_id = self._tables.find(piece)
            ids += self._bytes_one_by_one(piece) if token_id is None else [token_id]
        return ids

    def _bytes_one_by_one(self, data: bytes) -> list[int]:
        """A token a byte. One that has none is unknown to SentencePiece, and left out by byte-level BPE."""
        missing = None if self._byte_level else self._unknown_id
        found = (self._single_bytes[byte] for byte in data)
        ids = (missing if token_id is None else token_id for token_id in found)
        return [token_id for token_id in ids if token_id is not None]
