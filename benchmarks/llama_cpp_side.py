"""llama.cpp's side of a comparison. Runs in the peers' environment; prints one JSON object.

python llama_cpp_side.py MODEL.gguf --task short|long|batch --decode-tokens 64 --threads 2
"""

import argparse
import ctypes
import json
import statistics
import time
from pathlib import Path

import llama_cpp
import numpy as np
from tasks import BATCH_PROMPT_TOKENS, LONG_TOKENS, PREFILL_TOKENS, SEQUENCES, SHORT_TOKENS, prompt_of


def peak_resident_bytes() -> int:
    """The process's peak, as the operating system counts it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def one_sequence(path: str, contexts: list[int], decode_tokens: int, threads: int) -> list[tuple[float, float]]:
    """For each context: (prefill tokens/s of it, decode tokens/s after it), greedy, the median step."""
    model = llama_cpp.Llama(
        path,
        n_ctx=max(contexts) + decode_tokens + 1,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        verbose=False,
    )
    model.eval(prompt_of(8, 0))
    found = []
    for context in contexts:
        model.reset()
        started = time.perf_counter()
        model.eval(prompt_of(context, 0))
        prefill_seconds = time.perf_counter() - started
        step_seconds = []
        for _ in range(decode_tokens):
            token = model.sample(temp=0.0)
            started = time.perf_counter()  # choosing a token is not counted against it
            model.eval([token])
            step_seconds.append(time.perf_counter() - started)
        found.append((context / prefill_seconds, 1 / statistics.median(step_seconds)))
    return found


def together(path: str, decode_tokens: int, threads: int) -> float:
    """Tokens/s of all sequences that decode together in one batch, each with its own part of the KV cache."""
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = SEQUENCES * (BATCH_PROMPT_TOKENS + decode_tokens + 64) // 256 * 256 + 256 * SEQUENCES
    settings.n_seq_max = SEQUENCES
    settings.kv_unified = False  # as its documentation advises for sequences that share no prefix
    settings.n_batch = settings.n_ubatch = max(512, SEQUENCES * BATCH_PROMPT_TOKENS)
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(SEQUENCES * BATCH_PROMPT_TOKENS, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def likeliest(row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())

    prompts = [prompt_of(BATCH_PROMPT_TOKENS, sequence) for sequence in range(SEQUENCES)]
    last = BATCH_PROMPT_TOKENS - 1
    decode([(token, i, s, i == last) for s, prompt in enumerate(prompts) for i, token in enumerate(prompt)])
    tokens = [likeliest(s * BATCH_PROMPT_TOKENS + last) for s in range(SEQUENCES)]
    step_seconds = []
    for step in range(decode_tokens):
        started = time.perf_counter()
        decode([(token, last + 1 + step, s, True) for s, token in enumerate(tokens)])
        llama_cpp.llama_synchronize(context)
        step_seconds.append(time.perf_counter() - started)
        tokens = [likeliest(s) for s in range(SEQUENCES)]
    return SEQUENCES / statistics.median(step_seconds)


def main() -> None:
    """One task in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", choices=("short", "long", "batch"), required=True)
    parser.add_argument("--decode-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    result: dict[str, float] = {}
    if asked.task == "short":
        short, prefill = one_sequence(asked.model, [SHORT_TOKENS, PREFILL_TOKENS], asked.decode_tokens, asked.threads)
        result = {"decode_short": short[1], "prefill_512": prefill[0], "peak_bytes": peak_resident_bytes()}
    elif asked.task == "long":
        ((_, decode),) = one_sequence(asked.model, [LONG_TOKENS], asked.decode_tokens, asked.threads)
        result = {"decode_4096": decode}
    else:
        result = {"batch_8": together(asked.model, asked.decode_tokens, asked.threads)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
