"""Ratios of interleaved runs, their floors, and when a ratio has fallen under its own."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Runs = Mapping[str, Sequence[Mapping[str, float]]]  # by side, one mapping of measures a round
SMALLER_IS_BETTER = {"peak_bytes"}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """residency over a peer."""

    measure: str
    peer: str
    median: float  # of the two sides' medians
    least: float  # of the rounds' own ratios
    most: float

    @property
    def name(self) -> str:
        """As floors are called: "decode_short over llama.cpp"."""
        return f"{self.measure} over {self.peer}"

    @property
    def noise(self) -> float:
        """Half of what the rounds differ by."""
        return (self.most - self.least) / 2

    def has_fallen(self, floor: float) -> bool:
        """Whether it is worse than `floor` by more than the noise."""
        if self.measure in SMALLER_IS_BETTER:
            return self.median > floor + self.noise
        return self.median < floor - self.noise


def ratio(runs: Runs, measure: str, peer: str) -> Ratio:
    """residency over `peer` in one measure, rounds paired as they were interleaved."""
    ours, theirs = ([run[measure] for run in runs[side]] for side in ("residency", peer))
    rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median(ours) / statistics.median(theirs)
    return Ratio(measure=measure, peer=peer, median=median, least=min(rounds), most=max(rounds))


def ratios(runs: Runs) -> list[Ratio]:
    """All measures that residency and a peer both have in every round."""
    found = []
    for peer in runs:
        if peer == "residency" or not runs[peer]:
            continue
        common = [m for m in runs[peer][0] if all(m in run for side in ("residency", peer) for run in runs[side])]
        found += [ratio(runs, measure, peer) for measure in common]
    return found


def fallen(found: Sequence[Ratio], floors: Mapping[str, float]) -> list[str]:
    """A sentence for each ratio that has fallen under its floor; ratios without a floor cannot."""
    return [
        f"{each.name} is {each.median:.2f}x; its floor is {floors[each.name]:.2f}x and the noise {each.noise:.2f}"
        for each in found
        if each.name in floors and each.has_fallen(floors[each.name])
    ]


def recorded(found: Sequence[Ratio]) -> dict[str, float]:
    """Floors of these ratios: what they are now."""
    return {each.name: round(each.median, 3) for each in found}


def medians(runs: Runs) -> dict[str, dict[str, float]]:
    """Each side's median of each measure."""
    return {
        side: {measure: statistics.median(run[measure] for run in rounds) for measure in rounds[0]}
        for side, rounds in runs.items()
        if rounds
    }


def to_data(found: Sequence[Ratio]) -> list[dict[str, Any]]:
    """As JSON values."""
    return [
        {"measure": each.measure, "peer": each.peer, "median": each.median, "least": each.least, "most": each.most}
        for each in found
    ]
