"""What a run measured, in the same classes as its forecast."""

from dataclasses import dataclass

from residency.planner.plan import MemoryBytes, Plan


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Where the time went."""

    load: float  # from opening the plan to being ready
    first_token: float  # from the request to its first token
    decode: float  # from the first token to the last
    total: float  # from the request to its last token


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Bytes that decoding read, by the ledger's counters, beside what the probe says that memory or disk can give."""

    measured_bytes_per_second: float
    achieved_bytes_per_second: float

    @property
    def utilisation(self) -> float:
        """Achieved over measured."""
        return self.achieved_bytes_per_second / self.measured_bytes_per_second

    def to_data(self) -> dict[str, float]:
        """As JSON values."""
        return {
            "measured_bytes_per_second": self.measured_bytes_per_second,
            "achieved_bytes_per_second": self.achieved_bytes_per_second,
            "utilisation": self.utilisation,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """One generation, measured."""

    plan: Plan
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str  # "stop" or "length"
    seconds: Seconds
    memory: MemoryBytes  # measured: resident bytes by the operating system, pages by the ledger
    bandwidth: Bandwidth
    disk: Bandwidth | None = None  # where weights stream
    expert_hit_rate: float | None = None  # where experts are paged: of those that decoding needed, the share in memory

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens over the time to the first token."""
        return self.prompt_tokens / self.seconds.first_token

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first over their time; 0 where there was only one."""
        return (self.completion_tokens - 1) / self.seconds.decode if self.completion_tokens > 1 else 0.0

    def to_data(self) -> dict[str, object]:
        """The report as JSON values."""
        memory = {
            name: {
                "weights": each.weights,
                "kv_cache": each.kv_cache,
                "activations": each.activations,
                "runtime": each.runtime,
                "peak": each.peak,
            }
            for name, each in (("forecast", self.plan.memory), ("measured", self.memory))
        }
        return {
            "model": self.plan.model_name,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "seconds": {
                "load": self.seconds.load,
                "first_token": self.seconds.first_token,
                "decode": self.seconds.decode,
                "total": self.seconds.total,
            },
            "tokens_per_second": {
                "prefill": self.prefill_tokens_per_second,
                "decode": self.decode_tokens_per_second,
                "forecast_decode": self.plan.forecast.decode_tokens_per_second,
            },
            "memory_bytes": {"budget": self.plan.budget_bytes, **memory},
            "bandwidth": self.bandwidth.to_data(),
            "disk": None if self.disk is None else self.disk.to_data(),
            "expert_hit_rate": self.expert_hit_rate,
            "made_up": self.plan.is_made_up,
            "streaming": None if self.plan.streaming is None else self.plan.streaming.to_data(),
        }
