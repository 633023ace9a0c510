"""residency's side of a comparison; prints one JSON object.

python residency_side.py MODEL.gguf --prompt-tokens 512 --decode-tokens 64 --threads 2
"""

import argparse
import json
import statistics

import residency


def main() -> None:
    """Prefill, then greedy decode, each token timed, sampling and bookkeeping included."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--decode-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    context = asked.prompt_tokens + asked.decode_tokens + 1
    plan = residency.plan(asked.model, context=context, threads=asked.threads)
    with residency.Engine.open(plan) as engine:
        prompt = [1000 + i * 7919 % 20000 for i in range(asked.prompt_tokens)]
        engine.generate(prompt[:8], max_tokens=1)
        stream = engine.stream(prompt, max_tokens=asked.decode_tokens + 1, ignore_eos=True)
        for _ in stream:
            pass
        report, token_seconds = stream.report, stream.token_seconds
    result = {
        "prefill_tokens_per_second": report.prefill_tokens_per_second,
        "decode_tokens_per_second": 1 / statistics.median(token_seconds),
        "peak_bytes": report.memory.peak,
        "bandwidth_utilisation": report.bandwidth.utilisation,
        "forecast_decode_tokens_per_second": plan.forecast.decode_tokens_per_second,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
