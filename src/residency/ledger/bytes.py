"""The budget's ledger: bytes by class of memory and by owner, with their peaks."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from residency.errors import BudgetError
from residency.units import binary_bytes, enough_mib


class MemoryClass(Enum):
    """What bytes are for."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"
    ACTIVATIONS = "activations"
    RUNTIME = "runtime"


class Ledger:
    """Every byte of a budget has at most one owner; what is not there cannot be reserved."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError(f"a budget cannot be {budget_bytes} bytes")
        self._budget_bytes = budget_bytes
        self._owners: dict[MemoryClass, dict[str, int]] = {each: {} for each in MemoryClass}
        self._current_bytes = dict.fromkeys(MemoryClass, 0)
        self._peak_bytes = dict.fromkeys(MemoryClass, 0)
        self._total_bytes = 0
        self._total_peak_bytes = 0

    @property
    def budget_bytes(self) -> int:
        """The most that all owners together may hold."""
        return self._budget_bytes

    @property
    def free_bytes(self) -> int:
        """What can still be reserved."""
        return self._budget_bytes - self._total_bytes

    @property
    def total_bytes(self) -> int:
        """What all owners hold now."""
        return self._total_bytes

    @property
    def total_peak_bytes(self) -> int:
        """The most that all owners ever held at one time."""
        return self._total_peak_bytes

    def current_bytes(self, memory: MemoryClass) -> int:
        """What the owners of one class hold now."""
        return self._current_bytes[memory]

    def peak_bytes(self, memory: MemoryClass) -> int:
        """The most that the owners of one class ever held at one time."""
        return self._peak_bytes[memory]

    def owners(self, memory: MemoryClass) -> Mapping[str, int]:
        """Bytes by owner; a view that follows the ledger."""
        return MappingProxyType(self._owners[memory])

    def reserve(self, memory: MemoryClass, *, owner: str, num_bytes: int) -> None:
        """Give `num_bytes` to a new owner.

        BudgetError where fewer are free, ValueError where the owner already holds bytes of this class or the
        amount is negative; either leaves the ledger as it was.
        """
        if num_bytes < 0:
            raise ValueError(f"{owner} cannot hold {num_bytes} bytes")
        if owner in self._owners[memory]:
            raise ValueError(f"{owner} already holds {memory.value}; release it first")
        missing_bytes = num_bytes - self.free_bytes
        if missing_bytes > 0:
            raise BudgetError(
                f"{owner} needs {binary_bytes(num_bytes)} of {memory.value} and {binary_bytes(self.free_bytes)} of the "
                f"budget of {binary_bytes(self._budget_bytes)} are free: {missing_bytes} bytes are missing; "
                f"allow --memory {enough_mib(self._budget_bytes + missing_bytes)}."
            )
        self._owners[memory][owner] = num_bytes
        self._current_bytes[memory] += num_bytes
        self._total_bytes += num_bytes
        self._peak_bytes[memory] = max(self._peak_bytes[memory], self._current_bytes[memory])
        self._total_peak_bytes = max(self._total_peak_bytes, self._total_bytes)

    def release(self, memory: MemoryClass, *, owner: str) -> int:
        """Take back all that an owner holds of one class, and say how many bytes that was; ValueError for none."""
        if owner not in self._owners[memory]:
            raise ValueError(f"{owner} holds no {memory.value}")
        num_bytes = self._owners[memory].pop(owner)
        self._current_bytes[memory] -= num_bytes
        self._total_bytes -= num_bytes
        return num_bytes
