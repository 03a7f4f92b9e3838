"""How often something may fail before it rests."""

from __future__ import annotations

from collections import deque


class RestartIntensity:
    """A restart intensity, as of Erlang/OTP's supervisors: after more than `limit` failures within `seconds`, nothing
    is tried for `seconds`.

    Times are seconds of any monotonic clock.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._failures: deque[float] = deque(maxlen=limit + 1)
        self._cooldown_until = float("-inf")

    def record(self, now: float) -> bool:
        """Record a failure; True: it was the one too many."""
        self._failures.append(now)
        if len(self._failures) <= self.limit or now - self._failures[0] > self.seconds or self.cooling_down(now):
            return False
        self._failures.clear()
        self._cooldown_until = now + self.seconds
        return True

    def cooling_down(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return now < self._cooldown_until
