"""Tallies by which a circuit breaker opens: failures in a row, or their share of recent calls."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from typing_extensions import override

SLICES: Final = 10
"""Number of slices of a window, which are forgotten one after the other."""


class Tally(Protocol):
    """A count of the outcomes of calls through a closed circuit."""

    def record(self, now_ns: int, failed: bool) -> bool:
        """Count one call at `now_ns`; True: there are enough failures to open the circuit."""

    def counted(self, now_ns: int) -> tuple[int, int]:
        """(calls, failures among them) that count at `now_ns`."""

    def reset(self) -> None:
        """Forget all calls."""


class ConsecutiveFailures(Tally):
    """Opens at `limit` failures without a success between them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0

    @override
    def record(self, now_ns: int, failed: bool) -> bool:
        self._failures = self._failures + 1 if failed else 0
        return self._failures >= self._limit

    @override
    def counted(self, now_ns: int) -> tuple[int, int]:
        return self._failures, self._failures

    @override
    def reset(self) -> None:
        self._failures = 0


class FailureRate(Tally):
    """Opens when `rate` of the calls in the last `window_ns` failed, once there were `minimum`.

    Counted in ten slices of the window, so memory does not grow with traffic: a call is forgotten after nine to ten
    tenths of the window.
    """

    def __init__(self, rate: float, window_ns: int, minimum: int) -> None:
        self._rate = rate
        self._slice_ns = max(1, window_ns // SLICES)
        self._minimum = minimum
        self._slices: deque[list[int]] = deque()
        """`[number, calls, failures]` of slices in which something was called."""

    @override
    def record(self, now_ns: int, failed: bool) -> bool:
        number = now_ns // self._slice_ns
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += failed
        calls, failures = self.counted(now_ns)
        return failed and calls >= self._minimum and failures >= self._rate * calls

    @override
    def counted(self, now_ns: int) -> tuple[int, int]:
        oldest = now_ns // self._slice_ns - SLICES + 1
        while self._slices and self._slices[0][0] < oldest:
            self._slices.popleft()
        return sum(calls for _, calls, _ in self._slices), sum(failures for _, _, failures in self._slices)

    @override
    def reset(self) -> None:
        self._slices.clear()
