"""llama.cpp's perplexity of a GGUF file by residency's definition: whether both read the file alike.

Run it with a Python that has llama-cpp-python:

    python benchmarks/perplexity_llama_cpp.py model.gguf wiki.test.raw 4

and beside it `residency evaluate model.gguf --text wiki.test.raw --chunks 4`: chunks of 512 tokens, each begun anew,
of which the second half is scored.
"""

import math
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

CHUNK_TOKENS = 512


def main() -> None:
    """Print the perplexity of the file and the number of chunks."""
    path, text_path, max_chunks = sys.argv[1:4]
    model = Llama(path, n_ctx=CHUNK_TOKENS, n_batch=CHUNK_TOKENS, logits_all=True, verbose=False)
    text = Path(text_path).read_text("utf-8", errors="replace")
    tokens = model.tokenize(text.encode(), add_bos=False, special=False)
    losses = []
    for number in range(min(int(max_chunks), len(tokens) // CHUNK_TOKENS)):
        chunk = tokens[number * CHUNK_TOKENS : (number + 1) * CHUNK_TOKENS]
        model.reset()
        model.eval(chunk)
        for place in range(CHUNK_TOKENS // 2, CHUNK_TOKENS - 1):
            logits = np.asarray(model.scores[place], np.float64)
            shifted = logits - logits.max()
            losses.append(math.log(np.exp(shifted).sum()) - shifted[chunk[place + 1]])
    print(f"perplexity {math.exp(float(np.mean(losses))):.4f} over {len(losses)} tokens")


if __name__ == "__main__":
    main()
