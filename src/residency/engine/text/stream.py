"""Text from tokens as they come, never with half a character in it."""

import codecs

from residency.engine.text.tokenizer import Tokenizer


class StreamDecoder:
    """Joins the bytes of tokens and hands out whole characters.

    starts_text: the tokens begin a text of their own, so a space that the tokenizer puts before texts is taken away;
    False where they continue a text that is printed before them. Special tokens print nothing unless asked to.
    """

    def __init__(self, tokenizer: Tokenizer, *, starts_text: bool = True, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drop_space = starts_text and tokenizer.begins_with_space
        self._rest = b""  # of a character that was begun

    def feed(self, token_id: int) -> str:
        """The characters that `token_id` completes; often one word, sometimes nothing."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._drop_space and data:
            self._drop_space = False
            data = data.removeprefix(b" ")
        if self._rest:
            data = self._rest + data
        text, num_bytes = codecs.utf_8_decode(data, "replace", False)
        self._rest = data[num_bytes:]
        return text

    def flush(self) -> str:
        """U+FFFD for a character that was begun and never completed, else nothing. The decoder is as new then."""
        text, self._rest = self._rest.decode("utf-8", "replace"), b""
        return text
