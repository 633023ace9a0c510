"""OpenVINO GenAI's side of a comparison: prefill alone. Runs in the peers' environment; prints one JSON object.

python openvino_side.py MODEL.gguf --task short --decode-tokens 64 --threads 2
"""

import argparse
import json
import statistics
import time

import numpy as np
import openvino
import openvino_genai
from tasks import PREFILL_TOKENS, prompt_of

_TRIALS = 3


def main() -> None:
    """Prefill of prompts that share no beginning, to the first token; the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", choices=("short",), required=True)
    parser.add_argument("--decode-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    pipeline = openvino_genai.LLMPipeline(asked.model, "CPU", INFERENCE_NUM_THREADS=asked.threads)
    settings = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
    seconds = []
    for trial in range(_TRIALS + 1):
        tokens = np.array([prompt_of(PREFILL_TOKENS, trial)], np.int64)
        prompt = openvino_genai.TokenizedInputs(openvino.Tensor(tokens), openvino.Tensor(np.ones_like(tokens)))
        started = time.perf_counter()
        pipeline.generate(prompt, settings)
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"prefill_512": PREFILL_TOKENS / statistics.median(seconds[1:])}))


if __name__ == "__main__":
    main()
