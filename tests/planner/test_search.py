import time

import pytest

from residency.errors import UsageError
from residency.planner.answers import AnswerRecord
from residency.planner.search import answer
from support.deployments import asked, told


def test_without_a_goal_a_model_is_deployed_as_published() -> None:
    placement = told("Llama-3.1-70B", "4xH100-80GB").placement
    assert (placement.quant, placement.kv_format, placement.tensor_parallel) == (None, "F16", 4)


def test_what_does_not_fit_gets_the_nearest_that_does() -> None:
    found = told("Llama-3.1-70B", "2xH100-80GB", concurrency=32)
    assert not found.fits and found.missing_bytes > 0
    assert found.nearest is not None and found.nearest.fits
    options = found.nearest.option.split()
    quant, kv = (options[options.index(name) + 1] for name in ("--quant", "--kv"))
    assert told("Llama-3.1-70B", "2xH100-80GB", concurrency=32, quant=quant, kv=kv).fits


def test_what_cannot_fit_in_any_format_fits_with_less_to_do() -> None:
    found = told("Llama-3.1-70B", "rtx3060", concurrency=64, ram_bytes=64 * 10**9)
    assert found.nearest is not None and found.nearest.fits


def test_a_model_that_nothing_makes_fit_says_what_is_missing() -> None:
    found = told("DeepSeek-V3", "rtx3060", ram_bytes=8 * 10**9)
    assert not found.fits and found.missing_bytes > 600 * 10**9


@pytest.mark.parametrize("goal", ["latency", "throughput", "tokens-per-second", "quality", "cost"])
def test_a_goal_s_answer_fits_and_says_that_it_is_the_best(goal: str) -> None:
    found = told("Llama-3.1-8B", "2xH100-80GB", goal=goal)
    assert found.fits and found.optimal and found.weighed > 20


def test_quality_keeps_the_published_format_where_it_fits() -> None:
    found = told("Llama-3.1-8B", "H100-80GB", goal="quality")
    assert (found.placement.quant, found.placement.perplexity_rise) == (None, 0.0)


def test_tokens_per_second_are_those_of_the_best_that_was_weighed() -> None:
    goal = told("Llama-3.1-8B", "2xH100-80GB", goal="tokens-per-second")
    plain = told("Llama-3.1-8B", "2xH100-80GB")
    assert goal.forecast and plain.forecast
    assert goal.forecast.decode_tokens_per_second > plain.forecast.decode_tokens_per_second


def test_cost_leaves_devices_that_it_does_not_need() -> None:
    found = told("Llama-3.1-8B", "8xH100-80GB", goal="cost", concurrency=8)
    placement = found.placement
    assert placement.tensor_parallel * placement.pipeline_parallel * placement.replicas == 1


def test_throughput_may_choose_the_concurrency() -> None:
    found = told("Llama-3.1-8B", "H100-80GB", goal="throughput", concurrency_is_free=True)
    assert found.placement.concurrency > 16


def test_changes_free_bytes_or_make_it_fit() -> None:
    for change in told("Llama-3.1-70B", "4xH100-80GB", concurrency=32).changes:
        assert change.freed_bytes > 0 or change.fits


def test_degrees_beyond_the_machine_are_refused() -> None:
    with pytest.raises(UsageError, match="need 8 devices, and 4xH100-80GB has 4"):
        answer(asked("Llama-3.1-8B", "4xH100-80GB", tensor_parallel=8))


def test_heads_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(UsageError, match="28 attention heads, which 8 ranks cannot share"):
        answer(asked("Qwen2.5-7B", "8xH100-80GB", tensor_parallel=8))


def test_an_answer_survives_its_json() -> None:
    found = told("gpt-oss-20b", "2xrtx4090", concurrency=4)
    assert AnswerRecord.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("model", "on", "goal", "limit_seconds"),
    [
        ("Llama-3.1-70B", "2xH100-80GB", None, 0.3),
        ("Llama-3.1-70B", "8xH100-80GB", "throughput", 2.0),
        ("DeepSeek-V3", "8xH200", "throughput", 2.0),
        ("Llama-3.1-405B", "64xH100-80GB", "cost", 2.0),
    ],
)
def test_an_answer_takes_no_longer_than_it_may(model: str, on: str, goal: str | None, limit_seconds: float) -> None:
    question = asked(model, on, goal=goal, concurrency_is_free=goal is not None)
    begin = time.process_time()
    answer(question)
    assert time.process_time() - begin < limit_seconds


def test_three_devices_that_cannot_share_heads_are_stages() -> None:
    placement = told("Jamba-v0.1", "3xH100-80GB").placement
    assert (placement.tensor_parallel, placement.pipeline_parallel) == (1, 3)
