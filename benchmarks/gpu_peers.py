"""transformers on the same card and the same shapes, beside what benchmarks/gpu.py measures."""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from residency.spec.model import ModelSpec

CONTEXT = 128


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median wall time of `work`, which ends when the device is done."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def peers(spec: ModelSpec, tokens: int = 128) -> dict[str, Any]:
    """transformers' decode of one sequence on this card, eager and with a compiled static cache, and its continuous
    batching of 64, on made-up weights of the same shapes.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    first = spec.layers[0].grouped_attention
    config = LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.layers[0].gated_mlp.intermediate,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=first.num_heads,
        num_key_value_heads=first.num_kv_heads,
        head_dim=first.head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=spec.tied,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    prompt = torch.ones(1, CONTEXT, dtype=torch.int64, device="cuda")
    found: dict[str, Any] = {}
    for name, extra in (("eager", {}), ("static cache, compiled", {"cache_implementation": "static"})):
        settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, **extra}
        once, more = (median_seconds(partial(generate, model, prompt, n, settings), 3) for n in (1, tokens + 1))
        found[name] = {"tokens_per_second": tokens / (more - once)}
    wanted = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = [[1] * CONTEXT for _ in range(64)]
    seconds = median_seconds(partial(model.generate_batch, inputs=prompts, generation_config=wanted), 1)
    found["continuous batching of 64"] = {"tokens_per_second": 64 * tokens / seconds}
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return found


def generate(model: Any, prompt: torch.Tensor, tokens: int, settings: dict[str, Any]) -> None:
    """So many tokens after the prompt."""
    model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
