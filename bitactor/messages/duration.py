"""Durations: seconds where users write them, nanoseconds where clocks, signals and pulses have them."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 1e9
"""Seconds; some thirty years, and still a number of nanoseconds that timers take and a journal can hold."""


def nanoseconds(seconds: float) -> int:
    """The nearest whole number of nanoseconds."""
    return round(seconds * 1e9)


def nanoseconds_or_none(seconds: float | None) -> int | None:
    """The same of a duration that need not be given."""
    return None if seconds is None else nanoseconds(seconds)
