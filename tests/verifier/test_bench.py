"""Measuring a small model: what is counted, and where a step's time goes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from residency.planner.cost import step_workload
from residency.verifier.bench import Asked, Limits, bench_data, decode_speed, decode_workload, measure, prefill_speed
from residency.verifier.opened import Opened, opened
from residency.verifier.profile import StepProfile, profile_decode, profile_prefill
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.machines import unmeasured_machine
from support.models import small_model

MACHINE = unmeasured_machine()
LIMITS = Limits(
    read_bytes_per_second=1e10,
    read_loop_bytes_per_second=1e10,
    operations_per_second=1e11,
    prompt_operations_per_second=4e11,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 in blocks of 32 values."""
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen2"), "Q8_0")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Opened]:
    """The small model with room for three sequences, in steps of 32 tokens."""
    with opened(plan_of(path, context_tokens=128, chunk_tokens=32, max_sequences=3)) as made:
        yield made


@pytest.fixture(scope="module")
def decode_profile(model: Opened) -> StepProfile:
    """A step after 40 tokens, by operator."""
    return profile_decode(model, MACHINE, context_tokens=40)


def test_together_sequences_read_the_weights_once(model: Opened) -> None:
    cost = model.cost
    one, three = (decode_workload(cost, sequences=n, context_tokens=20).read_bytes for n in (1, 3))
    assert three - cost.weight_bytes == 3 * (one - cost.weight_bytes)


def test_bytes_of_a_decode_step_are_the_weights_and_all_sequences_keys_and_values(model: Opened) -> None:
    measured = decode_speed(model, MACHINE, sequences=3, context_tokens=8, decode_tokens=1, repeats=1)
    cost = model.cost
    cached = [8 + 2, 8 + 1, 8 + 1]  # at the step that is measured, with its own token; at most two more by waiting
    least = cost.weight_bytes + sum(
        step_workload(cost, start_token=tokens - 1, num_tokens=1).read_bytes - cost.weight_bytes for tokens in cached
    )
    assert abs(measured.read_bytes_per_step - least) <= 3 * 2 * 3 * 4 * 2 * 64


def test_a_decode_leaves_no_request_behind(model: Opened) -> None:
    decode_speed(model, MACHINE, sequences=2, context_tokens=8, decode_tokens=2, repeats=1)
    assert not model.loop.has_work


def test_each_repetition_is_a_sample(model: Opened) -> None:
    assert len(prefill_speed(model, MACHINE, prompt_tokens=40, repeats=3).samples) == 3


def test_a_prefill_in_two_steps_reads_the_weights_twice(model: Opened) -> None:
    measured = prefill_speed(model, MACHINE, prompt_tokens=40, repeats=1)
    cost = model.cost
    works = [step_workload(cost, start_token=0, num_tokens=32), step_workload(cost, start_token=32, num_tokens=8)]
    assert measured.read_bytes_per_step == sum(work.read_bytes for work in works) / 2


def test_a_bench_measures_in_the_order_asked(path: Path) -> None:
    asked = Asked(prompt_tokens=(16,), context_tokens=(0, 20), sequences=(2,), decode_tokens=2, repeats=1)

    speeds = measure(
        asked,
        lambda tokens, sequences: plan_of(path, context_tokens=tokens, chunk_tokens=32, max_sequences=sequences),
        MACHINE,
        say=lambda what: None,
    )
    assert [(each.kind, each.sequences, each.context_tokens) for each in speeds] == [
        ("prefill", 1, 16),
        ("decode", 1, 0),
        ("decode", 1, 20),
        ("decode", 2, 64),
    ]


def test_a_long_decode_after_nothing_has_room(path: Path) -> None:
    asked = Asked(prompt_tokens=(), context_tokens=(0,), sequences=(), decode_tokens=96, repeats=1)
    speeds = measure(
        asked,
        lambda tokens, sequences: plan_of(path, context_tokens=tokens, chunk_tokens=32, max_sequences=sequences),
        MACHINE,
        say=lambda what: None,
    )
    assert [each.context_tokens for each in speeds] == [0]


def test_what_a_models_context_has_no_room_for_is_left_away() -> None:
    asked = Asked(prompt_tokens=(16, 4096), context_tokens=(0, 4096), decode_tokens=4, repeats=1).within(2048)
    assert (asked.prompt_tokens, asked.context_tokens) == ((16,), (0,))


def test_the_data_has_shares_of_both_limits_of_a_prompt(model: Opened) -> None:
    speed = prefill_speed(model, MACHINE, prompt_tokens=16, repeats=1)
    found = speed.to_data(LIMITS)
    assert (found["share_of_read_rate"], found["share_of_operations"]) == (
        speed.read_bytes_per_second / 1e10,
        speed.operations_per_second / 4e11,
    )


def test_the_data_names_no_place_on_this_machine(model: Opened) -> None:
    assert str(model.plan.model_path.parent) not in str(bench_data(model.plan, MACHINE, LIMITS, []))


def test_a_profile_has_every_launch_of_the_step(decode_profile: StepProfile, model: Opened) -> None:
    attends = [each.launches for each in decode_profile.operators if each.kernel.startswith("attention.attend")]
    assert attends == [len(model.spec.layers)]


def test_every_kernel_of_a_profile_takes_time(decode_profile: StepProfile) -> None:
    assert all(each.seconds > 0 for each in decode_profile.operators)


def test_a_profile_counts_the_bytes_that_the_ledger_counts(decode_profile: StepProfile, model: Opened) -> None:
    """Of matrices, keys and values; vectors (norms, biases) and activations are small beside them."""
    counted = sum(
        each.read_bytes for each in decode_profile.operators if each.kernel.startswith(("matmul", "attention.attend"))
    )
    expected = step_workload(model.cost, start_token=40, num_tokens=1).read_bytes
    assert 0.97 * expected < counted <= expected


def test_a_profile_counts_the_operations_of_the_cost_model(model: Opened) -> None:
    profile = profile_prefill(model, MACHINE, prompt_tokens=40)
    counted = sum(
        each.operations
        for each in profile.operators
        if each.kernel.startswith(("matmul", "gated_matmul", "attention.a"))
    )
    work = step_workload(model.cost, start_token=8, num_tokens=32)
    assert counted == work.matrix_operations + work.attention_operations


def test_the_longest_operator_comes_first(decode_profile: StepProfile) -> None:
    seconds = [each.seconds for each in decode_profile.operators]
    assert seconds == sorted(seconds, reverse=True)
