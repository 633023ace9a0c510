"""What will fit, where every byte will live, and how fast it will go."""

from residency.planner.cost import ModelCost, Workload
from residency.planner.explain import explain
from residency.planner.memory import plan_run
from residency.planner.plan import Buffer, KvGroup, MemoryBytes, Plan, SpeedForecast
from residency.planner.speed import forecast_speed

__all__ = [
    "Buffer",
    "KvGroup",
    "MemoryBytes",
    "ModelCost",
    "Plan",
    "SpeedForecast",
    "Workload",
    "explain",
    "forecast_speed",
    "plan_run",
]
