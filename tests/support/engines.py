"""Drives the engine's executor on small models: logits of given tokens, in chunks and then one by one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from residency.engine.executor import CpuExecutor
from residency.hardware import Machine
from residency.ledger import KvPages
from residency.ledger.groups import PageGroup
from residency.models.specs import model_spec
from residency.planner import Plan, plan_run
from residency.scheduler import Request, Scheduler
from residency.spec import open_checkpoint
from residency.spec.state import KvName
from residency.store.weights import Weights, ensure_store
from support.machines import unmeasured_machine

Floats = npt.NDArray[np.float32]


def plan_of(
    path: Path,
    *,
    context_tokens: int = 512,
    chunk_tokens: int = 64,
    max_sequences: int = 1,
    oversubscribe: bool = False,
    threads: int = 2,
    logit_rows: int | None = None,
    kv_format: KvName = "F16",
    budget_bytes: int = 1 << 30,
    runtime_bytes: int = 64 << 20,
    machine: Machine | None = None,
) -> Plan:
    """The plan of the model at `path` on a machine that nobody measured."""
    checkpoint = open_checkpoint(path)
    return plan_run(
        model_spec(checkpoint),
        machine=machine or unmeasured_machine(),
        runtime_bytes=runtime_bytes,
        budget_bytes=budget_bytes,
        context_tokens=context_tokens,
        max_sequences=max_sequences,
        oversubscribe=oversubscribe,
        chunk_tokens=chunk_tokens,
        logit_rows=logit_rows,
        threads=threads,
        kv_format=kv_format,
        model_path=checkpoint.path,
        fingerprint=checkpoint.fingerprint,
    )


def engine_logits(
    path: Path,
    tokens: list[int],
    *,
    prompt_tokens: int | None = None,
    chunk_tokens: int = 64,
    context_tokens: int = 512,
    threads: int = 2,
    kv_format: KvName = "F16",
    plan: Plan | None = None,
) -> Floats:
    """The engine's logits (tokens, vocabulary) after each of `tokens`.

    The first `prompt_tokens` (default: all) are computed in chunks, the others one by one, as in a generation.
    """
    prompt_tokens = prompt_tokens or len(tokens)
    plan = plan or plan_of(
        path,
        context_tokens=context_tokens,
        chunk_tokens=chunk_tokens,
        threads=threads,
        logit_rows=chunk_tokens,
        kv_format=kv_format,
    )
    spec = model_spec(open_checkpoint(path))
    pages = KvPages(
        [PageGroup(num_pages=group.num_pages, window_tokens=group.window_tokens) for group in plan.kv_groups],
        page_tokens=plan.page_tokens,
    )
    scheduler = Scheduler(
        pages, chunk_tokens=chunk_tokens, max_sequences=1, context_tokens=max(context_tokens, len(tokens) + 1)
    )
    scheduler.add(Request(request_id=0, prompt_tokens=prompt_tokens, wanted_tokens=len(tokens) - prompt_tokens + 1))
    parts = []
    folder = ensure_store(spec, plan.model_fingerprint)
    with Weights(spec, folder, plan.streaming, plan.paging) as weights, CpuExecutor(plan, spec, weights) as executor:
        while scheduler.has_work:
            batch = scheduler.schedule()
            (entry,) = batch.entries
            known = np.array(tokens[entry.start_token : entry.start_token + entry.num_tokens], np.int64)
            parts.append(executor.compute(batch, pages, known, every_logit=True).copy())
            scheduler.commit(batch)
    return np.concatenate(parts)
