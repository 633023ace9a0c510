import pytest

from residency.models.specs import named_spec
from residency.planner.cost import MatrixCost, ModelCost, Step
from residency.planner.serving import expected_tokens
from residency.spec.layout import read_bytes_per_token
from support.deployments import forecast


def test_more_sequences_decode_more_tokens_and_each_fewer() -> None:
    one, many = (forecast("Llama-3.1-8B", "H100-80GB", concurrency=n) for n in (1, 16))
    assert many.decode_tokens_per_second > one.decode_tokens_per_second
    assert many.decode_tokens_per_second_per_sequence < one.decode_tokens_per_second_per_sequence


def test_decoding_one_sequence_waits_for_memory_and_a_prompt_for_arithmetic() -> None:
    found = forecast("Llama-3.1-8B", "H100-80GB")
    assert (found.bound, found.prefill_bound) == ("memory", "compute")


def test_the_turning_batch_is_where_products_turn() -> None:
    """989.4 Top/s x 0.6 over 3.35 TB/s x 0.92, at one operation a byte and sequence."""
    assert forecast("Llama-3.1-8B", "H100-80GB").turning_batch == pytest.approx(989.4 * 0.6 / 3.35 / 0.92, abs=2)


def test_no_step_is_faster_than_its_bytes_over_the_listed_rate() -> None:
    found = forecast("Llama-3.1-8B", "H100-80GB")
    assert found.decode_tokens_per_second < found.plain_roofline_tokens_per_second


def test_a_token_meets_its_experts_and_a_large_batch_all() -> None:
    experts = MatrixCost(
        name="experts",
        num_layers=1,
        read_bytes=1000,
        values=1000,
        number_format="BF16",
        num_experts=8,
        experts_per_token=2,
    )
    assert experts.work(1).read_bytes == pytest.approx(1000 * 2 / 8)
    assert experts.work(2).read_bytes == pytest.approx(1000 * (1 - 0.75**2))
    assert experts.work(1000).read_bytes == pytest.approx(1000)
    assert experts.work(8).matrix_operations == 2 * 1000 * 8 * 2 / 8


def test_one_token_of_a_mixture_reads_what_the_model_says() -> None:
    spec = named_spec("Qwen3-30B-A3B")
    works = ModelCost.of_rank(spec).works(Step(sequences=1))
    read = sum(work.read_bytes for work in works if work.name != "attention")
    assert read == pytest.approx(spec.read_bytes_per_token, rel=1e-6)


def test_the_engine_s_layout_reads_its_own_bytes() -> None:
    spec = named_spec("Qwen2.5-0.5B")
    assert ModelCost.of(spec).weight_bytes == read_bytes_per_token(spec)


@pytest.mark.parametrize(
    ("acceptance", "drafted", "tokens"), [(0.0, 4, 1.0), (1.0, 4, 5.0), (0.5, 1, 1.5), (0.8, 3, 2.952)]
)
def test_a_round_brings_what_is_accepted_and_one(acceptance: float, drafted: int, tokens: float) -> None:
    assert expected_tokens(acceptance, drafted) == pytest.approx(tokens)


def test_a_good_draft_is_faster_and_a_bad_one_is_not_used() -> None:
    draft = named_spec("Llama-3.2-1B")
    plain, good, bad = (
        forecast("Llama-3.1-70B", "4xH100-80GB", draft=each, acceptance=rate).decode_tokens_per_second
        for each, rate in ((None, 0.7), (draft, 0.8), (draft, 0.0))
    )
    assert good > 1.2 * plain
    assert bad == plain


def test_layers_that_come_over_pcie_are_slower_than_those_that_are_there() -> None:
    there = forecast("Llama-3.1-8B", "rtx4090")
    spilled = forecast("Llama-3.1-8B", "rtx4090", may_spill=True, budget_bytes=8 * 10**9)
    assert spilled.decode_tokens_per_second < there.decode_tokens_per_second / 2
    assert spilled.decode.transfer_seconds > 0


def test_a_stage_waits_for_the_others_and_a_rank_does_not() -> None:
    ranks = forecast("Llama-3.1-70B", "4xH100-80GB", tensor_parallel=4, pipeline_parallel=1)
    stages = forecast("Llama-3.1-70B", "4xH100-80GB", tensor_parallel=1, pipeline_parallel=4)
    assert ranks.decode_tokens_per_second > 2 * stages.decode_tokens_per_second


def test_devices_without_a_quick_link_exchange_more_slowly() -> None:
    quick, slow = (forecast("Llama-3.1-8B", on).prefill.exchange_seconds for on in ("4xH100-80GB", "4xL40S"))
    assert slow > 3 * quick
