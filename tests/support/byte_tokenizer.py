"""A tokenizer without a file: a token for each byte, and one that ends."""

from collections.abc import Iterable

END = 256


class ByteTokenizer:
    """Text as its UTF-8."""

    vocabulary = 257
    bos_id = None
    eos_ids = frozenset({END})
    begins_with_space = False

    def encode(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return bytes(token for token in ids if token != END).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id >= END else bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return token_id == END
