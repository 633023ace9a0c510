"""Where `residency bench` measures a model: on this machine's processor, or on its GPU."""

from dataclasses import dataclass

from residency.cli.options import PlanOptions
from residency.cli.planned import fetched, measured_machine, planned
from residency.cli.progress import Progress
from residency.engine.device import linked_device
from residency.engine.planning import plan_rows, planned_spec
from residency.hardware import Machine
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.spec.layout import read_bytes_per_token
from residency.spec.model import ModelSpec
from residency.spec.opening import open_checkpoint
from residency.verifier.bench import Limits, PlanFor, Where, limits_of, limits_of_device


@dataclass(frozen=True, kw_only=True)
class Place:
    """What computes, the model that is measured there, and the plans of its runs."""

    machine: Where
    spec: ModelSpec
    plan_for: PlanFor

    def limits(self, plan: Plan) -> Limits:
        """What the place can do at most; on a processor a read loop is measured, which takes about a second."""
        if isinstance(self.machine, Machine):
            return limits_of(self.machine, weight_bytes=read_bytes_per_token(self.spec), threads=plan.threads)
        return limits_of_device(self.machine.device)

    @property
    def name(self) -> str:
        """The processor or the GPU."""
        return self.machine.processor if isinstance(self.machine, Machine) else self.machine.device.name


def place_of(model: str, asked: PlanOptions, progress: Progress) -> Place:
    """Where a bench of `model` runs. UsageError or MachineError where there is no device and one is asked for."""
    if asked.device == "cuda":
        return _on_device(model, asked, progress)
    path = fetched(model, progress)
    machine = measured_machine(progress)

    def plan_for(context_tokens: int, sequences: int) -> Plan:
        return plan_rows(
            path,
            memory=asked.memory_bytes,
            context=context_tokens,
            max_sequences=sequences,
            threads=asked.threads,
            machine=machine,
        )

    return Place(machine=machine, spec=model_spec(open_checkpoint(path)), plan_for=plan_for)


def _on_device(model: str, asked: PlanOptions, progress: Progress) -> Place:
    linked = linked_device()

    def plan_for(context_tokens: int, sequences: int) -> Plan:
        wanted = PlanOptions(
            memory_bytes=asked.memory_bytes,
            context_tokens=context_tokens,
            threads=asked.threads,
            device="cuda",
            random_weights=asked.random_weights,
        )
        return planned(model, wanted, progress, max_sequences=sequences)

    return Place(machine=linked, spec=planned_spec(plan_for(1, 1)), plan_for=plan_for)
