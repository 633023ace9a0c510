"""llama.cpp's side of a comparison. Runs in the peers' environment; prints one JSON object.

python llama_cpp_side.py MODEL.gguf --prompt-tokens 512 --decode-tokens 64 --threads 2
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from llama_cpp import Llama


def peak_resident_bytes() -> int:
    """The process's peak, as the operating system counts it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    """Prefill, then greedy decode, each token timed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--decode-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    context = asked.prompt_tokens + asked.decode_tokens + 1
    model = Llama(
        asked.model, n_ctx=context, n_threads=asked.threads, n_threads_batch=asked.threads, n_batch=512, verbose=False
    )
    prompt = [1000 + i * 7919 % 20000 for i in range(asked.prompt_tokens)]
    model.eval(prompt[:8])
    model.reset()
    started = time.perf_counter()
    model.eval(prompt)
    prefill_seconds = time.perf_counter() - started
    token_seconds = []
    for _ in range(asked.decode_tokens):
        token = model.sample(temp=0.0)
        started = time.perf_counter()
        model.eval([token])
        token_seconds.append(time.perf_counter() - started)
    result = {
        "prefill_tokens_per_second": asked.prompt_tokens / prefill_seconds,
        "decode_tokens_per_second": 1 / statistics.median(token_seconds),
        "peak_bytes": peak_resident_bytes(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
