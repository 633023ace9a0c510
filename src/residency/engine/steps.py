"""A recorded step as programs that can run: where weights stream, each launch is given the addresses that its weights
have this time, and waits for them.

Where everything is in memory there is one program. Else a recording names weights by where they lie in the store, and
the slot that a span streams to depends on how many spans were streamed before: there is a program for each slot that a
step may begin with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from residency.kernels.library import Library
from residency.kernels.recorder import Launch, Program, Recorder, finish
from residency.store.residents import Residents
from residency.store.weights import Weights

STREAM_KERNELS = ("step.arrive", "step.release")
_LANES_BYTES = 64  # 16 float32: what a tile of a matrix writes of each row


class ResidentSteps:
    """The same programs for every step."""

    def __init__(self, step: Recorder, library: Library) -> None:
        self._program = step.finish(library)
        self._logits_program = finish(step.launches[step.first_of_logits :], library)

    def begin(self, *, only_logits: bool = False) -> Program:
        """The program of the next step, or the one that makes logits of what the last step left."""
        return self._logits_program if only_logits else self._program

    def end(self) -> None:
        """The step is over."""


class StreamedSteps:
    """Programs that wait for what they read."""

    def __init__(self, step: Recorder, library: Library, weights: Weights, residents: Residents) -> None:
        self._weights = weights
        self._placing = _Placing(weights, residents)
        self._step = step
        self._library = library
        self._residents = residents
        self._programs: dict[tuple[int, bool], Program] = {}

    def begin(self, *, only_logits: bool = False) -> Program:
        """The program of the next step, or the one that makes logits of what the last step left, which all that streams
        passes by. StoreError where the disk has failed.
        """
        self._residents.stream.begin()
        key = self._residents.stream.slot_of_next, only_logits
        if key not in self._programs:
            first = self._step.first_of_logits if only_logits else 0
            launches = self._placing.launches(self._step.launches, first_slot=key[0], first_launch=first)
            self._programs[key] = finish(launches, self._library)
        return self._programs[key]

    def replace(self) -> None:
        """Other spans stay now: make all programs anew."""
        self._placing = _Placing(self._weights, self._residents)
        self._programs.clear()

    def end(self) -> None:
        """The step is over. StoreError where the disk has failed: then its results are worth nothing."""
        self._residents.stream.check()


@dataclass(frozen=True)
class _Part:
    """A launch with the spans that it reads."""

    launch: Launch
    spans: tuple[int, ...]
    is_run: bool = True


class _Placing:
    """Turns launches on the store into launches on memory."""

    def __init__(self, weights: Weights, residents: Residents) -> None:
        self._first, self._last = weights.address, weights.address + weights.num_bytes
        self._residents = residents
        self._number_of = {span: number for number, span in enumerate(residents.streaming.streamed)}
        self._pieces: dict[int, list[tuple[int, int, int]]] = {}  # by where a tensor begins: span, offset, first tile
        for index, span in enumerate(residents.spans):
            for piece in span.pieces:
                start = weights.offset_of(piece.name)
                self._pieces.setdefault(start, []).append((index, piece.offset, piece.first_tile))

    def launches(self, recorded: Sequence[Launch], *, first_slot: int, first_launch: int) -> list[Launch]:
        """What a step runs whose first read goes to `first_slot`: waits, launches, and slots given back. Of launches
        before `first_launch` only the waiting and giving back.
        """
        parts = [
            _Part(part.launch, part.spans, is_run=number >= first_launch)
            for number, launch in enumerate(recorded)
            for part in self._parts(launch, first_slot)
        ]
        parts[-1].launch.meet = True
        last_use = {span: index for index, part in enumerate(parts) for span in part.spans}
        placed: list[Launch] = []
        arrived = done = released = 0
        for index, part in enumerate(parts):
            for span in sorted(self._number_of.keys() & part.spans):
                number = self._number_of[span]
                if number >= arrived:
                    arrived = number + 1
                    placed.append(self._arrive(number))
                if last_use[span] == index:
                    assert number == done, "spans are done with in the order in which they come"
                    done += 1
            if part.is_run:
                placed.append(part.launch)
            if done > released and (part.launch.meet or not part.is_run):
                released = done
                placed.append(self._release(done))
        return placed

    def _arrive(self, number: int) -> Launch:
        words = self._residents.stream.words
        return Launch("step.arrive", {"arrived_at": words.arrived, "base_at": words.base, "number": number}, meet=False)

    def _release(self, count: int) -> Launch:
        words = self._residents.stream.words
        return Launch(
            "step.release",
            {"released_at": words.released, "base_at": words.base, "count": count, "bell": words.bell},
            meet=False,
        )

    def _parts(self, launch: Launch, first_slot: int) -> Iterator[_Part]:
        """The launch on memory, cut into as many as its matrix is."""
        stored = {name: int(word) - self._first for name, word in launch.words.items() if self._is_stored(word)}
        if not stored:
            yield _Part(launch, ())
            return
        if "tiles" in launch.words and len(pieces := self._pieces[stored["weights"]]) > 1:
            yield from self._cut(launch, pieces, first_slot)
            return
        spans: list[int] = []
        words = dict(launch.words)
        for name, start in stored.items():
            ((span, offset, _),) = self._pieces[start]
            words[name] = self._address(span, offset, first_slot)
            spans.append(span)
        yield _Part(replace(launch, words=words), tuple(dict.fromkeys(spans)))

    def _cut(self, launch: Launch, pieces: list[tuple[int, int, int]], first_slot: int) -> Iterator[_Part]:
        """One launch for each piece of the matrix; threads meet after those that give something back."""
        ends = [first_tile for _, _, first_tile in pieces[1:]] + [int(launch.words["tiles"])]
        assert not launch.words["bias"], "only the head is cut, which has none"
        for (span, offset, first_tile), end_tile in zip(pieces, ends, strict=True):
            words = dict(launch.words)
            words["weights"] = self._address(span, offset, first_slot)
            words["out"] = int(words["out"]) + first_tile * _LANES_BYTES
            words["tiles"] = end_tile - first_tile
            meet = span in self._number_of or (launch.meet and end_tile == ends[-1])
            shares = max(1, launch.shares * (end_tile - first_tile) // int(launch.words["tiles"]))
            yield _Part(Launch(launch.kernel, words, meet, shares), (span,))

    def _address(self, span: int, offset: int, first_slot: int) -> int:
        return self._residents.address_of(span, first_slot) + offset - self._residents.spans[span].offset

    def _is_stored(self, word: int | float) -> bool:
        return isinstance(word, int) and self._first <= word < self._last
