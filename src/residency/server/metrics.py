"""Metrics for Prometheus: the service's counts as they are when somebody asks, and times of requests."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from residency.engine.arena import peak_resident_bytes
from residency.engine.metrics import ServiceMetrics
from residency.planner import Plan
from residency.server.choices import Usage

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What /metrics says. It is an Observer of requests."""

    def __init__(self, plan: Plan, counts: Callable[[], ServiceMetrics]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # else each has a second series: when it was made
        self._registry = CollectorRegistry()
        self._registry.register(_Service(plan, counts))
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token"
        )
        self._between = self._histogram("inter_token_seconds", "From one piece of an answer to the next")
        self._request = self._histogram("request_seconds", "From a request's arrival to its end")
        self._requests = Counter(
            "residency_requests_ended", "Requests by how they ended", ["reason"], registry=self._registry
        )
        self._tokens = Counter("residency_tokens", "Tokens of requests that ended", ["kind"], registry=self._registry)

    def first_token(self, seconds: float) -> None:
        """See Observer."""
        self._first_token.observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        """See Observer."""
        self._between.observe(seconds)

    def ended(self, reason: str, seconds: float, usage: Usage) -> None:
        """See Observer."""
        self._request.observe(seconds)
        self._requests.labels(reason).inc()
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)

    def text(self) -> bytes:
        """In Prometheus' text format. To be asked for in the event loop's thread, whose time is told."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, help_: str) -> "_Histogram":
        histogram = _Histogram(f"residency_{name}", help_)
        self._registry.register(histogram)
        return histogram


class _Histogram(Collector):
    """Times that one thread observes. The library's own takes a lock and ten times as long, for each token."""

    def __init__(self, name: str, help_: str) -> None:
        self._name, self._help = name, help_
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum_seconds += seconds

    def collect(self) -> Iterator[Metric]:
        bounds = [*map(str, _SECONDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum_seconds)


class _Service(Collector):
    """The service's counts."""

    def __init__(self, plan: Plan, counts: Callable[[], ServiceMetrics]) -> None:
        self._plan = plan
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        loop, memory = counts.loop, self._plan.memory
        pages = {
            "used": loop.used_pages,
            "shared": loop.shared_pages,
            "cached": loop.cached_pages,
            "free": loop.pages - loop.used_pages - loop.cached_pages,
        }
        planned = {
            "weights": memory.weights,
            "kv_cache": memory.kv_cache,
            "activations": memory.activations,
            "runtime": memory.runtime,
        }
        yield _gauges("kv_pages", "Pages of the KV cache; shared ones are used ones too", "state", pages)
        yield _gauges("planned_bytes", "Bytes that the plan gives to a class of memory", "class", planned)
        yield _gauge("kv_used_bytes", "Bytes of the KV cache that sequences hold", loop.kv_used_bytes)
        yield _gauge("kv_held_tokens", "Tokens of the sequences that hold pages", loop.kv_tokens)
        yield _gauge("budget_bytes", "The ceiling for the whole process", self._plan.budget_bytes)
        yield _gauge("peak_resident_bytes", "The most that the process ever had resident", peak_resident_bytes())
        yield _gauge("running_sequences", "Sequences that hold pages", loop.running)
        yield _gauge("waiting_sequences", "Sequences that hold none", loop.waiting)
        yield _gauge("queued_requests", "Requests that wait", counts.queued)
        yield _gauge("queue_limit", "Requests that may wait", counts.queue_limit)
        yield _gauge("last_step_seconds", "How long the last step took", counts.last_step_seconds)
        yield _gauge("read_bytes_per_second", "Weights, keys and values read, of late", counts.read_bytes_per_second)
        yield _gauge("bandwidth_share", "Of what this machine's memory can give, of late", counts.bandwidth_share)
        yield _gauge("healthy", "1 while the service is well", counts.healthy)
        yield _gauge("kv_store_pages", "Pages of prompts that are kept on disk", loop.kept_pages)
        yield _counter("kv_saved_pages", "Pages of prompts that went to disk", loop.saved_pages)
        yield _counter("kv_loaded_pages", "Pages of prompts that came back from there", loop.loaded_pages)
        yield _counter("kv_swapped_pages", "Pages of preempted sequences that went to disk", loop.swapped_pages)
        yield _counter(
            "kv_failed_copies", "Pages that the disk failed; what it lost is computed anew", loop.failed_copies
        )
        yield _counter("preemptions", "Sequences that gave their pages up for others", loop.preemptions)
        yield _counter("refused_requests", "Requests that came while the queue was full", counts.refused)
        yield _counter("accepted_requests", "Requests that were taken in", counts.requests)
        yield _counter("prefilled_tokens", "Tokens of prompts whose computation began", loop.prompt_tokens)
        yield _counter("prefix_hit_tokens", "Of those, the ones found in the cache", loop.prefix_hit_tokens)
        yield _counter("computed_tokens", "Tokens of all steps", loop.computed_tokens)
        yield _counter("sampled_tokens", "Tokens of answers", loop.sampled_tokens)
        yield _counter("steps", "Steps of the loop", loop.steps)
        yield _counter("step_seconds", "Time of all steps", counts.step_seconds)
        yield _counter("compute_seconds", "Of that, the kernels' time", counts.compute_seconds)
        yield _counter("event_loop_seconds", "Processor time of the thread that speaks HTTP", time.thread_time())
        yield _counter("read_bytes", "Weights, keys and values read", loop.read_bytes)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"residency_{name}", help_, value=value)


def _gauges(name: str, help_: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"residency_{name}", help_, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(f"residency_{name}", help_, value=value)
