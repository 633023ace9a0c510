"""Perplexity the standard way: how surprised a model is, on average, by each token of a text.

F. Jelinek et al.: Perplexity, a measure of the difficulty of speech recognition tasks (JASA 62/S1, 1977). The text is
cut into consecutive chunks of 512 tokens, or as many as the plan's context has, each begun anew; of each chunk the
second half is scored, so that every scored token has at least 256 before it. The first token of a chunk is the begin
token where the tokenizer adds one.

Shape suffixes: T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.engine import Progress
from residency.engine.executor import Executor
from residency.engine.planning import open_planned
from residency.engine.text import Tokenizer, load_tokenizer
from residency.errors import UsageError
from residency.ledger import KvPages
from residency.ledger.groups import PageGroup
from residency.planner.plan import Plan
from residency.scheduler import Batch, BatchEntry
from residency.spec.opening import open_checkpoint
from residency.verifier.opened import executing

CHUNK_TOKENS = 512
STEP_TOKENS = 64  # what a plan for measuring perplexity has as chunk and as rows of logits
_CHARACTERS_PER_TOKEN = 8  # more than texts have; a first guess at how much of a text to encode

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """A measured perplexity; `error` is one standard error."""

    value: float
    error: float
    chunks: int

    def to_data(self) -> dict[str, float | int]:
        """As JSON values."""
        return {"value": self.value, "error": self.error, "chunks": self.chunks}


def measure_perplexity(
    plan: Plan, text: str, *, max_chunks: int | None = None, progress: Progress | None = None
) -> Perplexity:
    """The perplexity of the plan's model on `text`, or on its first `max_chunks` chunks.

    The plan is for one sequence of a chunk's tokens, with STEP_TOKENS as chunk and rows of logits. UsageError for a
    text that is shorter than one chunk.
    """
    report = progress or _nobody
    chunks = chunks_of(load_tokenizer(open_checkpoint(plan.model_path)), text, max_chunks, plan.context_tokens)
    losses: list[npt.NDArray[np.float64]] = []
    with scoring(plan, report) as executor:
        for number, tokens_T in enumerate(chunks):
            losses += [token_losses(*scored) for scored in scored_logits(plan, executor, tokens_T)]
            report("measuring perplexity", number + 1, len(chunks))
    return perplexity_of(np.concatenate(losses), chunks=len(chunks))


@contextmanager
def scoring(plan: Plan, progress: Progress | None = None) -> Iterator[Executor]:
    """The executor of the plan's model, converted first where it has to be; closed afterwards."""
    with executing(plan, open_planned(plan)[1], progress) as running:
        yield running.executor


def perplexity_of(losses: npt.NDArray[np.float64], *, chunks: int) -> Perplexity:
    """From the negative log-likelihoods of all scored tokens, at least two, to their perplexity.

    The error is the standard error of their mean, carried through the exponential.
    """
    value = math.exp(losses.mean())
    return Perplexity(value=value, error=value * float(losses.std(ddof=1)) / math.sqrt(losses.size), chunks=chunks)


def token_losses(logits_TV: Logits, targets_T: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The negative log-likelihood of each target under its row of logits, in float64."""
    losses = np.empty(len(targets_T))
    for index, (row_V, target) in enumerate(zip(logits_TV, targets_T, strict=True)):  # one by one: rows are long
        shifted_V = row_V.astype(np.float64) - float(row_V.max())
        losses[index] = math.log(np.exp(shifted_V).sum()) - shifted_V[target]
    return losses


def chunks_of(
    tokenizer: Tokenizer, text: str, max_chunks: int | None, chunk_tokens: int = CHUNK_TOKENS
) -> list[npt.NDArray[np.int64]]:
    """Consecutive chunks of the text's tokens. UsageError where there is not even one."""
    tokens = _tokens(tokenizer, text, None if max_chunks is None else (max_chunks + 1) * chunk_tokens)
    num_chunks = len(tokens) // chunk_tokens
    if num_chunks == 0:
        raise UsageError(
            f"the text has {len(tokens)} tokens, {chunk_tokens - len(tokens)} too few for one chunk of {chunk_tokens}; "
            "give a longer one."
        )
    if max_chunks is not None:
        num_chunks = min(num_chunks, max_chunks)
    chunks = [tokens[chunk_tokens * number : chunk_tokens * (number + 1)] for number in range(num_chunks)]
    begins_with = tokenizer.encode("", add_special=True)
    if begins_with and begins_with[0] == tokenizer.bos_id:
        for chunk in chunks:
            chunk[0] = begins_with[0]
    return chunks


def _tokens(tokenizer: Tokenizer, text: str, wanted_tokens: int | None) -> npt.NDArray[np.int64]:
    """The text's tokens, or at least the first `wanted_tokens`: what is far past them is not encoded."""
    characters = len(text) if wanted_tokens is None else wanted_tokens * _CHARACTERS_PER_TOKEN
    while True:
        tokens = tokenizer.encode(text[:characters], add_special=True, parse_special=False)
        if characters >= len(text) or (wanted_tokens is not None and len(tokens) >= wanted_tokens):
            return np.asarray(tokens, np.int64)
        characters *= 2


def scored_logits(
    plan: Plan, executor: Executor, tokens_T: npt.NDArray[np.int64]
) -> Iterator[tuple[Logits, npt.NDArray[np.int64]]]:
    """The logits of the second half of one chunk, begun on an empty KV cache, and the tokens that came: step by step.

    The logits are a view that the next step overwrites.
    """
    groups = [PageGroup(num_pages=group.num_pages, window_tokens=group.window_tokens) for group in plan.kv_groups]
    pages = KvPages(groups, page_tokens=plan.page_tokens)
    first_scored = len(tokens_T) // 2  # the logits after this token are the first that count
    for start in range(0, len(tokens_T), plan.chunk_tokens):
        step_T = tokens_T[start : start + plan.chunk_tokens]
        pages.extend(0, start_token=start, num_tokens=len(step_T))
        entry = BatchEntry(request_id=0, start_token=start, num_tokens=len(step_T), of_prompt=True, needs_logits=False)
        scored = start + len(step_T) > first_scored
        computed = executor.compute(Batch(entries=(entry,)), pages, step_T, every_logit=scored)
        if scored:
            logits_TV = np.asarray(computed)
            targets_T = tokens_T[start + 1 : start + len(step_T) + 1]
            skipped = max(0, first_scored - start)
            yield logits_TV[skipped : len(targets_T)], targets_T[skipped:]


def _nobody(what: str, done: int, total: int) -> None:
    """A `Progress` that nobody watches."""
