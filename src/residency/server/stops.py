"""Text up to the first stop string, with nothing of a stop string ever shown."""

from collections.abc import Sequence


class StopStrings:
    """Holds back what may be the beginning of a stop string until it is known not to be."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(filter(None, stops))
        self._held = ""
        self.has_stopped = False

    def feed(self, piece: str) -> str:
        """The text that may be shown after `piece`. Nothing more once `has_stopped`."""
        if not self._stops:
            return piece
        if self.has_stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.has_stopped, self._held = True, ""
            return text[: min(found)]
        shown = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back, at the end of an answer in which no stop string was completed."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with, the whole of it excepted."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
