"""How often something may fail before it is not tried again for a while; the restart intensity of Erlang/OTP's
supervisors."""

from __future__ import annotations

from collections import deque


class RestartIntensity:
    """More than `limit` failures within `seconds` are too many; then nothing is tried for `seconds`.

    Times are seconds of any monotonic clock.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._failures: deque[float] = deque(maxlen=limit + 1)
        self._cooldown_until = float("-inf")

    def record(self, now: float) -> bool:
        """Another failure; whether it was the one too many."""
        self._failures.append(now)
        if len(self._failures) <= self.limit or now - self._failures[0] > self.seconds or self.cooling_down(now):
            return False
        self._failures.clear()
        self._cooldown_until = now + self.seconds
        return True

    def cooling_down(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return now < self._cooldown_until
