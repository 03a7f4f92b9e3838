"""The errors that patterns raise, below `bitactor.errors.RunError`.

RunError
├── Refused                the call was not made; `retry_after` says when it may be
│   ├── RateLimited        the turn would come too late
│   ├── CircuitOpen        the breaker lets nobody through
│   └── BulkheadFull       no place, and none in the queue
├── TimedOut               a `TimeoutError`: the call took longer than it may
├── BatchFailed            the batch this item was in has no result for it
└── TooFewAnswers          fewer targets of `scatter_gather` answered than it needs

These errors are made of plain arguments, so that a workflow that declares them (`errors=[CircuitOpen]`) gets them back
over the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from bitactor.errors import RunError


class Refused(RunError):
    """A pattern did not let the call through; nothing was done.

    `retry_after` is the number of seconds after which another try may be let through; None if nobody knows.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    @override
    def __str__(self) -> str:
        return self.message


class RateLimited(Refused):
    """The call's turn would come later than it may wait."""


class CircuitOpen(Refused):
    """The circuit is open, or half-open with all its probes under way."""


class BulkheadFull(Refused):
    """As many calls as allowed are under way, and as many as allowed wait."""


class TimedOut(RunError, TimeoutError):
    """A call took longer than it may, and was cancelled."""


class BatchFailed(RunError):
    """The batch has no result for this item: wrong number of results, cancelled, or closed before it was done."""


class TooFewAnswers(RunError):
    """Fewer targets answered than were needed.

    `successful` and `failed` have what came, by target; they are empty where the error was carried from another
    process.
    """

    def __init__(
        self,
        message: str,
        *,
        successful: Mapping[Any, Any] | None = None,
        failed: Mapping[Any, BaseException] | None = None,
    ) -> None:
        super().__init__(message)
        self.successful = dict(successful or {})
        self.failed = dict(failed or {})
