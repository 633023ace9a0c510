"""Plans of runs on a device: what is counted, what is refused, and what a file may say."""

from dataclasses import replace
from pathlib import Path

import pytest

from residency.errors import BudgetError, ContextError, FileError
from residency.models.specs import model_spec
from residency.planner.check import check_plan
from residency.planner.device_buffers import most_parts
from residency.planner.device_needs import DeviceRequest, decode_batches
from residency.planner.explain import beside_device
from residency.planner.on_device import GRAPH_BYTES, runtime_beside
from residency.planner.plan import Plan
from residency.spec import open_checkpoint
from support.device_plans import device_plan_of
from support.gguf_files import write_gguf
from support.models import small_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen2"), "Q4_K")


def test_what_is_too_large_is_refused_with_what_would_fit(path: Path) -> None:
    fits = device_plan_of(path, DeviceRequest(context_tokens=512, max_sequences=8))
    with pytest.raises(BudgetError, match=r"too little\. The cheapest change: --kv int8"):
        device_plan_of(
            path,
            DeviceRequest(
                context_tokens=512, max_sequences=8, budget_bytes=fits.memory.peak - fits.memory.kv_cache // 3
            ),
        )


def test_a_budget_above_the_device_s_memory_is_refused(path: Path) -> None:
    with pytest.raises(BudgetError, match="more than the memory of a test's GPU"):
        device_plan_of(path, DeviceRequest(budget_bytes=2 << 30))


def test_a_mixture_has_a_row_for_each_token_and_each_of_its_experts(tmp_path: Path) -> None:
    mixture = write_gguf(tmp_path / "mixture.gguf", small_model("mixtral"))
    plan = device_plan_of(mixture, DeviceRequest(context_tokens=64, chunk_tokens=16))
    assert plan.buffer("expert_out").shape == (16 * 2, 256)
    check_plan(plan, model_spec(open_checkpoint(mixture)))


def test_a_context_that_the_model_has_not_is_refused(path: Path) -> None:
    with pytest.raises(ContextError, match="ask for --context 512"):
        device_plan_of(path, DeviceRequest(context_tokens=513))


def test_weights_take_their_bits_and_no_more(path: Path) -> None:
    """Within what aligning planes costs."""
    plan, spec = device_plan_of(path, DeviceRequest()), model_spec(open_checkpoint(path))
    norms = sum(2 * tensor.num_bytes for tensor in spec.tensors if len(tensor.shape) == 1)
    assert spec.weight_bytes <= plan.memory.weights <= spec.weight_bytes + norms + 256 * 4 * len(spec.tensors)


def test_int8_keys_and_values_take_half_of_bf16_and_their_scales(path: Path) -> None:
    whole, half = (device_plan_of(path, DeviceRequest(kv_format=kv)).memory.kv_cache for kv in ("BF16", "INT8"))
    assert half == whole * (64 + 2) // 128


def test_a_plan_is_read_back_and_is_that_of_its_model(path: Path) -> None:
    plan = device_plan_of(path, DeviceRequest(max_sequences=3))
    again = Plan.from_json(plan.to_json())
    check_plan(again, model_spec(open_checkpoint(path)))
    assert again == plan


def test_a_plan_whose_arrays_are_not_its_model_s_is_refused(path: Path) -> None:
    plan = device_plan_of(path, DeviceRequest())
    smaller = replace(plan, buffers=tuple(replace(each, shape=(1,)) for each in plan.buffers))
    with pytest.raises(FileError, match="does not fit its model"):
        check_plan(smaller, model_spec(open_checkpoint(path)))


@pytest.mark.parametrize(("sequences", "batches"), [(1, (1,)), (3, (1, 2, 3)), (20, (1, 2, 4, 8, 16, 20))])
def test_every_batch_has_a_graph_that_is_little_larger(sequences: int, batches: tuple[int, ...]) -> None:
    assert decode_batches(sequences) == batches


def test_the_memory_of_graphs_is_in_the_plan() -> None:
    beside = [runtime_beside(600 << 20, sequences) for sequences in (1, 8, 64)]
    graphs = [len(decode_batches(sequences)) for sequences in (1, 8, 64)]
    assert [each - beside[0] for each in beside] == [(number - 1) * GRAPH_BYTES for number in graphs]


@pytest.mark.parametrize("multiprocessors", [16, 78, 108, 132])
def test_a_context_is_cut_into_so_many_parts_that_one_sequence_fills_the_device(multiprocessors: int) -> None:
    parts = most_parts(multiprocessors, 8)
    assert 2 * multiprocessors <= 8 * parts < 4 * multiprocessors + 8


def test_sequences_share_pages_where_there_is_no_room_for_all_contexts(path: Path) -> None:
    asked = DeviceRequest(context_tokens=512, max_sequences=8, oversubscribe=True)
    whole = device_plan_of(path, asked)
    plan = device_plan_of(path, replace(asked, budget_bytes=whole.memory.peak - whole.memory.kv_cache // 3))
    (all_pages,), (pages,) = ([group.num_pages for group in each.kv_groups] for each in (whole, plan))
    assert all_pages == 8 * 32 and pages == 5 * 32 and plan.device == whole.device
    check_plan(Plan.from_json(plan.to_json()), model_spec(open_checkpoint(path)))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model("mixtral", num_layers=4, num_experts=6, hidden=64, intermediate=64)
    return write_gguf(tmp_path_factory.mktemp("models") / "mixture.gguf", model)


def with_less(path: Path, **changes: int) -> tuple[Plan, Plan]:
    """The plan with all weights on the device, and that with a sixth less."""
    asked = DeviceRequest(context_tokens=64, chunk_tokens=16)
    whole = device_plan_of(path, asked)
    budget_bytes = whole.memory.peak - whole.memory.weights // 6
    return whole, device_plan_of(path, replace(asked, budget_bytes=budget_bytes), **changes)


def test_experts_that_do_not_fit_lie_in_ram_and_have_the_slots_that_there_is_room_for(mixture: Path) -> None:
    _, plan = with_less(mixture)
    device = plan.device
    assert device is not None and 2 * 6 <= device.expert_slots < device.num_experts == 4 * 6
    slot_bytes = device.pinned_bytes // device.num_experts
    assert 0 <= plan.free_bytes < slot_bytes + 4
    check_plan(Plan.from_json(plan.to_json()), model_spec(open_checkpoint(mixture)))


def test_a_plan_with_fewer_slots_than_a_step_may_need_is_refused(mixture: Path) -> None:
    _, plan = with_less(mixture)
    assert plan.device is not None
    with pytest.raises(FileError, match="does not fit its model"):
        check_plan(replace(plan, device=replace(plan.device, expert_slots=11)), model_spec(open_checkpoint(mixture)))


def test_experts_that_are_fetched_cost_time_in_the_forecast(mixture: Path) -> None:
    whole, plan = with_less(mixture)
    assert plan.forecast.decode_tokens_per_second < whole.forecast.decode_tokens_per_second


def test_experts_that_ram_has_no_room_for_lie_on_the_disk(mixture: Path) -> None:
    """Each of both memories takes as many as it has room for."""
    _, in_ram = with_less(mixture)
    assert in_ram.device is not None
    home_bytes = in_ram.device.pinned_bytes // 24
    _, plan = with_less(mixture, ram_bytes=10 * home_bytes + 1)
    assert plan.device == replace(in_ram.device, disk_experts=14, pinned_bytes=10 * home_bytes)
    assert plan.forecast.decode_tokens_per_second < in_ram.forecast.decode_tokens_per_second
    check_plan(Plan.from_json(plan.to_json()), model_spec(open_checkpoint(mixture)))


def test_a_plan_says_where_experts_lie(mixture: Path) -> None:
    _, in_ram = with_less(mixture)
    assert in_ram.device is not None
    on_disk = replace(in_ram.device, disk_experts=14)
    (told,), (told_of_disk,) = (beside_device(device) for device in (in_ram.device, on_disk))
    assert "all in pinned RAM" in told and "disk" not in told
    assert "10 in pinned RAM" in told_of_disk and "all on the disk, from which" in told_of_disk


def test_the_less_ram_there_is_the_more_a_step_reads_from_the_disk(mixture: Path) -> None:
    _, in_ram = with_less(mixture)
    assert in_ram.device is not None
    homes_bytes = in_ram.device.pinned_bytes
    speeds = [
        with_less(mixture, ram_bytes=homes_bytes * homes // 24)[1].forecast.decode_tokens_per_second
        for homes in (8, 12, 16, 20)
    ]
    assert speeds == sorted(speeds) and speeds[0] < speeds[-1]


def test_a_plan_with_fewer_homes_than_a_layer_has_experts_is_refused(mixture: Path) -> None:
    _, plan = with_less(mixture)
    assert plan.device is not None
    with pytest.raises(FileError, match="does not fit its model"):
        check_plan(replace(plan, device=replace(plan.device, disk_experts=19)), model_spec(open_checkpoint(mixture)))


def test_layers_that_ram_has_no_room_for_lie_on_the_disk(path: Path) -> None:
    """Half of a model's bytes in RAM would do; there is room for less, and for the buffers that the disk needs."""
    model = write_gguf(path.with_name("deep.gguf"), small_model("qwen2", num_layers=9), "Q4_K")
    _, streamed = with_less(model)
    assert streamed.device is not None and streamed.device.disk_layers == 0
    ram_bytes = streamed.device.pinned_bytes - streamed.device.layer_bytes // 2
    _, plan = with_less(model, ram_bytes=ram_bytes)
    device = plan.device
    assert device is not None and device.streamed_layers == streamed.device.streamed_layers
    assert device.disk_layers >= 1 and device.pinned_bytes <= ram_bytes
    assert plan.forecast.decode_tokens_per_second < streamed.forecast.decode_tokens_per_second
    check_plan(Plan.from_json(plan.to_json()), model_spec(open_checkpoint(model)))


def test_without_room_in_ram_a_model_that_does_not_fit_is_refused(path: Path) -> None:
    with pytest.raises(BudgetError, match="too little"):
        with_less(path, ram_bytes=0)
