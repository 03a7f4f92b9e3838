"""Durations: seconds where users write them, nanoseconds where clocks, signals and pulses have them."""

from __future__ import annotations

from typing import Any, Final

LONGEST: Final = 1e9
"""Seconds; some thirty years, and still a number of nanoseconds that timers take and a journal can hold."""


def is_duration(seconds: Any, *, zero: bool = False) -> bool:
    """Whether this is a number of seconds, more than 0 (with `zero`, 0 too) and at most `LONGEST`."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return (seconds >= 0 if zero else seconds > 0) and seconds <= LONGEST


def duration_rule(*, zero: bool = False) -> str:
    """What `is_duration` wants, for messages."""
    return f"a number of seconds, {'zero or more' if zero else 'more than zero'} and at most {LONGEST:,.0f}"


def nanoseconds(seconds: float) -> int:
    """The nearest whole number of nanoseconds."""
    return round(seconds * 1e9)


def nanoseconds_or_none(seconds: float | None) -> int | None:
    """The same of a duration that need not be given."""
    return None if seconds is None else nanoseconds(seconds)


def seconds_text(duration_ns: int) -> str:
    """For messages: `0.25 s`, `31.2 s`, `3,600 s`."""
    seconds = duration_ns / 1e9
    return f"{seconds:,.0f} s" if abs(seconds) >= 100 else f"{seconds:.3g} s"
