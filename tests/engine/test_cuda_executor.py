"""A model answers on a device what it answers on the CPU: the same plan, loop and model files."""

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from residency.engine.cuda.executor import CudaExecutor
from residency.engine.generation import GenerationOptions
from residency.engine.loop import Loop
from residency.engine.sampler import Draw, Sampling
from residency.engine.swap import SwapSpace
from residency.errors import StoreError, UsageError
from residency.formats import F32, Q8_0, Format, pack_rows, unpack_rows
from residency.ledger import KvPages
from residency.ledger.groups import PageGroup
from residency.planner.device_needs import DeviceRequest
from residency.planner.plan import Plan
from residency.scheduler import Batch
from residency.scheduler.batch import BatchEntry
from support.device_plans import device_plan_of, executor_of
from support.engines import plan_of
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.loops import NOBODY, answers, events_until_idle, loop_on
from support.models import MIXTURES, random_weights, small_model
from support.packed_folders import Kind, write_packed

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [2, 7, 1]]
SIZES = {"hidden": 64, "intermediate": 64, "num_layers": 1, "head_dim": 16, "num_heads": 4, "vocabulary": 96}
FEW_HEADS: dict[str, Any] = {"num_heads": 2, "num_kv_heads": 1}  # the interpreter is slow
NARROW: dict[str, Any] = FEW_HEADS | {"hidden": 32, "intermediate": 32, "expert_intermediate": 32}
WIDE: dict[str, Any] = {"hidden": 64, "expert_intermediate": 128}  # quantized experts of more than a page
MANY_EXPERTS: dict[str, Any] = NARROW | {"num_layers": 3, "num_experts": 4}
GREEDIEST = Draw(sampling=Sampling(), part=0.0)
EXACT = DeviceRequest(context_tokens=64, max_sequences=2, chunk_tokens=16, kv_format="F32", activation_type="float32")


def model_at(folder: Path, architecture: str, number_format: str = "F32", **changes: Any) -> Path:
    return write_gguf(folder / f"{architecture}.gguf", small_model(architecture, **SIZES | changes), number_format)


def greedy(max_tokens: int = 3, **sampling: float) -> GenerationOptions:
    return GenerationOptions(max_tokens=max_tokens, sampling=Sampling(**sampling), ignore_eos=True)  # type: ignore[arg-type]


def device_answers(path: Path, asked: DeviceRequest, options: GenerationOptions) -> list[list[list[int | None]]]:
    return answers_of(device_plan_of(path, asked), options)


def answers_of(
    plan: Plan, options: GenerationOptions, prompts: list[list[int]] = PROMPTS
) -> list[list[list[int | None]]]:
    with executor_of(plan) as executor, closing(Loop(plan, executor, eos_ids=NOBODY, weight_read_bytes=1)) as loop:
        requests = [loop.submit(prompt, options) for prompt in prompts]
        events = events_until_idle(loop)
    return [answers(events, request) for request in requests]


def cpu_answers(path: Path, options: GenerationOptions) -> list[list[list[int | None]]]:
    plan = plan_of(path, context_tokens=64, chunk_tokens=16, max_sequences=2, kv_format="F32")
    with loop_on(path, plan) as loop:
        requests = [loop.submit(prompt, options) for prompt in PROMPTS]
        events = events_until_idle(loop)
    return [answers(events, request) for request in requests]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_device_gives_the_tokens_that_the_cpu_gives(architecture: str, tmp_path: Path) -> None:
    path = model_at(tmp_path, architecture)
    assert device_answers(path, EXACT, greedy()) == cpu_answers(path, greedy())


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_mixture_gives_the_tokens_that_the_cpu_gives(architecture: str, tmp_path: Path) -> None:
    path = model_at(tmp_path, architecture, **NARROW, num_experts=4, shared_intermediate=32)
    assert device_answers(path, EXACT, greedy()) == cpu_answers(path, greedy())


def test_a_mixture_larger_than_the_device_gives_the_same_tokens(tmp_path: Path) -> None:
    """Of few experts, which arrive with their layers."""
    few = NARROW | {"num_layers": 4, "dense_layers": (0, 1), "num_experts": 2}
    path = write_folder(tmp_path / "mixture", small_model("qwen3_moe", **SIZES | few))
    whole = device_plan_of(path, EXACT)
    small = replace(EXACT, budget_bytes=whole.memory.peak - whole.memory.weights // 6)
    planned = device_plan_of(path, small).device
    assert planned is not None and planned.streamed_layers >= 3
    assert device_answers(path, small, greedy(2)) == device_answers(path, EXACT, greedy(2))


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[list[int | None]]]]:
    """A mixture of 12 experts, and its answers with all of them on the device."""
    path = model_at(tmp_path_factory.mktemp("models"), "qwen2_moe", **MANY_EXPERTS, shared_intermediate=32)
    return path, device_answers(path, EXACT, greedy(2))


def with_slots_for_some(path: Path, asked: DeviceRequest = EXACT, **changes: int) -> Plan:
    """A plan with fewer slots than experts."""
    whole = device_plan_of(path, asked)
    plan = device_plan_of(path, replace(asked, budget_bytes=whole.memory.peak - whole.memory.weights // 8), **changes)
    assert plan.device is not None and 0 < plan.device.expert_slots < plan.device.num_experts
    return plan


def test_experts_brought_one_by_one_give_the_same_tokens(
    many_experts: tuple[Path, list[list[list[int | None]]]],
) -> None:
    """Prompts fill slots and empty them, and each step finds what it needs."""
    path, answered = many_experts
    assert answers_of(with_slots_for_some(path), greedy(2)) == answered


@pytest.mark.slow
def test_quantized_experts_brought_one_by_one_give_the_same_tokens(tmp_path: Path) -> None:
    path = model_at(tmp_path, "qwen2_moe", "Q8_0", **MANY_EXPERTS | WIDE, shared_intermediate=32)
    assert answers_of(with_slots_for_some(path), greedy(2)) == device_answers(path, EXACT, greedy(2))


@pytest.fixture
def on_three_tiers(
    many_experts: tuple[Path, list[list[list[int | None]]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Plan:
    """Some slots on the device, and homes for 5 of 12 experts in RAM."""
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    in_ram = with_slots_for_some(many_experts[0]).device
    assert in_ram is not None and in_ram.disk_experts == 0
    plan = with_slots_for_some(many_experts[0], ram_bytes=in_ram.pinned_bytes * 5 // 12)
    assert plan.device is not None and plan.device.disk_experts == 7
    return plan


def test_experts_that_ram_has_no_room_for_give_the_same_tokens(
    on_three_tiers: Plan, many_experts: tuple[Path, list[list[list[int | None]]]], tmp_path: Path
) -> None:
    """Written to the disk once, a file for each layer, and there when the model is opened again."""
    assert answers_of(on_three_tiers, greedy(2)) == many_experts[1]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("experts-*")}
    assert {path.name for path in files} == {"experts-0", "experts-1", "experts-2"}
    with executor_of(on_three_tiers):
        assert files == {path: path.stat().st_mtime_ns for path in files}


def test_an_expert_comes_from_the_disk_once_for_as_long_as_it_is_used(on_three_tiers: Plan) -> None:
    """One token again and again: two experts of each layer, and no more."""
    with executor_of(on_three_tiers) as executor:
        read_bytes = []
        for _ in range(3):
            compute_one_token(executor)
            counts = executor.expert_counts
            assert counts is not None
            read_bytes.append(counts.disk_bytes)
    assert on_three_tiers.device is not None
    home_bytes = on_three_tiers.device.pinned_bytes // 5
    assert read_bytes == [3 * 2 * home_bytes] * 3


def test_a_step_reads_nothing_back_until_somebody_looks(
    many_experts: tuple[Path, list[list[list[int | None]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes and experts that are missing included."""
    pages, batch = one_token()
    with executor_of(with_slots_for_some(many_experts[0])) as executor:
        with monkeypatch.context() as patched:
            for name in ("tolist", "item", "__bool__", "__int__", "__index__"):
                patched.setattr(torch.Tensor, name, read_back)
            logits = executor.compute(batch, pages, np.array([5]))
        assert len(logits.drawn([GREEDIEST])) == 1


def read_back(*_: object) -> None:
    raise AssertionError("the host waits for the device")


def test_a_disk_that_loses_experts_is_one_sentence(on_three_tiers: Plan, tmp_path: Path) -> None:
    with executor_of(on_three_tiers) as executor:
        os.truncate(next((tmp_path / "cache").rglob("experts-2")), 0)
        with pytest.raises(StoreError, match="experts-2"):
            compute_one_token(executor)


def one_token() -> tuple[KvPages, Batch]:
    pages = KvPages([PageGroup(num_pages=4, window_tokens=None)], page_tokens=16)
    pages.extend(0, start_token=0, num_tokens=1)
    entry = BatchEntry(request_id=0, start_token=0, num_tokens=1, of_prompt=True, needs_logits=True)
    return pages, Batch(entries=(entry,))


def compute_one_token(executor: CudaExecutor) -> None:
    pages, batch = one_token()
    executor.compute(batch, pages, np.array([5])).rows()


def test_an_expert_that_a_sequence_returns_to_is_on_the_device(tmp_path: Path) -> None:
    """The ledger is told what steps use, and keeps it: with one expert to a token, always the same."""
    path = model_at(tmp_path, "mixtral", **MANY_EXPERTS, experts_per_token=1)
    plan = with_slots_for_some(path)
    with executor_of(plan) as executor, closing(Loop(plan, executor, eos_ids=NOBODY, weight_read_bytes=1)) as loop:
        loop.submit([5], greedy(4))
        loop.step()
        first = executor.expert_counts
        assert first is not None and first.needed == first.missed == 3  # slots are empty
        for _ in range(3):
            compute_one_token(executor)
        again = executor.expert_counts
        assert again is not None and again.since(first).needed == 9 and again.since(first).missed == 0


def test_a_quantized_model_gives_the_tokens_of_the_values_that_it_stands_for(tmp_path: Path) -> None:
    """Embedding, decode of few rows and prompts in tiles, all out of planes."""
    model = small_model("llama", **SIZES)
    rounded = {name: through(Q8_0, values) for name, values in random_weights(model).items()}
    paths = [write_gguf(tmp_path / f"{name}.gguf", model, name, weights=rounded) for name in (Q8_0.name, F32.name)]
    quantized, plain = (device_answers(path, EXACT, greedy()) for path in paths)
    assert quantized == plain


def test_a_device_s_plan_is_not_computed_on_the_processor(tmp_path: Path) -> None:
    path = model_at(tmp_path, "llama")
    with pytest.raises(UsageError, match="the plan is for a test's GPU"), loop_on(path, device_plan_of(path, EXACT)):
        pass


def test_padding_a_step_changes_no_token(tmp_path: Path) -> None:
    path = model_at(tmp_path, "llama")
    wide = replace(EXACT, max_sequences=3)  # two sequences run as a batch of three
    assert device_answers(path, wide, greedy()) == device_answers(path, EXACT, greedy())


def test_a_seed_draws_the_tokens_that_it_draws_on_the_cpu(tmp_path: Path) -> None:
    path, options = model_at(tmp_path, "llama"), greedy(temperature=0.9, top_k=20, top_p=0.9, seed=5)
    assert device_answers(path, EXACT, options) == cpu_answers(path, options)


def through(number_format: Format, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What is left of a matrix in a format."""
    if values.ndim == 1:
        return values
    return unpack_rows(number_format, pack_rows(number_format, values))


def test_a_model_larger_than_the_device_gives_the_same_tokens(tmp_path: Path) -> None:
    """Its last layers arrive in two slots in turn, from RAM, in every step."""
    path = model_at(tmp_path, "qwen2", **FEW_HEADS, num_layers=4)
    whole = device_plan_of(path, EXACT)
    layer_bytes = whole.memory.weights // 6
    small = replace(EXACT, budget_bytes=whole.memory.peak - layer_bytes)
    planned = device_plan_of(path, small).device
    assert planned is not None and planned.streamed_layers >= 3
    assert device_answers(path, small, greedy(2)) == device_answers(path, EXACT, greedy(2))


def test_a_model_larger_than_device_and_ram_gives_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its layers are read from the disk in every step, and are there when it is opened again."""
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    path = model_at(tmp_path, "qwen2", **FEW_HEADS, num_layers=7)
    whole = device_plan_of(path, EXACT)
    layer_bytes = whole.memory.weights // 8
    small = replace(EXACT, budget_bytes=whole.memory.peak - layer_bytes * 4)
    plan = device_plan_of(path, small, ram_bytes=4 * layer_bytes)
    assert plan.device is not None and plan.device.disk_layers >= 2
    answered = answers_of(plan, greedy(2))
    files = list((tmp_path / "cache").rglob("layer-*"))
    assert len(files) == plan.device.disk_layers
    assert answered == answers_of(whole, greedy(2))
    assert answers_of(plan, greedy(2), PROMPTS[1:]) == answered[1:]


@pytest.mark.slow
def test_made_up_layers_that_are_alike_have_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    path = model_at(tmp_path, "qwen2", num_layers=7)
    made_up = replace(EXACT, random_weights="source")
    whole = device_plan_of(path, made_up)
    layer_bytes = whole.memory.weights // 8
    small = replace(made_up, budget_bytes=whole.memory.peak - layer_bytes * 4)
    plan = device_plan_of(path, small, ram_bytes=4 * layer_bytes)
    assert plan.device is not None and plan.device.disk_layers >= 2
    (told,) = answers_of(plan, greedy(1))[0]
    assert len(told) == 1 and len(list((tmp_path / "cache").rglob("layer-*"))) == 1


@pytest.mark.slow
def test_made_up_experts_are_brought_one_by_one(tmp_path: Path) -> None:
    made_up = replace(EXACT, random_weights="source")
    path = model_at(tmp_path, "mixtral", **MANY_EXPERTS)
    (told,) = answers_of(with_slots_for_some(path, made_up), greedy(1))[0]
    assert len(told) == 1


@pytest.mark.slow
def test_made_up_experts_that_are_alike_have_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    made_up = replace(EXACT, random_weights="source")
    path = model_at(tmp_path, "mixtral", **MANY_EXPERTS)
    in_ram = with_slots_for_some(path, made_up).device
    assert in_ram is not None
    (told,) = answers_of(with_slots_for_some(path, made_up, ram_bytes=in_ram.pinned_bytes // 2), greedy(1))[0]
    assert len(told) == 1 and [file.name for file in (tmp_path / "cache").rglob("experts-*")] == ["experts-0"]


def test_a_preempted_sequence_s_pages_come_back_from_ram(tmp_path: Path) -> None:
    """There are pages for one whole context, and a more urgent request takes them."""
    path = model_at(tmp_path, "llama")
    shared = replace(EXACT, oversubscribe=True)
    whole = device_plan_of(path, shared)
    plan = device_plan_of(path, replace(shared, budget_bytes=whole.memory.peak - 1))
    assert [group.num_pages for group in plan.kv_groups] == [4]
    swap = SwapSpace(folder=None, num_bytes=plan.memory.kv_cache, bytes_per_second=1e15)
    long, urgent = PROMPTS[0] * 2, PROMPTS[0]
    with executor_of(plan) as executor:
        executor.reserve_swap(swap)
        with closing(Loop(plan, executor, eos_ids=NOBODY, weight_read_bytes=1, swap=swap)) as loop:
            first = loop.submit(long, greedy(4))
            events = [event for _ in range(4) for event in loop.step()]  # three chunks, and a token
            second = loop.submit(urgent, replace(greedy(2), priority=-1))
            events += events_until_idle(loop)
            assert loop.counts().swapped_pages == 3
    assert answers(events, first) == answers_alone(path, long, greedy(4))
    assert answers(events, second) == answers_alone(path, urgent, greedy(2))


def test_a_step_without_memory_ends_the_last_request_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_at(tmp_path, "llama")
    plan = device_plan_of(path, EXACT)
    with executor_of(plan) as executor, closing(Loop(plan, executor, eos_ids=NOBODY, weight_read_bytes=1)) as loop:
        first, last = (loop.submit(prompt, greedy()) for prompt in PROMPTS)
        with monkeypatch.context() as patched:
            patched.setattr("residency.engine.cuda.executor.StepGraphs.run", out_of_memory)
            (refused,) = loop.step()
        assert (refused.request_id, refused.finish_reason) == (last, "error")
        events = events_until_idle(loop)
    assert answers(events, first) == answers_alone(path, PROMPTS[0], greedy())


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("made up")


def answers_alone(path: Path, prompt: list[int], options: GenerationOptions) -> list[list[int | None]]:
    plan = device_plan_of(path, EXACT)
    with executor_of(plan) as executor, closing(Loop(plan, executor, eos_ids=NOBODY, weight_read_bytes=1)) as loop:
        request = loop.submit(prompt, options)
        return answers(events_until_idle(loop), request)


def test_a_disk_that_loses_a_layer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    path = model_at(tmp_path, "qwen2", num_layers=5)
    whole = device_plan_of(path, EXACT)
    layer_bytes = whole.memory.weights // 6
    small = replace(EXACT, budget_bytes=whole.memory.peak - layer_bytes * 2)
    plan = device_plan_of(path, small, ram_bytes=4 * layer_bytes)
    with executor_of(plan) as executor, closing(Loop(plan, executor, eos_ids=NOBODY, weight_read_bytes=1)) as loop:
        (file, *_) = (tmp_path / "cache").rglob("layer-*")
        os.truncate(file, 0)
        loop.submit([5], greedy(4))
        with pytest.raises(StoreError, match=r"layer-\d"):
            for _ in range(4):  # buffers may hold what was read before
                loop.step()


@pytest.mark.parametrize(
    "kind",
    [
        Kind(layout="gptq", group=32, shuffled=True),
        Kind(layout="awq", group=32),
        Kind(layout="packed", group=32, symmetric=True, scales="BF16"),
    ],
    ids=["gptq, act-order", "awq", "packed"],
)
def test_packed_integers_give_the_tokens_of_the_values_that_they_stand_for(kind: Kind, tmp_path: Path) -> None:
    model = small_model("qwen2", **SIZES)
    meant = write_packed(tmp_path / "packed", model, kind)
    plain = write_folder(tmp_path / "plain", model, weights=meant)
    packed_answers, plain_answers = (device_answers(path, EXACT, greedy(2)) for path in (tmp_path / "packed", plain))
    assert packed_answers == plain_answers
