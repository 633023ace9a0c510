"""A loop on a small model, and requests followed to their ends."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from residency.engine.executor import CpuExecutor
from residency.engine.generation import TokenEvent
from residency.engine.kv_store import KvStoreSpace
from residency.engine.loop import Loop
from residency.engine.swap import SwapSpace
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.scheduler import Admission
from residency.spec import open_checkpoint
from residency.spec.layout import unrouted_read_bytes
from residency.store.weights import Weights, ensure_store

NOBODY: frozenset[int] = frozenset()


@contextmanager
def loop_on(
    path: Path,
    plan: Plan,
    *,
    eos_ids: frozenset[int] = NOBODY,
    admission: Admission = "optimistic",
    swap: SwapSpace | None = None,
    store: KvStoreSpace | None = None,
) -> Iterator[Loop]:
    """A loop on the model at `path`; closed afterwards."""
    spec = model_spec(open_checkpoint(path))
    folder = ensure_store(spec, plan.model_fingerprint)
    with Weights(spec, folder, plan.streaming, plan.paging) as weights, CpuExecutor(plan, spec, weights) as executor:
        loop = Loop(
            plan,
            executor,
            eos_ids=eos_ids,
            weight_read_bytes=unrouted_read_bytes(spec),
            admission=admission,
            swap=swap,
            store=store,
        )
        with closing(loop):
            yield loop


def events_until_idle(loop: Loop) -> list[TokenEvent]:
    """What all steps give until nothing is left to do."""
    events = []
    while loop.has_work:
        events += loop.step()
    return events


def answers(events: Sequence[TokenEvent], request_id: int) -> list[list[int | None]]:
    """The tokens of each answer to a request."""
    found: dict[int, list[int | None]] = {}
    for event in events:
        if event.request_id == request_id:
            found.setdefault(event.answer, []).append(event.token)
    return [found[answer] for answer in sorted(found)]
