"""What tiers cost where all fits: decoding without --memory, and with a budget of exactly the plan's peak, in turn.

Run: python benchmarks/full_memory.py MODEL [ROUNDS] [TOKENS]. One process, two engines, A B B A. Prints the median rate
of each, and of their ratio by rounds. Both plans must be the same but for their budgets. Needs a quiet machine.
"""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

from residency.engine.engine import Engine
from residency.engine.planning import plan_rows

CONTEXT_TOKENS = 512
PROMPT_TOKENS = 64


def tokens_per_second(engine: Engine, tokens: int) -> float:
    """Of the median token of one answer."""
    stream = engine.stream(list(range(100, 100 + PROMPT_TOKENS)), max_tokens=tokens, ignore_eos=True)
    for _ in stream:
        pass
    return 1 / statistics.median(stream.token_seconds)


def main() -> None:
    """Measure, and print both and their ratio."""
    path, rounds, tokens = Path(sys.argv[1]), *(int(word) for word in (*sys.argv[2:], 20, 40)[:2])
    free = plan_rows(path, context=CONTEXT_TOKENS)
    exact = plan_rows(path, context=CONTEXT_TOKENS, memory=free.memory.peak)
    assert replace(exact, budget_bytes=free.budget_bytes) == free, "the plans differ by their budgets alone"
    print(f"all in memory, {free.memory.peak / 2**20:.0f} MiB: one plan, but for the budget")
    rates: dict[str, list[float]] = {"free": [], "exact": []}
    with Engine.open(free) as one, Engine.open(exact) as other:
        for number in range(rounds + 1):
            turns = [("free", one), ("exact", other)]
            for name, engine in turns[:: 1 if number % 2 else -1]:
                rate = tokens_per_second(engine, tokens)
                if number:  # the first round touches pages and wakes threads
                    rates[name].append(rate)
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):.2f} tokens/s ({min(found):.2f} to {max(found):.2f})")
    ratios = [exact / free for exact, free in zip(rates["exact"], rates["free"], strict=True)]
    print(f"exact over free: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
