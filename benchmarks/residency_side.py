"""residency's side of a comparison; prints one JSON object.

python residency_side.py MODEL.gguf --task short|long|batch --decode-tokens 64 --threads 2
"""

import argparse
import json
import statistics
import time

from tasks import BATCH_PROMPT_TOKENS, LONG_TOKENS, PREFILL_TOKENS, SEQUENCES, SHORT_TOKENS, prompt_of

import residency
from residency.engine.generation import GenerationOptions
from residency.verifier.opened import opened


def one_sequence(path: str, contexts: list[int], decode_tokens: int, threads: int) -> dict[str, list[float]]:
    """For each context, prefill and decode in tokens/s (the median step), and the share of the probe's bandwidth."""
    plan = residency.plan(path, context=max(contexts) + decode_tokens + 2, threads=threads)
    found: dict[str, list[float]] = {"prefill": [], "decode": [], "share": []}
    with residency.Engine.open(plan) as engine:
        engine.generate(prompt_of(8, 0), max_tokens=1)
        for context in contexts:
            stream = engine.stream(prompt_of(context, 0), max_tokens=decode_tokens + 1, ignore_eos=True)
            for _ in stream:
                pass
            found["prefill"].append(stream.report.prefill_tokens_per_second)
            found["decode"].append(1 / statistics.median(stream.token_seconds))
            found["share"].append(stream.report.bandwidth.utilisation)
            found["peak"] = [stream.report.memory.peak]
    return found


def together(path: str, decode_tokens: int, threads: int) -> float:
    """Tokens/s of all sequences that decode together."""
    plan = residency.plan(
        path, context=BATCH_PROMPT_TOKENS + decode_tokens + SEQUENCES + 2, max_sequences=SEQUENCES, threads=threads
    )
    with opened(plan) as model:
        wanted = decode_tokens + SEQUENCES + 1
        options = GenerationOptions(max_tokens=wanted, ignore_eos=True, use_prefix_cache=False)
        waiting = {
            model.loop.submit(prompt_of(BATCH_PROMPT_TOKENS, sequence), options) for sequence in range(SEQUENCES)
        }
        while waiting:
            waiting -= {sampled.request_id for sampled in model.loop.step()}
        step_seconds = []
        for _ in range(decode_tokens):
            started = time.perf_counter()
            model.loop.step()
            step_seconds.append(time.perf_counter() - started)
    return SEQUENCES / statistics.median(step_seconds)


def main() -> None:
    """One task in this process, sampling and bookkeeping included."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", choices=("short", "long", "batch"), required=True)
    parser.add_argument("--decode-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    result: dict[str, float] = {}
    if asked.task == "short":
        found = one_sequence(asked.model, [SHORT_TOKENS, PREFILL_TOKENS], asked.decode_tokens, asked.threads)
        result = {
            "decode_short": found["decode"][0],
            "prefill_512": found["prefill"][1],
            "peak_bytes": found["peak"][0],
        }
        result["share_of_bandwidth"] = found["share"][0]
    elif asked.task == "long":
        result = {
            "decode_4096": one_sequence(asked.model, [LONG_TOKENS], asked.decode_tokens, asked.threads)["decode"][0]
        }
    else:
        result = {"batch_8": together(asked.model, asked.decode_tokens, asked.threads)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
