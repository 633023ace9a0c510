"""A busy core beside a run: how long steps of decode take alone and beside one process that takes a processor.

    python benchmarks/busy_core.py MODEL.gguf [--tokens 400]

Prints the median, 90th and 99th percentile and the longest step; writes benchmarks/results/<machine>/busy-<model>.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from peers import HERE, machine
from tasks import SHORT_TOKENS, prompt_of

import residency

_SETTLE_SECONDS = 0.5


def spread(step_seconds: list[float]) -> dict[str, float]:
    """Milliseconds of the median, the 90th and 99th percentile, and the longest step."""
    ordered = sorted(step_seconds)

    def at(part: float) -> float:
        return 1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    return {"median": 1e3 * statistics.median(ordered), "p90": at(0.9), "p99": at(0.99), "max": 1e3 * ordered[-1]}


def main() -> None:
    """Alone, beside a busy process, and alone again: the last shows that the machine stayed as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=400)
    asked = parser.parse_args()
    found = {}
    plan = residency.plan(asked.model, context=SHORT_TOKENS + asked.tokens + 2)
    with residency.Engine.open(plan) as engine:
        engine.generate(prompt_of(8, 0), max_tokens=2)
        for name, hogs in (("alone", 0), ("beside a busy process", 1), ("alone again", 0)):
            running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hogs)]
            try:
                time.sleep(_SETTLE_SECONDS)
                stream = engine.stream(prompt_of(SHORT_TOKENS, 0), max_tokens=asked.tokens + 1, ignore_eos=True)
                for _ in stream:
                    pass
            finally:
                for process in running:
                    process.kill()
                    process.wait()
            found[name] = spread(stream.token_seconds)
            print(f"{name:24}" + "   ".join(f"{key} {value:.2f} ms" for key, value in found[name].items()))
    folder = HERE / "results" / str(machine()["name"])
    folder.mkdir(parents=True, exist_ok=True)
    result = {"model": asked.model.name, "machine": machine(), "threads": plan.threads, "step_milliseconds": found}
    (folder / f"busy-{asked.model.stem}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
