"""What a machine is, as numbers."""

from residency.hardware.catalog import Catalog, load_catalog
from residency.hardware.container import ContainerLimits, container_limits
from residency.hardware.device import Device, NumberFormat
from residency.hardware.figures import Figure, assumed_device_figures, assumed_figures
from residency.hardware.machine import Cache, Link, Machine, ThreadRate, Tier
from residency.hardware.written import parse_machine

__all__ = [
    "Cache",
    "Catalog",
    "ContainerLimits",
    "Device",
    "Figure",
    "Link",
    "Machine",
    "NumberFormat",
    "ThreadRate",
    "Tier",
    "assumed_device_figures",
    "assumed_figures",
    "container_limits",
    "load_catalog",
    "parse_machine",
]
