"""How likely the model holds the tokens of a prompt, from the step that computes them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.executor import Executor, Logits
from residency.engine.generation import PromptLogprobs, TokenLogprob
from residency.engine.sampler import FloatArray, likeliest, log_probabilities
from residency.scheduler import Batch


@dataclass(frozen=True, kw_only=True)
class ScoredPrompt:
    """A prompt whose log probabilities are wanted, and where they go."""

    tokens: npt.NDArray[np.int64]
    logprobs: PromptLogprobs

    @staticmethod
    def of(tokens: npt.NDArray[np.int64], num_likeliest: int | None) -> "ScoredPrompt | None":
        """None where nothing is wanted."""
        if num_likeliest is None:
            return None
        return ScoredPrompt(tokens=tokens, logprobs=PromptLogprobs.room_for(len(tokens), num_likeliest))

    def note(self, position: int, logits: FloatArray) -> None:
        """Take in the logits (vocabulary,) after the token at `position`, which is not the last."""
        found = self.logprobs
        top = likeliest(logits, found.top_tokens.shape[1]) if found.top_tokens.size else np.empty(0, np.int64)
        values = log_probabilities(logits, np.append(top, self.tokens[position + 1]))
        found.top_tokens[position], found.top_logprobs[position] = top, values[:-1]
        found.logprobs[position] = values[-1]


def score_prompts(executor: Executor, batch: Batch, prompts: Mapping[int, ScoredPrompt]) -> Logits:
    """Note what the step that computed `batch` says of `prompts`, by their requests; the logits of the entries that
    need them, as `compute` gave them.

    A plan keeps few rows of logits, so those of a prompt are made some at a time.
    """
    first, wanted_rows = 0, []
    for entry in batch.entries:
        prompt = prompts.get(entry.request_id)
        if prompt is not None and entry.of_prompt:
            num_tokens = min(entry.num_tokens, len(prompt.tokens) - 1 - entry.start_token)
            for start in range(0, num_tokens, executor.most_logits):
                places = range(start, min(start + executor.most_logits, num_tokens))
                rows = executor.more_logits([first + place for place in places])
                for place, logits in zip(places, np.asarray(rows), strict=True):
                    prompt.note(entry.start_token + place, logits)
        first += entry.num_tokens
        if entry.needs_logits:
            wanted_rows.append(first - 1)
    return executor.more_logits(wanted_rows)


def token_logprobs(logits: FloatArray, token: int, num_likeliest: int) -> tuple[float, tuple[TokenLogprob, ...]]:
    """The log probability of `token`, and the likeliest tokens with theirs."""
    tokens = np.concatenate([[token], likeliest(logits, num_likeliest) if num_likeliest else []]).astype(np.int64)
    values = log_probabilities(logits, tokens).tolist()
    pairs = zip(tokens[1:].tolist(), values[1:], strict=True)
    return values[0], tuple(TokenLogprob(token=each, logprob=value) for each, value in pairs)
