"""Formats are mixed so that a budget is kept and no other mixture of it costs less."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from residency.errors import BudgetError
from residency.formats import Format, format_named
from residency.models.specs import model_spec
from residency.quantize.job import embedded
from residency.quantize.mixed import Choice, assigned, choices_of, scanned
from residency.quantize.scans import keep_scan, kept_scan
from residency.spec.opening import open_checkpoint

NAMES = ("Q4_0", "Q5_0", "Q6_K", "Q8_0")


@pytest.mark.parametrize("budget", [420, 620, 700])
def test_no_other_mixture_of_the_budget_costs_less(budget: int) -> None:
    choices = random_choices(budget)
    found = picked(choices, assigned(choices, budget))
    mixtures = [each for each in itertools.product(*choices.values()) if total_bytes(each) <= budget]
    assert total_bytes(found) <= budget
    assert total_cost(found) == pytest.approx(min(map(total_cost, mixtures)))


def test_a_large_budget_is_not_exceeded_by_rounding() -> None:
    choices = {
        name: [replace(each, num_bytes=each.num_bytes * 12345) for each in o] for name, o in random_choices(3).items()
    }
    assert total_bytes(picked(choices, assigned(choices, 620 * 12345))) <= 620 * 12345


def test_a_budget_without_end_takes_the_best_of_all() -> None:
    choices = random_choices(1)
    found = picked(choices, assigned(choices, 1 << 30))
    assert [each.cost for each in found] == [min(each.cost for each in options) for options in choices.values()]


def test_a_budget_below_the_smallest_is_refused() -> None:
    with pytest.raises(BudgetError, match="larger --target-size"):
        assigned(random_choices(1), 10)


def test_the_scan_finds_more_bits_cheaper_and_every_matrix_worth_something(folder: Path) -> None:
    spec = model_spec(open_checkpoint(folder))
    x = embedded(spec, np.random.default_rng(1).integers(0, spec.vocabulary, (2, 32)))
    choices = choices_of(spec, scanned(spec, x, lambda done, total: None))
    assert len(choices) == 7 * len(spec.layers) + (1 if spec.head is None else 2)
    for options in choices.values():
        costs = [each.cost for each in sorted(options, key=lambda each: each.num_bytes)]
        assert costs == sorted(costs, reverse=True) and costs[-1] > 0


def test_a_scan_is_kept_for_other_sizes_of_the_same_model_on_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    checkpoint, ids, costs = open_checkpoint(folder), np.arange(6).reshape(2, 3), {"head": {"Q4_0": 0.1, "Q8_0": 1e-9}}
    assert kept_scan(checkpoint, ids) is None
    keep_scan(checkpoint, ids, costs)
    assert kept_scan(checkpoint, ids) == costs
    assert kept_scan(checkpoint, ids + 1) is None


def test_a_damaged_scan_is_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    checkpoint, ids = open_checkpoint(folder), np.arange(6).reshape(2, 3)
    keep_scan(checkpoint, ids, {"head": {"Q4_0": 0.1}})
    (path,) = (tmp_path / "scans").iterdir()
    path.write_text(path.read_text()[:-4])
    assert kept_scan(checkpoint, ids) is None


def random_choices(seed: int) -> dict[str, list[Choice]]:
    rng = np.random.default_rng(seed)
    choices = {}
    for matrix in range(5):
        sizes, costs = np.cumsum(rng.integers(20, 60, 4)), np.sort(rng.random(4))[::-1]
        choices[str(matrix)] = [
            Choice(format=format_named(name), num_bytes=int(size), cost=float(cost))
            for name, size, cost in zip(NAMES, sizes, costs, strict=True)
        ]
    return choices


def picked(choices: dict[str, list[Choice]], formats: dict[str, Format]) -> list[Choice]:
    return [next(each for each in options if each.format == formats[name]) for name, options in choices.items()]


def total_bytes(mixture: Iterable[Choice]) -> int:
    return sum(each.num_bytes for each in mixture)


def total_cost(mixture: Iterable[Choice]) -> float:
    return sum(each.cost for each in mixture)
