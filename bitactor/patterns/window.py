"""When a breaker has seen enough: failures in a row, or their share of the calls of late."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

SLICES: Final = 10
"""Parts of a window, which are forgotten one after the other."""


class Tally(Protocol):
    """Outcomes of calls through a closed circuit."""

    def record(self, now_ns: int, failed: bool) -> bool:
        """Count one; whether it was one too many."""

    def counted(self, now_ns: int) -> tuple[int, int]:
        """Calls, and failures among them, that count now."""

    def reset(self) -> None:
        """Forget everything."""


class ConsecutiveFailures:
    """So many failures without a success between them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0

    def record(self, now_ns: int, failed: bool) -> bool:
        """See `Tally`."""
        self._failures = self._failures + 1 if failed else 0
        return self._failures >= self._limit

    def counted(self, now_ns: int) -> tuple[int, int]:
        """See `Tally`."""
        return self._failures, self._failures

    def reset(self) -> None:
        """See `Tally`."""
        self._failures = 0


class FailureRate:
    """A share of the calls of the last `window_ns`, once there were `minimum`.

    Counted in ten slices of the window, so memory does not grow with traffic: a call is forgotten after nine to ten
    tenths of the window.
    """

    def __init__(self, rate: float, window_ns: int, minimum: int) -> None:
        self._rate = rate
        self._slice_ns = max(1, window_ns // SLICES)
        self._minimum = minimum
        self._slices: deque[list[int]] = deque()
        """`[number, calls, failures]` of slices in which something was called."""

    def record(self, now_ns: int, failed: bool) -> bool:
        """See `Tally`."""
        number = now_ns // self._slice_ns
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += failed
        calls, failures = self.counted(now_ns)
        return failed and calls >= self._minimum and failures >= self._rate * calls

    def counted(self, now_ns: int) -> tuple[int, int]:
        """See `Tally`."""
        oldest = now_ns // self._slice_ns - SLICES + 1
        while self._slices and self._slices[0][0] < oldest:
            self._slices.popleft()
        return sum(calls for _, calls, _ in self._slices), sum(failures for _, _, failures in self._slices)

    def reset(self) -> None:
        """See `Tally`."""
        self._slices.clear()
