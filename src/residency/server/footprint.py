"""How much memory a serving process takes beside weights.

Run: `python -m residency.server.footprint [MODEL [BODY_BYTES [SLOTS]]]`. Does what a server does, with a service that
computes nothing: imports, tokenizer, chat template, a JSON schema, the longest body that it takes, the most log
probabilities of prompts. Prints the peak of its resident bytes, with what open requests, and the index of so many slots
of a KV store, may take on top of it.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from string import ascii_lowercase

import numpy as np

import residency.cli.serve
import residency.server.app
import residency.server.serving  # noqa: F401  (what is imported is what is measured)
from residency.engine.arena import peak_resident_bytes
from residency.engine.executor import DRIVERS
from residency.engine.generation import GenerationOptions, PromptLogprobs, TokenEvent
from residency.engine.kv_store import SLOT_RECORD_BYTES
from residency.engine.sampler import Sampler
from residency.engine.text import load_chat_template, load_tokenizer
from residency.engine.workers import Workers
from residency.kernels.library import Library
from residency.models.specs import model_spec
from residency.server.completions import most_prompt_logprobs
from residency.server.desk import Desk
from residency.server.intake import OPEN_BODIES_BYTES, body_bytes_for
from residency.server.model import Model
from residency.server.openapi import document
from residency.server.streams import json_bytes
from residency.server.watch import Unobserved
from residency.spec.opening import open_checkpoint

BYTES_PER_BODY_BYTE = 16  # of an open request: its body, its fields, its tokens and its answer
_CONTEXT_TOKENS = 2048


def main() -> None:
    """Print the bytes."""
    with Workers(Library(DRIVERS), threads=2):
        if len(sys.argv) > 1:
            body_bytes = int(sys.argv[2]) if len(sys.argv) > 2 else body_bytes_for(_CONTEXT_TOKENS)
            asyncio.run(_answer(Path(sys.argv[1]), body_bytes))
        num_slots = int(sys.argv[3]) if len(sys.argv) > 3 else 0
        print(peak_resident_bytes() + BYTES_PER_BODY_BYTE * OPEN_BODIES_BYTES + SLOT_RECORD_BYTES * num_slots)


class _Silent:
    """A service whose every answer is one token, the model's last word."""

    failure = None

    def __init__(self, token: int, vocabulary: int) -> None:
        self._token = token
        self._num_requests = 0
        self._logits = np.zeros(vocabulary, np.float32)

    def submit(
        self, prompt_ids: Sequence[int], options: GenerationOptions, listener: Callable[[Sequence[TokenEvent]], None]
    ) -> int:
        Sampler(options.sampling).sample(self._logits, np.array(prompt_ids, np.int64))
        if options.logit_mask is not None:
            options.logit_mask([])
        request_id, self._num_requests = self._num_requests, self._num_requests + 1
        event = TokenEvent(
            request_id=request_id,
            answer=0,
            token=self._token,
            prompt_tokens=len(prompt_ids),
            cached_tokens=0,
            finish_reason="stop",
            prompt_logprobs=_some_logprobs(len(prompt_ids), options.prompt_logprobs),
        )
        listener([event])
        return request_id

    def cancel(self, request_id: int) -> None: ...

    def finish(self, request_id: int, answer: int) -> None: ...


def _some_logprobs(prompt_tokens: int, num_likeliest: int | None) -> PromptLogprobs | None:
    if num_likeliest is None:
        return None
    found = PromptLogprobs.room_for(prompt_tokens, num_likeliest)
    for values in (found.logprobs, found.top_tokens, found.top_logprobs):
        values.fill(1)
    return found


async def _answer(path: Path, body_bytes: int) -> None:
    checkpoint = open_checkpoint(path)
    spec, tokenizer = model_spec(checkpoint), load_tokenizer(checkpoint)
    with Model(
        names=("model",),
        tokenizer=tokenizer,
        template=load_chat_template(checkpoint),
        vocabulary=spec.vocabulary,
        context_tokens=_CONTEXT_TOKENS,
    ) as model:
        desk = Desk(_Silent(min(tokenizer.eos_ids, default=0), spec.vocabulary), model, Unobserved())
        await model.prompts.of_text("".join(Random(0).choices(ascii_lowercase, k=body_bytes)))  # one word takes most
        text = "Why does memory bandwidth limit a language model? " * 32
        prompt = {"model": "model", "prompt": text, "temperature": 1, "top_p": 0.9}
        await (await desk.job("/v1/completions", json.dumps(prompt), {})).whole(desk.generator)
        scored = [[0] * (_CONTEXT_TOKENS - 1)] * (most_prompt_logprobs(_CONTEXT_TOKENS) // (2 * _CONTEXT_TOKENS))
        echo = {"model": "model", "prompt": scored, "echo": True, "logprobs": 1, "max_tokens": 0}
        json_bytes(await (await desk.job("/v1/completions", json.dumps(echo), {})).whole(desk.generator))
        model.prepare_grammars()
        if model.prompts.template is not None:
            chat = {"model": "model", "messages": [{"role": "user", "content": text}], "stream": True}
            job = await desk.job("/v1/chat/completions", json.dumps(chat), {})
            await job.stream(desk.generator, _ignore)
    json_bytes(document())


async def _ignore(data: bytes) -> None:
    """What nobody reads."""


if __name__ == "__main__":
    main()
