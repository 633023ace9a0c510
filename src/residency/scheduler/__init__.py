"""What runs next. Integers only: no tensors, no clock, no token's value."""

from residency.scheduler.batch import Batch, BatchEntry
from residency.scheduler.request import Request
from residency.scheduler.scheduler import Admission, Scheduler
from residency.scheduler.swap import SwapCost

__all__ = ["Admission", "Batch", "BatchEntry", "Request", "Scheduler", "SwapCost"]
