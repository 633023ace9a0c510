"""What a machine is, as numbers."""

from residency.hardware.container import ContainerLimits, container_limits
from residency.hardware.machine import Cache, Figure, Link, Machine, ThreadRate, Tier, assumed_figures

__all__ = [
    "Cache",
    "ContainerLimits",
    "Figure",
    "Link",
    "Machine",
    "ThreadRate",
    "Tier",
    "assumed_figures",
    "container_limits",
]
