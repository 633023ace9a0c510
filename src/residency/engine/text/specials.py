"""Finds tokens that are written out in a text."""

import re
from collections.abc import Iterator, Mapping


class Specials:
    """Special tokens by their text. At each place the longest is taken."""

    def __init__(self, ids_by_text: Mapping[str, int]) -> None:
        self._ids = {text: token_id for text, token_id in ids_by_text.items() if text}
        lengths: dict[str, set[int]] = {}
        for text in self._ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None

    def split(self, text: str) -> Iterator[str | int]:
        """Stretches of `text` that hold no special token, and the tokens between them, in order; none is empty."""
        begin = position = 0
        while self._first and (match := self._first.search(text, position)):
            position = match.start()
            for num_characters in self._lengths[text[position]]:
                token_id = self._ids.get(text[position : position + num_characters])
                if token_id is not None:
                    if begin < position:
                        yield text[begin:position]
                    yield token_id
                    begin = position = position + num_characters
                    break
            else:
                position += 1
        if begin < len(text):
            yield text[begin:]
