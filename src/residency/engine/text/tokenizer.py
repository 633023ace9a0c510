"""What the engine asks of a tokenizer, however the model's files describe it."""

from collections.abc import Iterable
from typing import Protocol

UNPAIRED_SURROGATES_AS = "utf-16", "surrogatepass"

END_TOKENS = frozenset(
    "</s> <|endoftext|> <|im_end|> <|end|> <|eot_id|> <|eom_id|> <|end_of_text|> <end_of_turn> <eos> <EOT> _<EOT> "
    "<|eot|> <|eom|> <|return|> <|call|> <｜end▁of▁sentence｜> <|END_OF_TURN_TOKEN|>".split()
) | {"< EOT >"}  # where a model's answer ends, whichever of them its metadata calls "eos"


class Tokenizer(Protocol):
    """Text to token ids and back. All ids are below `vocabulary`."""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the model has one."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends an answer."""

    @property
    def begins_with_space(self) -> bool:
        """Whether encoding puts a space before the text, which decoding takes away again."""

    def encode(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """The text's tokens.

        add_special: with the begin and end tokens that the model wants around a text (not after a chat template,
        which writes them itself). parse_special: "<|im_end|>" in the text becomes that token; False takes it for
        text, which is right for text from strangers.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, with U+FFFD for bytes that are no UTF-8."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; empty for an id past the vocabulary (a padded head has such rows)."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token steers the model and is not text."""


def well_formed(text: str) -> str:
    """`text` with surrogates paired, and U+FFFD for each that stands alone."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        codec, errors = UNPAIRED_SURROGATES_AS
        return text.encode(codec, errors).decode(codec, "replace")
