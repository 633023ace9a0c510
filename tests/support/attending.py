"""Steps of attention over pages that hold random keys and values, in any format."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from residency.kernels.attention import attention, partial_bytes, reference, scratch_bytes
from residency.kernels.rotary import LayerPages
from residency.kernels.rotary.reference import as_keys, as_values
from residency.kernels.rotary.reference_codes import store
from residency.spec.model import AttentionSpec, RopeSpec
from residency.spec.state import KV_FORMATS, KvName
from support.steps import Floats, Runner, Step

UNUSED = np.float16(60000)  # in the places of a page that no token has: large, so that it would show


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive tokens of one sequence in a step."""

    start_token: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """Queries of a step, and pages in random order that hold their sequences."""

    spec: AttentionSpec
    parts: Sequence[Part]
    q_TX: Floats
    pages: npt.NDArray[np.uint8]
    tables: npt.NDArray[np.int32]
    number_format: KvName
    sequences_T: npt.NDArray[np.int64] = field(init=False)
    positions_T: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        sequences = [np.full(part.num_tokens, index) for index, part in enumerate(self.parts)]
        positions = [np.arange(part.start_token, part.start_token + part.num_tokens) for part in self.parts]
        object.__setattr__(self, "sequences_T", np.concatenate(sequences))
        object.__setattr__(self, "positions_T", np.concatenate(positions))

    @property
    def expected_TX(self) -> npt.NDArray[np.float64]:
        """What the definition says."""
        out_THD = reference.attention(
            self.q_TX.reshape(len(self.q_TX), self.spec.num_heads, self.spec.head_dim),
            self.pages,
            self.tables,
            self.sequences_T,
            self.positions_T,
            scale=self.spec.scale,
            kv_heads=self.spec.num_kv_heads,
            window_tokens=self.spec.window_tokens,
            number_format=self.number_format,
        )
        return out_THD.reshape(len(out_THD), -1)


def case(
    group: int,
    kv_heads: int,
    head_dim: int,
    *parts: Part,
    window_tokens: int | None = None,
    number_format: KvName = "F16",
) -> Case:
    """A step of these parts, each of a sequence of its own."""
    rng = np.random.default_rng([group, kv_heads, head_dim, len(parts), window_tokens or 0])
    ends = [part.start_token + part.num_tokens for part in parts]
    needed = [-(-end // 16) for end in ends]
    page_bytes = 2 * 16 * kv_heads * KV_FORMATS[number_format].head_bytes(head_dim)
    pages = np.full((sum(needed) + 2, page_bytes), 0xFF, np.uint8)  # NaN in unused pages
    shuffled = rng.permutation(len(pages)).astype(np.int32)
    tables = np.full((len(parts), max(needed)), 1 << 30, np.int32)
    for sequence, end in enumerate(ends):
        first = sum(needed[:sequence])
        tables[sequence, : needed[sequence]] = held = shuffled[first : first + needed[sequence]]
        slots_T = (16 * held[:, None] + np.arange(16)).ravel()
        k_TGD = rng.standard_normal((len(slots_T), kv_heads, head_dim)) * 2
        v_TGD = rng.standard_normal((len(slots_T), kv_heads, head_dim))
        k_TGD[end:] = v_TGD[end:] = UNUSED
        _store(pages, slots_T, k_TGD, v_TGD, number_format)
    spec = AttentionSpec(
        num_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=RopeSpec(inverse_frequencies=(1.0,) * (head_dim // 2)),
        window_tokens=window_tokens,
    )
    tokens = sum(part.num_tokens for part in parts)
    q_TX = rng.standard_normal((tokens, group * kv_heads * head_dim)).astype(np.float32)
    return Case(spec=spec, parts=parts, q_TX=q_TX, pages=pages, tables=tables, number_format=number_format)


def _store(
    pages: npt.NDArray[np.uint8],
    slots_T: npt.NDArray[np.int64],
    k_TGD: npt.NDArray[np.float64],
    v_TGD: npt.NDArray[np.float64],
    number_format: KvName,
) -> None:
    kv_heads, head_dim = k_TGD.shape[1:]
    if number_format != "F16":
        store(pages, slots_T, k_TGD, v_TGD, number_format)
        return
    as_keys(pages, kv_heads, head_dim)[slots_T // 16, :, :, slots_T % 16] = k_TGD
    as_values(pages, kv_heads, head_dim)[slots_T // 16, :, slots_T % 16] = v_TGD


def decode(*contexts: int) -> list[Part]:
    """A token each of sequences of these lengths."""
    return [Part(start_token=context - 1, num_tokens=1) for context in contexts]


def items_of(parts: Sequence[Part], tokens_of_an_item: int) -> list[tuple[int, int]]:
    """Runs of at most so many tokens: first token and number."""
    items, first = [], 0
    for part in parts:
        for start in range(0, part.num_tokens, tokens_of_an_item):
            items.append((first + start, min(tokens_of_an_item, part.num_tokens - start)))
        first += part.num_tokens
    return items


@dataclass(frozen=True, kw_only=True)
class Attended:
    """What attention gave."""

    values: Floats
    q8: npt.NDArray[np.uint8]


def attended(
    run: Runner,
    made: Case,
    threads: int,
    *,
    splits: int = 1,
    tokens_of_an_item: int | None = None,
    num_prompt: int = 0,
) -> Attended:
    """Run the step; its last `num_prompt` tokens are a prompt's."""
    spec, tokens = made.spec, len(made.q_TX)
    group = spec.num_heads // spec.num_kv_heads
    items = items_of(made.parts, tokens_of_an_item or max(1, 8 * spec.num_kv_heads // spec.num_heads))
    step = Step(
        num_tokens=tokens,
        num_prompt=num_prompt,
        items=items,
        positions=made.positions_T.tolist(),
        sequences=made.sequences_T.tolist(),
        splits=splits,
    )
    width = spec.num_heads * spec.head_dim
    step.buffers["attended"] = step.poisoned(tokens, width)
    step.buffers["attended_q8"] = step.poisoned_groups(tokens, width)
    step.buffers["attention_scratch"] = step.poisoned(threads, scratch_bytes(spec.head_dim, group), dtype=np.uint8)
    step.buffers["attention_partials"] = step.poisoned(
        tokens * spec.num_heads * splits, partial_bytes(spec.head_dim), dtype=np.uint8
    )
    cache = LayerPages(
        pages=step.given(made.pages),
        slots=np.zeros(1, np.int64),
        tables=step.given(made.tables),
        number_format=made.number_format,
    )
    rows = attention(step.recorder, spec, step.given(made.q_TX), cache)
    out = Attended(values=rows.as_values(), q8=rows.as_q8())
    run(step, threads)
    return out
