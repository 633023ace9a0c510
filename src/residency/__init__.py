"""Run language models in the memory you have, with a plan that says beforehand what will fit.

plan = residency.plan("smollm2-135m", memory="400MiB")
with residency.Engine.open(plan) as engine:
    report = engine.generate("Why does memory bandwidth limit a language model?")
print(report.text)

Names are loaded when they are first asked for, so that importing residency costs milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residency.engine.engine import Engine
    from residency.engine.planning import plan
    from residency.engine.report import Report
    from residency.engine.sampler import Sampling
    from residency.errors import ResidencyError
    from residency.planner.plan import Plan

__version__ = "0.1.0"
__all__ = ["Engine", "Plan", "Report", "ResidencyError", "Sampling", "__version__", "plan"]

_MODULES = {
    "Engine": "residency.engine.engine",
    "Plan": "residency.planner.plan",
    "Report": "residency.engine.report",
    "ResidencyError": "residency.errors",
    "Sampling": "residency.engine.sampler",
    "plan": "residency.engine.planning",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'residency' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
