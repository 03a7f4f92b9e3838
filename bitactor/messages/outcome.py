"""The outcomes that a step, a compensation or an undo can answer with.

A step returns a value (that is `Ok`), or returns or raises one of `Retry`, `Fail`, `Halt`.  A compensation returns
`None` (fail and undo), `Retry`, `Continue` or `Halt`.  An undo returns `None` or `Retry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from bitactor.messages.duration import LONGEST
from bitactor.messages.values import exact_number, shown


def seconds_of(delay: Any) -> float | None:
    """A delay that was worked out, in seconds, cut at `LONGEST`; None if it is no number, or less than zero.

    Raises:
        BaseException: what a number of another library raises.
    """
    if isinstance(delay, bool | str | bytes):
        return None
    seconds = exact_number(delay)
    seconds = float(delay) if seconds is None else seconds
    return min(seconds, LONGEST) if seconds >= 0 else None


class Outcome(Exception):
    """Base of the outcomes that may be returned *or* raised."""


class Retry(Outcome):
    """Try the step again, without compensation, while retries are left; `after` in seconds, cut at 1,000,000,000
    (default: the step's backoff)."""

    def __init__(self, after: float | None = None, reason: str = "") -> None:
        if after is not None and not _is_delay(after):
            raise ValueError(f"Retry(after={shown(after)}): a delay is a number of seconds, zero or more")
        super().__init__(reason)
        self.after = after
        self.reason = reason

    @override
    def __repr__(self) -> str:
        return f"Retry(after={self.after!r}, reason={self.reason!r})"


def _is_delay(after: Any) -> bool:
    try:
        return seconds_of(after) is not None
    except Exception:  # what it makes of being a number
        return False


class Fail(Outcome):
    """Fail the step now, without further tries or compensation; the transaction undoes."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    @override
    def __repr__(self) -> str:
        return f"Fail({self.reason!r})"


class Halt(Outcome):
    """Halt the transaction and keep what is done; it can be resumed."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    @override
    def __repr__(self) -> str:
        return f"Halt({self.reason!r})"


@dataclass(frozen=True, slots=True)
class Ok:
    """The step is done, with this value.  Returning a bare value means the same."""

    value: Any = None
    """The step's result."""


@dataclass(frozen=True, slots=True)
class Continue:
    """The answer of a compensation by which the step counts as done with this value, and can be undone like any
    other."""

    value: Any = None
    """The step's result."""
