"""Questions about published models on machines of the catalog, in one line."""

from typing import Any

from residency.hardware.written import parse_machine
from residency.models.specs import named_spec
from residency.planner.answers import AnswerRecord, DeviceFigures, ForecastFigures
from residency.planner.deployment import Question
from residency.planner.engines import default_engine, engine_named
from residency.planner.placing import Load
from residency.planner.recording import record
from residency.planner.search import answer
from residency.spec.state import kv_format_named

GIB, MIB = 1024**3, 1024**2


def asked(
    model: str,
    on: str,
    *,
    context: int = 8192,
    prompt: int | None = None,
    concurrency: int = 1,
    kv: str | None = None,
    engine: str | None = None,
    ram_bytes: int | None = None,
    **others: Any,
) -> Question:
    """A question as the command line would ask it."""
    spec, machine = named_spec(model), parse_machine(on, ram_bytes=ram_bytes)
    load = Load(context_tokens=context, prompt_tokens=prompt or context // 2, concurrency=concurrency)
    return Question(
        model=spec,
        machine=machine,
        engine=engine_named(engine) if engine else default_engine(machine.compute_devices()[0], spec.format_label),
        load=load,
        kv=kv_format_named(kv) if kv else None,
        **others,
    )


def told(model: str, on: str, **options: Any) -> AnswerRecord:
    """The record of the answer."""
    return record(answer(asked(model, on, **options)))


def device(model: str, on: str, **options: Any) -> DeviceFigures:
    """The first device's memory."""
    return told(model, on, **options).devices[0]


def forecast(model: str, on: str, **options: Any) -> ForecastFigures:
    """How fast it is."""
    found = told(model, on, **options).forecast
    assert found is not None
    return found
