"""How good a model is on a text, alone and against a reference: perplexity, divergence, agreement, chunk by chunk.

Model and reference go through the text in lockstep, a step of each at a time, so that of neither more logits than a
step's are ever in memory.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.engine import Progress
from residency.engine.executor import Executor
from residency.engine.text import load_tokenizer
from residency.errors import UsageError
from residency.models.specs import model_spec
from residency.planner.plan import Plan
from residency.quantize.job import ScoredLogits
from residency.spec.opening import open_checkpoint
from residency.verifier.divergence import Divergence, Logits, TokenDivergences, divergence_of, token_divergences
from residency.verifier.perplexity import (
    Perplexity,
    chunks_of,
    perplexity_of,
    scored_logits,
    scoring,
    token_losses,
)

Tokens = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ChunkFigures:
    """What the scored tokens of one chunk, or of several, say."""

    losses: Doubles
    reference_losses: Doubles | None
    divergences: TokenDivergences | None

    def to_data(self) -> dict[str, float]:
        """Means, as JSON values."""
        data = {"perplexity": float(np.exp(self.losses.mean()))}
        if self.divergences is not None:
            data["kl_divergence"] = float(self.divergences.nats_T.mean())
            data["top1_agreement"] = float(self.divergences.agrees_T.mean())
        return data


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model on a text; with a reference, its perplexity and how far the model is from it."""

    perplexity: Perplexity
    reference: Perplexity | None
    divergence: Divergence | None
    by_chunk: tuple[ChunkFigures, ...]

    @property
    def rise(self) -> float:
        """How much higher the perplexity is than the reference's, as a part of it; 0 where it is not."""
        return 0.0 if self.reference is None else max(0.0, self.perplexity.value / self.reference.value - 1)

    @property
    def tokens(self) -> int:
        """Tokens that were scored."""
        return sum(chunk.losses.size for chunk in self.by_chunk)

    def to_data(self) -> dict[str, object]:
        """As JSON values; without a reference, without what needs one."""
        data: dict[str, object] = {"perplexity": self.perplexity.to_data()}
        if self.reference is not None and self.divergence is not None:
            data["reference_perplexity"] = self.reference.to_data()
            data["kl_divergence"] = self.divergence.to_data()
            data["top1_agreement"] = self.divergence.top1_agreement
        return {**data, "by_chunk": [chunk.to_data() for chunk in self.by_chunk]}


def evaluate(
    plan: Plan,
    text: str,
    *,
    against: Plan | None = None,
    max_chunks: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The plan's model on `text`, or on its first `max_chunks` chunks of as many tokens as the plan's context has.

    `against` plans the reference, with the same context and steps. UsageError for a text shorter than one chunk, or
    a reference with another vocabulary.
    """
    checkpoint = open_checkpoint(plan.model_path)
    if against is not None:
        _refuse_other_vocabulary(plan, against)
    chunks = chunks_of(load_tokenizer(checkpoint), text, max_chunks, plan.context_tokens)
    figures = []
    with ExitStack() as opened:
        model = opened.enter_context(scoring(plan, progress))
        reference = None if against is None else opened.enter_context(scoring(against, progress))
        for number, tokens_T in enumerate(chunks):
            if against is None or reference is None:
                figures.append(_alone(plan, model, tokens_T))
            else:
                figures.append(_beside(plan, model, against, reference, tokens_T))
            if progress:
                progress("evaluating", number + 1, len(chunks))
    return evaluation_of(figures)


def evaluation_of(chunks: list[ChunkFigures]) -> Evaluation:
    """From the figures of all chunks, all with a reference or all without."""
    references = [each.reference_losses for each in chunks if each.reference_losses is not None]
    divergences = [each.divergences for each in chunks if each.divergences is not None]
    return Evaluation(
        perplexity=perplexity_of(np.concatenate([each.losses for each in chunks]), chunks=len(chunks)),
        reference=perplexity_of(np.concatenate(references), chunks=len(chunks)) if references else None,
        divergence=divergence_of(TokenDivergences.joined(divergences)) if divergences else None,
        by_chunk=tuple(chunks),
    )


def evaluation_of_logits(scored: Iterable[ScoredLogits]) -> Evaluation:
    """Of a quantization's result against its source."""
    by_chunk: dict[int, list[ChunkFigures]] = {}
    for sample, figures in map(_judged, scored):  # which lets go of logits before the next are computed
        by_chunk.setdefault(sample, []).append(figures)
    return evaluation_of([_joined(parts) for parts in by_chunk.values()])


def _judged(scored: ScoredLogits) -> tuple[int, ChunkFigures]:
    return scored.sample, figures_of(scored.quantized_TV, scored.reference_TV, scored.targets_T)


def figures_of(model_TV: Logits, reference_TV: Logits, targets_T: Tokens) -> ChunkFigures:
    """Of some tokens' logits."""
    return ChunkFigures(
        losses=token_losses(model_TV, targets_T),
        reference_losses=token_losses(reference_TV, targets_T),
        divergences=token_divergences(reference_TV, model_TV),
    )


def _alone(plan: Plan, model: Executor, tokens_T: Tokens) -> ChunkFigures:
    losses = [token_losses(*scored) for scored in scored_logits(plan, model, tokens_T)]
    return ChunkFigures(losses=np.concatenate(losses), reference_losses=None, divergences=None)


def _beside(plan: Plan, model: Executor, against: Plan, reference: Executor, tokens_T: Tokens) -> ChunkFigures:
    steps = zip(scored_logits(plan, model, tokens_T), scored_logits(against, reference, tokens_T), strict=True)
    return _joined(
        [figures_of(model_TV, reference_TV, targets_T) for (model_TV, targets_T), (reference_TV, _) in steps]
    )


def _joined(parts: Sequence[ChunkFigures]) -> ChunkFigures:
    """Of parts that all have a reference."""
    return ChunkFigures(
        losses=np.concatenate([part.losses for part in parts]),
        reference_losses=np.concatenate([part.reference_losses for part in parts if part.reference_losses is not None]),
        divergences=TokenDivergences.joined([part.divergences for part in parts if part.divergences is not None]),
    )


def _refuse_other_vocabulary(plan: Plan, against: Plan) -> None:
    model, reference = (model_spec(open_checkpoint(each.model_path)).vocabulary for each in (plan, against))
    if model != reference:
        raise UsageError(
            f"{plan.model_name} has {model} tokens and the reference {against.model_name} has {reference}; "
            "give a reference with the same vocabulary."
        )
