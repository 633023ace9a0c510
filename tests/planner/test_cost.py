import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residency.hardware import Figure, Machine, ReadShare, assumed_figures
from residency.planner import ModelCost, forecast_speed
from residency.planner.cost import step_seconds, step_workload
from residency.planner.speed import prefill_seconds
from residency.spec.layout import read_bytes_per_token
from residency.spec.model import ModelSpec

MakeModel = Callable[..., ModelSpec]


def test_a_token_reads_the_weights_and_what_it_sees_of_the_cache(make_model: MakeModel) -> None:
    model = make_model(None, 8)
    work = step_workload(ModelCost.of(model), start_token=100, num_tokens=1)
    # 101 tokens in the first layer, 8 in the second, 128 bytes each.
    assert work.read_bytes == read_bytes_per_token(model) + (101 + 8) * 128


def test_a_token_multiplies_and_adds_once_with_every_value_of_a_matrix(make_model: MakeModel) -> None:
    model = make_model(None)
    values = sum(math.prod(tensor.shape) for tensor in model.tensors if len(tensor.shape) == 2)
    assert step_workload(ModelCost.of(model), start_token=0, num_tokens=1).matrix_operations == 2 * values


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 60), tokens=st.integers(1, 60), window=st.none() | st.integers(1, 70))
def test_attention_operations_are_those_of_each_token_with_each_it_sees(
    make_model: MakeModel, start: int, tokens: int, window: int | None
) -> None:
    seen = sum(min(at + 1, window or at + 1) for at in range(start, start + tokens))
    work = step_workload(ModelCost.of(make_model(window)), start_token=start, num_tokens=tokens)
    assert work.attention_operations == 4 * 4 * 16 * seen


def test_a_memory_bound_step_takes_its_bytes_over_the_threads_rate(make_model: MakeModel, machine: Machine) -> None:
    cost = ModelCost.of(make_model(None))
    work = step_workload(cost, start_token=0, num_tokens=1)
    taken = [step_seconds(work, cost=cost, machine=machine, threads=n).total for n in (1, 2)]
    assert taken == pytest.approx([work.read_bytes / 10e9, work.read_bytes / 15e9])


def test_a_compute_bound_step_says_so(make_model: MakeModel, machine: Machine) -> None:
    slow = machine.with_measured(matrix_int8_operations_per_second=1e6, vector_f32_operations_per_second=1e6)
    forecast = forecast_speed(
        ModelCost.of(make_model(None)), machine=slow, context_tokens=64, chunk_tokens=16, threads=2
    )
    assert forecast.bound == "compute"
    assert forecast.operations_per_second == pytest.approx(2e6)


def test_matrices_are_read_at_the_share_of_their_format(make_model: MakeModel, machine: Machine) -> None:
    half = replace(machine, read_shares={"Q8_0": (ReadShare(working_set_bytes=1, share=0.5),)})
    cost = ModelCost.of(make_model(None))
    work = step_workload(cost, start_token=0, num_tokens=1)
    read, slower = (step_seconds(work, cost=cost, machine=each, threads=1).read for each in (machine, half))
    assert slower - read == pytest.approx((work.read_bytes - work.cache_bytes) / 10e9)


def test_attention_waits_for_the_matrices(make_model: MakeModel, machine: Machine) -> None:
    slow = machine.with_measured(vector_f32_operations_per_second=1e6)
    cost = ModelCost.of(make_model(None))
    work = step_workload(cost, start_token=63, num_tokens=1)
    seconds = step_seconds(work, cost=cost, machine=slow, threads=1)
    matrices_seconds = (work.read_bytes - work.cache_bytes) / 10e9
    assert seconds.total == pytest.approx(matrices_seconds + work.attention_operations / 1e6)


def test_overheads_add_to_every_step(make_model: MakeModel, machine: Machine) -> None:
    slow = machine.with_measured(step_overhead_seconds=1.0, layer_overhead_seconds=0.5)
    seconds = prefill_seconds(
        ModelCost.of(make_model(None, None)), prompt_tokens=48, chunk_tokens=16, machine=slow, threads=1
    )
    assert seconds == pytest.approx(3 * (1.0 + 2 * 0.5), rel=1e-3)


def test_rates_that_nobody_measured_are_named(make_model: MakeModel, machine: Machine) -> None:
    paper = machine.with_measured()
    assumed = Machine(**{**vars(paper), "figures": assumed_figures(["avx2"])}).with_measured(read_efficiency=0.95)
    forecast = forecast_speed(
        ModelCost.of(make_model(None)), machine=assumed, context_tokens=64, chunk_tokens=16, threads=2
    )
    assert "read_efficiency" not in forecast.assumed
    assert "matrix_int8_operations_per_second" in forecast.assumed


def test_a_prompt_s_products_have_a_rate_of_their_own(make_model: MakeModel, machine: Machine) -> None:
    quick = Figure(value=2e9, origin="measured")
    slow = machine.with_measured(matrix_int8_operations_per_second=1e9)
    both = replace(slow, figures={**slow.figures, "prompt_matrix_operations_per_second": quick})
    cost = ModelCost.of(make_model(None))
    seconds = [prefill_seconds(cost, prompt_tokens=64, chunk_tokens=64, machine=m, threads=1) for m in (slow, both)]
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.01)
