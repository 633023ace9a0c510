"""The search for a deployment: every format, cache format, split and batch that the question leaves open is weighed.

There are some hundreds, on many devices some thousands, and what several have in common is computed once. So none is
skipped and the best is the best of all; see `Answer.is_optimal`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from residency.errors import MachineError, ModelError, UsageError
from residency.planner.deployment import Deployer, Deployment, Question, can_share, default_choice
from residency.planner.placing import Choice, Load
from residency.planner.rates import turning_batch
from residency.spec.requantize import GGML
from residency.spec.state import kv_format_named

QUANTS = ("fp8", "int8", "int4-g128")
GGUF_QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
KV_NAMES = ("F16", "FP8", "INT8", "INT4")
GREATEST_LOSS = 0.05  # of perplexity: what a goal other than quality may give away
MAX_CONCURRENCY = 1024
_ABOUT = 0.03  # what a goal gives up for less loss and fewer devices
_LEAST_CONTEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that could be different, and the deployment that it would give."""

    option: str  # as it is asked for: "--kv fp8"
    deployment: Deployment


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question's answer. `nearest` is there where the deployment does not fit and another would."""

    question: Question
    deployment: Deployment
    nearest: Deployment | None
    changes: tuple[Change, ...]  # those that cost least quality first
    turning_batch: int | None  # see planner/rates.py
    num_weighed: int
    is_optimal: bool  # nothing that the question allows serves its goal better, as far as the cost model tells


def answer(question: Question) -> Answer:
    """Weigh what the question asks for, or search for what serves its goal best.

    UsageError and MachineError where what is asked for is impossible; what does not fit is an answer.
    """
    deployer = Deployer(question)
    default = default_choice(question)
    weighed: list[Deployment] = []
    if question.goal is not None:
        weighed = list(_weighed(deployer, _choices(deployer, question)))
    best = _best(weighed, question)
    chosen = best or deployer.weigh(default, always_forecast=True)
    nearest = None
    if not chosen.fits:
        weighed = list(_weighed(deployer, _choices(deployer, replace(question, quant=None, kv=None, may_spill=True))))
        nearest = _nearest(deployer, weighed)
    return Answer(
        question=question,
        deployment=chosen,
        nearest=nearest,
        changes=tuple(_changes(deployer, chosen)),
        turning_batch=turning_batch(deployer.cost(chosen.choice), question.device),
        num_weighed=max(1, len(weighed)),
        is_optimal=best is not None or question.goal is None,
    )


def _choices(deployer: Deployer, question: Question) -> Iterator[Choice]:
    quants = [question.quant] if question.quant else [None, *_smaller(deployer, None)]
    kvs = [question.kv] if question.kv else [kv_format_named(name) for name in KV_NAMES]
    for quant, kv, (tensor, pipeline, replicas) in product(quants, kvs, _splits(question)):
        yield Choice(
            quant=quant,
            kv=kv,
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            replicas=replicas,
            may_spill=question.may_spill,
            attention=question.attention,
        )


def _smaller(deployer: Deployer, quant: str | None) -> list[str]:
    """Formats in which the model has fewer bytes than in `quant`: the usual ones, and what was measured on it."""
    found = []
    now_bytes = deployer.model(quant).weight_bytes
    of_vllm = deployer.question.engine.name.startswith("vllm")
    measured = [label if of_vllm else label.upper() for label in deployer.losses if (label in GGML) != of_vllm]
    for label in dict.fromkeys((*(QUANTS if of_vllm else GGUF_QUANTS), *measured)):
        try:
            if deployer.model(label).weight_bytes < now_bytes:
                found.append(label)
        except (UsageError, ModelError):
            continue  # a model whose published format cannot be had in this one
    return found


def _splits(question: Question) -> list[tuple[int, int, int]]:
    """Tensor ranks, pipeline stages and replicas that the devices allow."""
    count = question.device.count
    tensors = [question.tensor_parallel] if question.tensor_parallel else _powers(count)
    pipelines = [question.pipeline_parallel] if question.pipeline_parallel else _powers(count)
    found = []
    for tensor, pipeline in product(tensors, pipelines):
        if tensor * pipeline > count or pipeline > len(question.model.layers) or not can_share(question.model, tensor):
            continue
        most = count // (tensor * pipeline)
        found += [(tensor, pipeline, replicas) for replicas in sorted({1, most})]
    return found


def _powers(count: int) -> list[int]:
    return sorted({count, *(2**power for power in range(count.bit_length()) if 2**power <= count)})


def _weighed(deployer: Deployer, choices: Iterator[Choice]) -> Iterator[Deployment]:
    for choice in choices:
        try:
            yield from _batches(deployer, choice)
        except (UsageError, MachineError, ModelError):
            continue  # a split or format that this model or machine does not allow


def _batches(deployer: Deployer, choice: Choice) -> Iterator[Deployment]:
    """The deployment at the concurrency asked for, or, where that is free, at ever more that fit and give more."""
    question = deployer.question
    found = deployer.weigh(choice)
    yield found
    concurrency, before = question.load.concurrency, 0.0
    while found.tokens_per_second > before and question.concurrency_is_free and concurrency < MAX_CONCURRENCY:
        concurrency, before = 2 * concurrency, found.tokens_per_second
        found = deployer.weigh(choice, replace(question.load, concurrency=concurrency))
        yield found


def _best(weighed: list[Deployment], question: Question) -> Deployment | None:
    """Of those that fit and serve the goal about as well as any, the one that loses least quality, then the one with
    the fewest devices and stages. Of those that lose equally little, if that is the goal, the quickest."""
    fitting = [each for each in weighed if each.fits]
    if question.goal == "quality":
        return max(fitting, key=lambda each: (-each.loss, each.tokens_per_second), default=None)
    if question.quant is None:
        fitting = [each for each in fitting if each.loss <= GREATEST_LOSS]
    merits = [(_merit(each, question), each) for each in fitting]
    most = max((merit for merit, _ in merits), default=0.0)
    near = [pair for pair in merits if pair[0] >= most - _ABOUT * abs(most)]
    return max(near, key=_thrift, default=(0.0, None))[1]


def _thrift(pair: tuple[float, Deployment]) -> tuple[float, ...]:
    merit, deployment = pair
    choice = deployment.choice
    return -deployment.loss, -choice.num_devices, -choice.pipeline_parallel, merit


def _merit(deployment: Deployment, question: Question) -> float:
    """How well a deployment that fits serves the goal; more is better."""
    forecast, load = deployment.forecast, deployment.load
    assert forecast is not None
    match question.goal:
        case "latency":
            token_seconds = _sequences(deployment) / forecast.decode_tokens_per_second
            return -(forecast.time_to_first_token_seconds_together + load.answer_tokens * token_seconds)
        case "cost":
            return deployment.tokens_per_second / deployment.choice.num_devices
    return deployment.tokens_per_second


def _sequences(deployment: Deployment) -> int:
    return -(-deployment.load.concurrency // deployment.choice.replicas)


def _nearest(deployer: Deployer, weighed: list[Deployment]) -> Deployment | None:
    """What fits with the least loss, in device memory if it can; if nothing does, with fewer sequences, then with less
    context."""
    fitting = [each for each in weighed if each.fits]
    if fitting:
        inside = [each for each in fitting if not each.placement.spilled.num_bytes and each.loss <= GREATEST_LOSS]
        return max(inside or fitting, key=lambda each: (-each.loss, each.tokens_per_second))
    load = deployer.question.load
    smallest = min(weighed, key=lambda each: each.placement.missing_bytes, default=None)
    while smallest is not None and (load.concurrency > 1 or load.context_tokens > _LEAST_CONTEXT_TOKENS):
        load = _less(load)
        found = deployer.weigh(smallest.choice, load)
        if found.fits:
            return found
    return None


def _less(load: Load) -> Load:
    if load.concurrency > 1:
        return replace(load, concurrency=load.concurrency // 2)
    return replace(load, context_tokens=load.context_tokens // 2, prompt_tokens=max(1, load.prompt_tokens // 2))


def _changes(deployer: Deployer, deployment: Deployment) -> Iterator[Change]:
    """What one option more would give, the cheapest in quality first, then more machine, then less work."""
    choice = deployment.choice
    options: list[tuple[str, Choice]] = []
    later = KV_NAMES[KV_NAMES.index(choice.kv.name) + 1 :] if choice.kv.name in KV_NAMES else ()
    options += [(f"--kv {name.lower()}", replace(choice, kv=kv_format_named(name))) for name in later]
    options += [(f"--quant {label}", replace(choice, quant=label)) for label in _smaller(deployer, choice.quant)]
    if not choice.may_spill and not deployment.fits:
        options.append(("--spill", replace(choice, may_spill=True)))
    changes = [Change(option=option, deployment=each) for option, each in _tried(deployer, options, deployment.load)]
    yield from sorted(
        (change for change in changes if _buys(change.deployment, deployment)),
        key=lambda change: change.deployment.loss,
    )
    yield from _more_devices(deployer, deployment)


def _buys(changed: Deployment, deployment: Deployment) -> bool:
    """Whether a change gives anything for a loss that may be given."""
    if changed.loss > deployment.loss + GREATEST_LOSS:
        return False
    return changed.placement.num_bytes < deployment.placement.num_bytes or changed.fits > deployment.fits


def _tried(deployer: Deployer, options: list[tuple[str, Choice]], load: Load) -> Iterator[tuple[str, Deployment]]:
    for option, choice in options:
        try:
            yield option, deployer.weigh(choice, load)
        except (UsageError, MachineError, ModelError):
            continue


def _more_devices(deployer: Deployer, deployment: Deployment) -> Iterator[Change]:
    machine, choice = deployer.question.machine, deployment.choice
    if not machine.devices:
        return
    first = machine.devices[0]
    wider = replace(machine, devices=(replace(first, count=2 * first.count), *machine.devices[1:]))
    try:
        choice = replace(choice, tensor_parallel=2 * choice.tensor_parallel)
        doubled = deployer.weigh(choice, deployment.load, machine=wider)
    except (UsageError, MachineError, ModelError):
        return
    yield Change(option=f"--on {2 * first.count}x{first.name}", deployment=doubled)
