"""What a machine is, as numbers.

Machines that are not at hand come from `residency.hardware.written.parse_machine`, which a run never needs.
"""

from residency.hardware.container import ContainerLimits, container_limits
from residency.hardware.device import Device, NumberFormat
from residency.hardware.figures import Figure, assumed_device_figures, assumed_figures
from residency.hardware.machine import Cache, Link, Machine, ReadShare, ThreadRate, Tier

__all__ = [
    "Cache",
    "ContainerLimits",
    "Device",
    "Figure",
    "Link",
    "Machine",
    "NumberFormat",
    "ReadShare",
    "ThreadRate",
    "Tier",
    "assumed_device_figures",
    "assumed_figures",
    "container_limits",
]
