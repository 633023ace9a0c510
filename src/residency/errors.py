"""Every exception that a user of residency can meet.

ResidencyError                what happened, by how much, what to do next
├── UsageError                an option or a call that cannot mean anything
├── ModelError                something is wrong with a model
│   ├── FileError             a file is truncated, foreign or contradicts itself
│   ├── UnsupportedError      a well-formed model that residency cannot run
│   └── FetchError            a model could not be found, downloaded or verified
├── BudgetError               the bytes do not fit
├── ContextError              more tokens than the model or the plan has room for
├── QueueFullError            more requests than may wait; it says when to come again
├── ServiceError              the service has failed or is ending, and takes no requests
├── MachineError              a machine's description or measurement cannot be used
├── QualityError              a result is worse than was asked for, and is not written
└── StoreError                the on-disk store could not be written or is damaged
"""


class ResidencyError(Exception):
    """Base of all errors meant for users: one sentence that names the next step."""


class UsageError(ResidencyError):
    """An option or a call that cannot mean anything."""


class ModelError(ResidencyError):
    """Something is wrong with a model."""


class FileError(ModelError):
    """A model's file is truncated, foreign or contradicts itself."""


class UnsupportedError(ModelError):
    """A well-formed model that residency cannot run."""


class FetchError(ModelError):
    """A model could not be found, downloaded or verified."""


class BudgetError(ResidencyError):
    """The bytes do not fit into the budget."""


class ContextError(ResidencyError):
    """More tokens than the model or the plan has room for."""


class QueueFullError(ResidencyError):
    """More requests than may wait."""

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ServiceError(ResidencyError):
    """The service has failed or is ending, and takes no requests."""


class MachineError(ResidencyError):
    """A machine's description or measurement cannot be used."""


class QualityError(ResidencyError):
    """A result is worse than was asked for, and is not written."""


class StoreError(ResidencyError):
    """The on-disk store could not be written, or is damaged."""
