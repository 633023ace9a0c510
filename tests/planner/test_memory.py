import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residency.errors import BudgetError, ContextError, UsageError
from residency.hardware import Machine
from residency.planner import Plan, plan_run
from residency.planner.buffers import activation_buffers, quantized_bytes
from residency.planner.memory import PAGE_RECORD_BYTES
from residency.spec.layout import store_layout
from residency.spec.model import ModelSpec
from residency.units import parse_bytes

MakeModel = Callable[..., ModelSpec]


def planned(model: ModelSpec, machine: Machine, **changes: Any) -> Plan:
    options: dict[str, Any] = {
        "machine": machine,
        "runtime_bytes": 1_000_000,
        "budget_bytes": None,
        "context_tokens": None,
        "model_path": Path("tiny.gguf"),
        "fingerprint": "abc",
    }
    return plan_run(model, **(options | changes))


def test_a_plan_s_classes_are_the_store_the_pages_the_buffers_and_the_runtime(
    make_model: MakeModel, machine: Machine
) -> None:
    model = make_model(None, None)
    memory = planned(model, machine, context_tokens=100, chunk_tokens=32).memory
    buffers = activation_buffers(model, chunk_tokens=32, max_sequences=1, max_context_tokens=100, threads=2)
    # 7 pages of 16 tokens in 2 layers, each token 2 x 2 x 16 values of 2 bytes.
    assert memory.kv_cache == 7 * 16 * 2 * 128
    assert memory.weights == store_layout(model).resident_bytes
    assert memory.activations == sum(buffer.num_bytes for buffer in buffers)
    assert memory.runtime == 1_000_000


def test_a_plan_survives_its_json(make_model: MakeModel, machine: Machine) -> None:
    plan = planned(make_model(None, 32), machine)
    assert Plan.from_json(plan.to_json()) == plan


def test_the_default_context_is_2048_where_that_fits(make_model: MakeModel, machine: Machine) -> None:
    assert planned(make_model(None), machine).context_tokens == 2048


def test_the_default_context_is_the_model_s_where_that_is_less(make_model: MakeModel, machine: Machine) -> None:
    assert planned(make_model(None, max_context_tokens=300), machine).context_tokens == 300


def test_the_default_context_is_the_most_pages_that_fit(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None, None)
    budget = planned(model, machine, context_tokens=1024, chunk_tokens=16).memory.peak
    plan = planned(model, machine, budget_bytes=budget, chunk_tokens=16)
    assert plan.context_tokens == 1024


def test_a_plan_of_exactly_its_budget_is_made(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None, 32)
    budget = planned(model, machine, context_tokens=500, chunk_tokens=16).memory.peak
    assert planned(model, machine, context_tokens=500, chunk_tokens=16, budget_bytes=budget).free_bytes == 0


def test_one_byte_too_few_is_refused_by_that_number(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None)
    budget = planned(model, machine, context_tokens=500, chunk_tokens=16).memory.peak - 1
    with pytest.raises(BudgetError, match=r"\(1 bytes\) too little"):
        planned(model, machine, context_tokens=500, chunk_tokens=16, budget_bytes=budget)


def test_both_cheapest_changes_of_a_refusal_work_and_one_page_more_does_not(
    make_model: MakeModel, machine: Machine
) -> None:
    model = make_model(None, None)
    budget = planned(model, machine, context_tokens=512, chunk_tokens=16).memory.peak
    with pytest.raises(BudgetError) as refused:
        planned(model, machine, context_tokens=4096, budget_bytes=budget)
    change = re.search(r"--context (\d+), or --memory (\w+)\.", str(refused.value))
    assert change is not None
    assert planned(model, machine, context_tokens=int(change[1]), budget_bytes=budget)
    assert planned(model, machine, context_tokens=4096, budget_bytes=parse_bytes(change[2]))
    with pytest.raises(BudgetError):
        planned(model, machine, context_tokens=int(change[1]) + 16, budget_bytes=budget)


def test_a_budget_smaller_than_the_weights_names_the_smallest_that_works(
    make_model: MakeModel, machine: Machine
) -> None:
    model = make_model(None)
    with pytest.raises(BudgetError) as refused:
        planned(model, machine, budget_bytes=1000)
    change = re.search(r"change: --memory (\w+)\.", str(refused.value))
    assert change is not None
    assert planned(model, machine, budget_bytes=parse_bytes(change[1])).context_tokens >= 128


def test_without_a_budget_nine_tenths_of_what_is_available_are_taken(make_model: MakeModel, machine: Machine) -> None:
    assert planned(make_model(None), machine).budget_bytes == 900_000_000


def test_a_budget_beyond_the_machine_is_refused(make_model: MakeModel, machine: Machine) -> None:
    with pytest.raises(BudgetError, match="more than the memory here; give --memory 1907MiB or less"):
        planned(make_model(None), machine, budget_bytes=3_000_000_000)


def test_a_context_beyond_the_model_s_is_refused_by_how_much(make_model: MakeModel, machine: Machine) -> None:
    with pytest.raises(ContextError, match="is 4 more than Tiny has; ask for --context 4096 or less"):
        planned(make_model(None), machine, context_tokens=4100)


@pytest.mark.parametrize(
    "option",
    [
        {"context_tokens": 0},
        {"max_sequences": 0},
        {"chunk_tokens": -1},
        {"logit_rows": 0},
        {"threads": 0},
        {"threads": 3},
    ],
)
def test_numbers_that_mean_nothing_are_refused(make_model: MakeModel, machine: Machine, option: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        planned(make_model(None), machine, **option)


def test_layers_of_one_window_share_a_group(make_model: MakeModel, machine: Machine) -> None:
    groups = planned(make_model(32, 32, None, 32), machine).kv_groups
    assert [(group.layers, group.window_tokens) for group in groups] == [((0, 1, 3), 32), ((2,), None)]


def test_a_window_needs_no_more_pages_in_a_longer_context(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(32)
    pages = [planned(model, machine, context_tokens=n, chunk_tokens=16).kv_groups[0].num_pages for n in (1024, 4096)]
    # The window and the chunk are 48 tokens, 3 pages, and may begin inside a fourth.
    assert pages == [4, 4]


def test_sequences_multiply_pages(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None)
    pages = [planned(model, machine, context_tokens=160, max_sequences=n).kv_groups[0].num_pages for n in (1, 3)]
    assert pages == [10, 30]


def test_a_step_has_room_for_a_token_of_every_sequence(make_model: MakeModel, machine: Machine) -> None:
    assert planned(make_model(None), machine, context_tokens=16, max_sequences=40).chunk_tokens >= 40


def test_a_chunk_is_no_longer_than_it_pays(make_model: MakeModel, machine: Machine) -> None:
    slow = machine.with_measured(matrix_int8_operations_per_second=1e9)
    costly_steps = machine.with_measured(step_overhead_seconds=1.0)
    assert [planned(make_model(None), each).chunk_tokens for each in (slow, costly_steps)] == [256, 512]


def test_a_chunk_is_longer_where_many_others_decode_beside_it(make_model: MakeModel, machine: Machine) -> None:
    slow = machine.with_measured(matrix_int8_operations_per_second=1e9)
    chunks = [planned(make_model(None), slow, max_sequences=number).chunk_tokens for number in (1, 64)]
    assert chunks == [256, 512]


def test_a_context_that_was_asked_for_is_paid_for_with_the_chunk(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None)
    budget = planned(model, machine, context_tokens=2048, chunk_tokens=40).memory.peak
    assert planned(model, machine, context_tokens=2048, budget_bytes=budget).chunk_tokens == 32


def test_a_context_that_was_not_asked_for_leaves_room_for_a_chunk(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None)
    budget = planned(model, machine, context_tokens=2048, chunk_tokens=40).memory.peak
    plan = planned(model, machine, budget_bytes=budget)
    assert (plan.chunk_tokens, plan.context_tokens < 2048) == (128, True)


@pytest.mark.parametrize(("prompts_in_tiles", "rows"), [(False, 32), (True, 2)])
def test_products_that_are_gated_at_once_are_kept_of_sampled_tokens_alone(
    make_model: MakeModel, prompts_in_tiles: bool, rows: int
) -> None:
    buffers = activation_buffers(
        make_model(None),
        chunk_tokens=32,
        max_sequences=2,
        max_context_tokens=100,
        threads=2,
        prompts_in_tiles=prompts_in_tiles,
    )
    assert [buffer.shape[0] for buffer in buffers if buffer.name in ("gate", "up")] == [rows, rows]


def test_a_packed_row_is_64_bytes_for_every_32_values_begun() -> None:
    assert [quantized_bytes(columns) for columns in (32, 33, 576)] == [64, 128, 1152]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget=st.integers(0, 4_000_000), context=st.none() | st.integers(1, 4096), sequences=st.integers(1, 5))
def test_a_plan_fits_its_budget_or_is_refused(
    make_model: MakeModel, machine: Machine, budget: int, context: int | None, sequences: int
) -> None:
    try:
        plan = planned(
            make_model(None, 64), machine, budget_bytes=budget, context_tokens=context, max_sequences=sequences
        )
    except BudgetError:
        return
    assert plan.memory.peak <= plan.budget_bytes == budget


PAGE_BYTES = 16 * 128 + PAGE_RECORD_BYTES  # 16 tokens of 128 bytes, and what is remembered of them


def oversubscribed(model: ModelSpec, machine: Machine, **changes: Any) -> Plan:
    return planned(model, machine, context_tokens=160, max_sequences=8, chunk_tokens=32, oversubscribe=True, **changes)


def test_oversubscribed_sequences_share_what_the_budget_leaves(make_model: MakeModel, machine: Machine) -> None:
    """Of 80 pages; ten are one sequence's whole context."""
    model = make_model(None)
    budget = oversubscribed(model, machine, budget_bytes=None).memory.peak - (80 - 25) * PAGE_BYTES + 100
    assert oversubscribed(model, machine, budget_bytes=budget).kv_groups[0].num_pages == 25


def test_oversubscribed_sequences_have_at_most_their_whole_contexts(make_model: MakeModel, machine: Machine) -> None:
    assert oversubscribed(make_model(None), machine).kv_groups[0].num_pages == 80


def test_oversubscription_leaves_room_for_one_whole_context(make_model: MakeModel, machine: Machine) -> None:
    model = make_model(None)
    budget = oversubscribed(model, machine).memory.peak - (80 - 9) * PAGE_BYTES
    with pytest.raises(BudgetError):
        oversubscribed(model, machine, budget_bytes=budget)


def test_what_is_remembered_of_shared_pages_is_part_of_the_runtime(make_model: MakeModel, machine: Machine) -> None:
    assert oversubscribed(make_model(None), machine).memory.runtime == 1_000_000 + 80 * PAGE_RECORD_BYTES
