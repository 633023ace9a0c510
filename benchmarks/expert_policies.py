"""Which experts to keep: hits in simulation of counting uses, of recency, and of who knows the future.

    python benchmarks/expert_policies.py [--steps 400]

Routes are those of synthetic_mixture.py: 8 layers of 8 experts, two a token, drawn by Zipf's law. The first eighth of
the steps fills the slots and is not counted. Prints the table of docs/explanation/experts.md.
"""

import argparse

from synthetic_mixture import EXPERTS, routes

from residency.ledger.experts import Hindsight, LeastFrequent, LeastRecent, hit_rate

LAYERS = 8
SKEWS = {"even": 0.0, "0.6": 0.6, "1.2": 1.2}
PARTS = {"a quarter": 4, "half": 2}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    print("| skew | slots | least frequent | least recent | hindsight |\n| --- | --- | --- | --- | --- |")
    num_experts = LAYERS * EXPERTS
    for part, divisor in PARTS.items():
        for skew, exponent in SKEWS.items():
            trace = routes(steps, LAYERS, exponent)
            policies = LeastFrequent(num_experts), LeastRecent(num_experts), Hindsight(trace, EXPERTS)
            rates = [
                hit_rate(trace, EXPERTS, num_experts // divisor, policy, warm_up_steps=steps // 8)
                for policy in policies
            ]
            print(f"| {skew} | {part} | {' | '.join(f'{rate:.0%}' for rate in rates)} |")


if __name__ == "__main__":
    main()
