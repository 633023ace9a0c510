"""A tokenizer from a folder with tokenizer.json, run by the `tokenizers` library."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from residency.engine.text.gguf import SPACE_MARK, byte_alphabet
from residency.engine.text.tokenizer import END_TOKENS, well_formed
from residency.errors import FileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file `path`, empty if there is no such file. FileError if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FileError(f"{path} could not be read as JSON ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object; fetch it again.")
    return content


def tokenizer_from_folder(folder: Path) -> "LibraryTokenizer":
    """The tokenizer in `folder`: tokenizer.json, tokenizer_config.json and generation_config.json. FileError."""
    from tokenizers import Tokenizer as Backend  # imported here: a model from a GGUF file must not pay for it

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileError(f"{folder} has no tokenizer.json; fetch the model again with its tokenizer.")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise FileError(f"{path} is damaged or too new ({error}); fetch it again.") from error
    backend.no_truncation()
    backend.no_padding()
    return LibraryTokenizer(backend, read_json(folder / "tokenizer_config.json"), _end_ids_in_configs(folder))


def _end_ids_in_configs(folder: Path) -> list[int]:
    ids: list[int] = []
    for name in ("config.json", "generation_config.json"):
        value = read_json(folder / name).get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return ids


def token_text(config: dict[str, Any], key: str) -> str | None:
    """A special token's text in tokenizer_config.json, which writes it as text or as an object."""
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


class LibraryTokenizer:
    """A `Tokenizer` over the library's."""

    def __init__(self, backend: "Backend", config: dict[str, Any], end_ids: Iterable[int]) -> None:
        self._backend = backend
        self._vocabulary = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self._steering = frozenset(token_id for token_id, token in added.items() if token.special)
        decoder = json.loads(backend.to_str()).get("decoder") or {}
        decoders = decoder.get("decoders", [decoder])
        self._alphabet = byte_alphabet() if any(d.get("type") == "ByteLevel" for d in decoders) else None
        self._strips_space = any(
            (d.get("type") == "Strip" and d.get("content") == " " and d.get("start"))
            or (d.get("type") == "Metaspace" and d.get("prepend_scheme", "always") != "never")
            for d in decoders
        )
        bos = token_text(config, "bos_token")
        self._bos_id = None if bos is None else backend.token_to_id(bos)
        named = {token_text(config, "eos_token"), *END_TOKENS}
        found = {backend.token_to_id(text) for text in named if text is not None}
        self._eos_ids = frozenset({i for i in found if i is not None and i in self._added} | set(end_ids))

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def bos_id(self) -> int | None:
        return self._bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._eos_ids

    @property
    def begins_with_space(self) -> bool:
        return self._strips_space

    def is_special(self, token_id: int) -> bool:
        return token_id in self._steering

    def encode(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        self._backend.encode_special_tokens = not parse_special
        ids: list[int] = self._backend.encode(well_formed(text), add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        data = b"".join(self.token_bytes(i) for i in ids if not (skip_special and self.is_special(i)))
        return (data.removeprefix(b" ") if self._strips_space else data).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        text = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if text is None:
            return b""
        if self._alphabet is not None:
            if all(character in self._alphabet for character in text):
                return bytes(self._alphabet[character] for character in text)
            return text.encode()
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])
        return text.replace(SPACE_MARK, " ").encode()
