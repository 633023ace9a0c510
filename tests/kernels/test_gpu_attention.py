"""On a device, what lies in the pages and what is attended to are those of the definition."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from residency.kernels.attention import attention
from residency.kernels.attention.reference import attend_part, combine
from residency.kernels.rotary import LayerPages, reference, rotate_and_store
from residency.kernels.rotary.reference_codes import spread
from residency.spec.model import AttentionSpec
from support.device import Floats, poisoned, step_of, tensor, values_of

PAGE_TOKENS, NUM_PAGES = 16, 64
HEAD_DIM, HEADS, KV_HEADS = 32, 6, 2
EPSILON = 1e-6
SLOTS = [5, 40, 17, -1]
TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT8": torch.int8,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A cache in which sequences of these lengths lie on pages in no order."""

    spec: AttentionSpec
    cache: LayerPages
    keys: list[Floats]  # of each sequence, (tokens, kv_heads, head_dim)
    values: list[Floats]


def spec_of(window_tokens: int | None = None) -> AttentionSpec:
    return AttentionSpec(
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5, window_tokens=window_tokens
    )


def written(number_format: str, slots: list[int], k_TGD: Floats, v_TGD: Floats) -> torch.Tensor:
    """Poisoned pages with these keys and values, as rotary/gpu.py says that they lie."""
    num_values = 2 * KV_HEADS * PAGE_TOKENS * HEAD_DIM
    values = torch.full((NUM_PAGES, num_values), 255, dtype=torch.uint8)
    if TYPES[number_format].itemsize > 1:
        values = torch.full((NUM_PAGES, num_values), float("nan"), dtype=TYPES[number_format])
    values = values.view(TYPES[number_format]).view(NUM_PAGES, 2, KV_HEADS, PAGE_TOKENS, HEAD_DIM)
    scales = torch.full((NUM_PAGES, 2, KV_HEADS, PAGE_TOKENS), float("nan"), dtype=torch.float16)
    for slot, *both in zip(slots, k_TGD, v_TGD, strict=True):
        for part, x_GD in enumerate(map(torch.from_numpy, both)):
            scale_G = scales_of(x_GD) if number_format == "INT8" else torch.ones(len(x_GD)).half()
            scales[slot // 16, part, :, slot % 16] = scale_G
            values[slot // 16, part, :, slot % 16] = rounded(number_format, x_GD, scale_G)
    pages = values.reshape(NUM_PAGES, -1).view(torch.uint8)
    if number_format == "INT8":
        pages = torch.cat([pages, scales.reshape(NUM_PAGES, -1).view(torch.uint8)], dim=1)
    return tensor(pages.numpy())


def scales_of(x_TD: torch.Tensor) -> torch.Tensor:
    """The scale of each row of int8."""
    return (x_TD.abs().amax(-1) / 127).half()


def rounded(number_format: str, x_TD: torch.Tensor, scale_T: torch.Tensor) -> torch.Tensor:
    """The values or codes that a format keeps."""
    if number_format == "INT8":
        return (x_TD / scale_T.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
    return x_TD.to(TYPES[number_format])


def kept(number_format: str, x_TGD: Floats) -> Floats:
    """What is left of keys or values in a format."""
    x = torch.from_numpy(x_TGD)
    scale = scales_of(x) if number_format == "INT8" else torch.ones(x.shape[:-1]).half()
    return (rounded(number_format, x, scale).float() * scale.float()[..., None]).numpy()


def stored(lengths: list[int], number_format: str = "F32", window_tokens: int | None = None) -> Case:
    """Random keys and values of sequences of these lengths."""
    rng = np.random.default_rng()
    order, tables = rng.permutation(NUM_PAGES).astype(np.int32), np.zeros((len(lengths), 24), np.int32)
    slots, first = [], 0
    for sequence, length in enumerate(lengths):
        pages = order[first : first + -(-length // PAGE_TOKENS)]
        tables[sequence, : len(pages)] = pages
        slots += [int(pages[at // PAGE_TOKENS]) * PAGE_TOKENS + at % PAGE_TOKENS for at in range(length)]
        first += len(pages)
    k, v = (rng.standard_normal((sum(lengths), KV_HEADS, HEAD_DIM)).astype(np.float32) for _ in range(2))
    cache = cache_of(number_format, written(number_format, slots, k, v), [], tables)
    keys, values = (np.split(kept(number_format, x), np.cumsum(lengths)[:-1]) for x in (k, v))
    return Case(spec=spec_of(window_tokens), cache=cache, keys=keys, values=values)


def cache_of(number_format: str, pages: torch.Tensor, slots: list[int], tables: npt.NDArray[np.int32]) -> LayerPages:
    tensors: dict[str, Any] = {
        "pages": pages,
        "slots": tensor(np.array(slots, np.int64)),
        "tables": tensor(tables),
    }
    return LayerPages(**tensors, number_format=number_format)  # type: ignore[arg-type]


def attended(case: Case, q_THD: Floats, positions: list[int], items: list[tuple[int, int, int]]) -> Floats:
    """The operator's output of tokens of which the first are sampled, one of each sequence."""
    tokens = len(q_THD)
    out = poisoned(tokens, HEADS * HEAD_DIM)
    step = step_of(
        tokens=tokens,
        sampled=tokens - sum(item[1] for item in items),
        items=len(items),
        positions=tensor(np.array(positions, np.int64)),
        attended=out,
        attention_partials=poisoned(max(1, tokens) * HEADS * 8 * (HEAD_DIM + 2)),
    )
    step.buffers["items"] = tensor(np.array([(*item, 0) for item in items], np.int32).reshape(-1, 4))  # type: ignore[assignment]
    attention(step, case.spec, tensor(q_THD.reshape(tokens, -1)), case.cache)  # type: ignore[arg-type]
    return values_of(out).reshape(tokens, HEADS, HEAD_DIM)


def expected_of(case: Case, q_HD: Floats, sequence: int, position: int) -> npt.NDArray[np.float64]:
    window = case.spec.window_tokens or position + 1
    seen = slice(max(0, position + 1 - window), position + 1)
    k, v = (
        np.repeat(x[sequence][seen].astype(np.float64), HEADS // KV_HEADS, axis=1) for x in (case.keys, case.values)
    )
    return combine([attend_part(case.spec.scale * np.einsum("hd,shd->hs", q_HD.astype(np.float64), k), v)])


def queries(tokens: int) -> Floats:
    return np.random.default_rng().standard_normal((tokens, HEADS, HEAD_DIM)).astype(np.float32)


@pytest.mark.parametrize("window_tokens", [None, 40])
@pytest.mark.parametrize("number_format", TYPES)
def test_decode_attends_to_the_context(number_format: str, window_tokens: int | None) -> None:
    lengths = [1, 17, 300]
    case, q = stored(lengths, number_format, window_tokens), queries(3)
    ours = attended(case, q, [length - 1 for length in lengths], [])
    for sequence, length in enumerate(lengths):
        theirs = expected_of(case, q[sequence], sequence, length - 1)
        np.testing.assert_allclose(ours[sequence], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window_tokens", [None, 20])
@pytest.mark.parametrize("number_format", ["F32", "INT8"])
def test_prompts_attend_to_what_is_before_them(number_format: str, window_tokens: int | None) -> None:
    """A whole prompt of 70 tokens in two items, and the last 5 tokens of a longer one."""
    case, q = stored([70, 45], number_format, window_tokens), queries(75)
    positions = [*range(70), *range(40, 45)]
    ours = attended(case, q, positions, [(0, 64, 0), (64, 6, 0), (70, 5, 1)])
    for token, position in enumerate(positions):
        theirs = expected_of(case, q[token], int(token >= 70), position)
        np.testing.assert_allclose(ours[token], theirs, rtol=1e-4, atol=1e-5)


def test_padding_is_left_as_it_is() -> None:
    ours = attended(stored([33, 20]), queries(2), [32, -1], [])
    assert np.isnan(ours[1]).all() and not np.isnan(ours[0]).any()


def test_a_context_s_parts_do_not_depend_on_who_is_beside_it() -> None:
    case, q = stored([300, 90]), queries(2)
    together, alone = attended(case, q, [299, 89], []), attended(case, q[:1], [299], [])
    np.testing.assert_array_equal(together[:1], alone)


@pytest.mark.parametrize("norms", [False, True])
def test_queries_and_keys_are_rotated_after_their_norm(norms: bool) -> None:
    rng = np.random.default_rng()
    q, k, v = (rng.standard_normal((4, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    phases = rng.uniform(0, 6, (9, HEAD_DIM // 2))
    angles = np.concatenate([np.cos(phases), np.sin(phases)], axis=1).astype(np.float32)
    positions = np.array([8, 0, 3, 3])
    norm = rng.standard_normal((2, HEAD_DIM)).astype(np.float32) if norms else None
    rotated, pages = rotated_and_stored("F32", q, k, v, angles, positions, norm)
    q_THD, k_TGD = (
        reference.rotate(x, angles[positions], norm_D=None if norm is None else norm[part], epsilon=EPSILON)[:3]
        for part, x in enumerate((q, k))
    )
    np.testing.assert_allclose(rotated[:3], q_THD, rtol=1e-5, atol=1e-6)
    expected = written("F32", SLOTS[:3], k_TGD.astype(np.float32), v[:3])
    ours, theirs = (values_of(each.view(torch.float32)) for each in (pages, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number_format", TYPES)
def test_pages_hold_rounded_values_and_scales(number_format: str) -> None:
    """Values that 8 bits of a float can hold, so that nothing depends on how they are rounded; int8's are any."""
    rng = np.random.default_rng()
    q, k, v = (rng.standard_normal((4, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    if number_format != "INT8":
        k, v = (torch.from_numpy(x).to(torch.float8_e4m3fn).float().numpy() + np.float32(0) for x in (k, v))  # no -0
    angles = np.concatenate([np.ones((1, HEAD_DIM // 2)), np.zeros((1, HEAD_DIM // 2))], axis=1).astype(np.float32)
    _, pages = rotated_and_stored(number_format, q, k, v, angles, np.zeros(4, np.int64), None)
    kept_k = spread(k).astype(np.float32) if number_format == "INT8" else k
    theirs = written(number_format, SLOTS[:3], kept_k[:3], v[:3])
    difference = (pages.view(torch.int8).cpu().int() - theirs.view(torch.int8).cpu().int()).abs()
    assert difference.max() <= (1 if number_format == "INT8" else 0)  # a value at a tie may be rounded either way


def test_queries_are_spread_as_keys_of_integers_are() -> None:
    rng = np.random.default_rng()
    q, k, v = (rng.standard_normal((4, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    angles = np.concatenate([np.ones((1, HEAD_DIM // 2)), np.zeros((1, HEAD_DIM // 2))], axis=1).astype(np.float32)
    ours, _ = rotated_and_stored("INT8", q, k, v, angles, np.zeros(4, np.int64), None)
    np.testing.assert_allclose(ours[:3], spread(q)[:3], rtol=1e-5, atol=1e-6)


def rotated_and_stored(
    number_format: str,
    q: Floats,
    k: Floats,
    v: Floats,
    angles: Floats,
    positions: npt.NDArray[np.int64],
    norm: Floats | None,
) -> tuple[Floats, torch.Tensor]:
    """The rotated queries and the pages, poisoned before; the fourth token is padding."""
    cache = cache_of(number_format, written(number_format, [], k[:0], v[:0]), SLOTS, np.zeros((1, 1), np.int32))
    rows: list[Any] = [tensor(x.reshape(len(x), -1)) for x in (q, k, v)]
    norms: list[Any] = [None, None] if norm is None else [tensor(each) for each in norm]
    step, at = step_of(tokens=len(q), positions=tensor(positions)), tensor(angles)
    rotate_and_store(step, spec_of(), *rows, at, cache, q_norm=norms[0], k_norm=norms[1], epsilon=EPSILON)  # type: ignore
    return values_of(rows[0]).reshape(q.shape), torch.as_tensor(cache.pages)
