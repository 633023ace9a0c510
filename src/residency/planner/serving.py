"""How fast a deployment answers: alone, beside others, and until the first token.

With continuous batching (Orca, OSDI 2022) every step decodes a token for each sequence, and while answers end, prompts
of new ones are computed in chunks (Sarathi, arXiv 2308.16369) between them: so much prompt as answers are long.
"""

from dataclasses import dataclass, replace
from typing import Literal

from residency.planner.cost import Step, StepSeconds
from residency.planner.placing import Load
from residency.planner.rates import Pace

MAX_DRAFT_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """A draft model proposes tokens that the model then verifies in one step (arXiv 2211.17192)."""

    pace: Pace  # the draft's, read once for each token that it proposes
    acceptance: float  # how likely each proposed token is the one that the model would have taken


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One kind of step, with its arithmetic."""

    seconds: StepSeconds
    read_bytes: int  # on one rank
    operations: int

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """What the step waits for."""
        return self.seconds.bound


@dataclass(frozen=True, kw_only=True)
class ServingForecast:
    """Speeds of one replica. Rates at the concurrency asked for are of all its sequences together."""

    alone: Phase  # decoding one sequence, half of its answer done
    together: Phase  # decoding all
    prefill: Phase  # a chunk in the middle of a prompt
    decode_tokens_per_second_alone: float
    decode_tokens_per_second: float  # of all sequences, with the prompts of those that follow in between
    prefill_tokens_per_second: float
    time_to_first_token_seconds: float  # alone
    time_to_first_token_seconds_together: float
    plain_roofline_tokens_per_second: float  # bytes over the listed rate, as introductions calculate
    drafted_tokens: int  # a round; 0: no draft


def expected_tokens(acceptance: float, num_drafted: int) -> float:
    """Tokens that a round brings: those before the first that is refused, and one of the model's own."""
    if acceptance == 1.0:
        return num_drafted + 1.0
    return (1 - acceptance ** (num_drafted + 1)) / (1 - acceptance)


def forecast_serving(
    pace: Pace, load: Load, *, chunk_tokens: int, speculation: Speculation | None = None
) -> ServingForecast:
    """The forecast of one replica whose ranks each go at `pace`."""
    seen_tokens = load.prompt_tokens + load.answer_tokens // 2  # by a token of an answer, on average
    alone_step = Step(sequences=1, context_tokens=seen_tokens)
    batch = -(-load.concurrency // pace.ranks.pipeline_parallel)  # stages work on a part of the sequences each, in turn
    together_step = Step(sequences=batch, context_tokens=seen_tokens)
    drafted, alone_seconds = _best_round(pace, alone_step, speculation)
    together = _round(pace, together_step, speculation, drafted)
    chunk = min(chunk_tokens, load.prompt_tokens)
    mixed = replace(together_step, chunk_tokens=chunk, chunk_start=max(0, load.prompt_tokens - chunk) // 2)
    mixed_seconds = pace.step_seconds(mixed).total
    added_seconds = mixed_seconds - pace.step_seconds(together_step).total
    mean_seconds = _mean_round(load, batch, chunk, together, added_seconds)
    prefill_seconds = prompt_seconds(pace, load.prompt_tokens, chunk_tokens=chunk)
    chunks = -(-load.prompt_tokens // chunk)
    together_seconds = together[0] / 2 + chunks * mixed_seconds if load.concurrency > 1 else prefill_seconds
    alone = _phase(pace, alone_step)
    return ServingForecast(
        alone=alone,
        together=_phase(pace, together_step),
        prefill=_phase(pace, Step(chunk_tokens=chunk, chunk_start=mixed.chunk_start)),
        decode_tokens_per_second_alone=1 / alone_seconds,
        decode_tokens_per_second=load.concurrency / mean_seconds if load.concurrency > 1 else 1 / alone_seconds,
        prefill_tokens_per_second=load.prompt_tokens / prefill_seconds,
        time_to_first_token_seconds=prefill_seconds,
        time_to_first_token_seconds_together=together_seconds,
        plain_roofline_tokens_per_second=pace.ranks.device.memory_bytes_per_second / alone.read_bytes,
        drafted_tokens=drafted,
    )


def prompt_seconds(pace: Pace, prompt_tokens: int, *, chunk_tokens: int) -> float:
    """From an empty cache to the logits after the prompt, chunk by chunk; few chunks stand for many alike."""
    starts = range(0, prompt_tokens, chunk_tokens)
    sampled = sorted({round(index * (len(starts) - 1) / 7) for index in range(8)}) if len(starts) > 8 else None
    total = 0.0
    for index in sampled or range(len(starts)):
        tokens = min(chunk_tokens, prompt_tokens - starts[index])
        total += pace.step_seconds(Step(chunk_tokens=tokens, chunk_start=starts[index])).total
    return total * len(starts) / len(sampled) if sampled else total


def _best_round(pace: Pace, step: Step, speculation: Speculation | None) -> tuple[int, float]:
    """How many tokens to draft a round, and seconds a token so."""
    plain_seconds, _ = _round(pace, step, None, 0)
    best = (0, plain_seconds)
    if speculation is not None:
        for drafted in range(1, MAX_DRAFT_TOKENS + 1):
            seconds, tokens = _round(pace, step, speculation, drafted)
            best = min(best, (drafted, seconds / tokens), key=lambda pair: pair[1])
    return best


def _round(pace: Pace, step: Step, speculation: Speculation | None, drafted: int) -> tuple[float, float]:
    """Seconds of a round, and tokens of each sequence that it brings."""
    if speculation is None or not drafted:
        return pace.step_seconds(step).total, 1.0
    drafting = drafted * speculation.pace.step_seconds(step).total
    verifying = pace.step_seconds(replace(step, candidates=drafted + 1)).total
    return drafting + verifying, expected_tokens(speculation.acceptance, drafted)


def _mean_round(load: Load, batch: int, chunk: int, alone: tuple[float, float], added_seconds: float) -> float:
    """Seconds in which each sequence goes on by one token, prompts of the sequences that follow included.

    `alone` are the seconds of a round without prompts and the tokens that it brings; a chunk adds `added_seconds`. For
    each token of an answer come prompt_tokens / answer_tokens of prompts.
    """
    round_seconds, round_tokens = alone
    chunks = batch * round_tokens * load.prompt_tokens / load.answer_tokens / chunk
    return (round_seconds + chunks * added_seconds) / round_tokens


def _phase(pace: Pace, step: Step) -> Phase:
    works = pace.cost.works(step)
    return Phase(
        seconds=pace.step_seconds(step),
        read_bytes=round(sum(work.read_bytes for work in works)),
        operations=round(sum(work.matrix_operations + work.attention_operations for work in works)),
    )
