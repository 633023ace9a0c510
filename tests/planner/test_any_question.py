"""Whatever is asked, bytes add up, speeds are possible and the record is read back."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from residency.errors import MachineError, UsageError
from residency.models.specs import known_models, named_spec
from residency.planner.answers import AnswerRecord
from support.deployments import told

MACHINES = ("rtx4090", "2xH100-80GB", "8xA100-40GB", "4xL4", "m3-max-64gb", "epyc-9654", "GH200-96GB", "3xrtx3090")
SMALL = [model.name for model in known_models() if model.parameters < 80e9]


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(SMALL),
    on=st.sampled_from(MACHINES),
    context=st.integers(2, 4096),
    concurrency=st.integers(1, 64),
    kv=st.sampled_from(("F16", "FP8", "INT8", "INT4")),
    quant=st.sampled_from((None, "fp8", "int4-g128", "q4_k_m")),
    goal=st.sampled_from((None, None, "throughput", "quality")),
    may_spill=st.booleans(),
)
def test_any_question_gets_a_sound_answer(
    model: str, on: str, context: int, concurrency: int, kv: str, quant: str | None, goal: str | None, may_spill: bool
) -> None:
    assume(context <= named_spec(model).max_context_tokens)
    options = {"kv": kv, "quant": quant, "goal": goal, "may_spill": may_spill}
    try:
        answer = told(model, on, context=context, concurrency=concurrency, **options)
    except (UsageError, MachineError):
        assume(False)
        raise
    for device in answer.devices:
        classes = device.weights + device.kv_cache + device.activations + device.runtime
        assert classes + device.free - device.missing_bytes == device.budget_bytes
    assert answer.fits == (answer.missing_bytes == 0)
    found = answer.forecast
    assert found is not None
    assert 0 < found.decode_tokens_per_second_alone <= found.plain_roofline_tokens_per_second
    assert found.decode_tokens_per_second >= found.decode_tokens_per_second_per_sequence
    assert AnswerRecord.from_json(answer.to_json()) == answer


def test_a_model_that_holds_gate_and_up_as_one_matrix_is_planned_on_a_processor() -> None:
    assert told("microsoft/phi-4", "epyc-9654", context=512, concurrency=2).fits
