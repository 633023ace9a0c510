"""Plan a run, run it, and compare what was forecast with what was measured.

python examples/generate.py [MODEL] [PROMPT]
"""

import sys

import residency


def main(model: str = "smollm2-135m", prompt: str = "Why does memory bandwidth limit a language model?") -> None:
    """Print the answer as it comes, then the forecast beside the measurement."""
    plan = residency.plan(model, memory="400MiB")
    with residency.Engine.open(plan) as engine:
        stream = engine.stream(prompt, max_tokens=64)
        for piece in stream:
            print(piece, end="", flush=True)
        report = stream.report
    print(f"\n\n{report.decode_tokens_per_second:.0f} tokens/s, forecast {plan.forecast.decode_tokens_per_second:.0f}")
    print(f"{report.memory.peak / 2**20:.0f} MiB at most, forecast {plan.memory.peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
