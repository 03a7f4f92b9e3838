"""A throttle for what is logged about what others cause, so that they cannot fill the log."""

from __future__ import annotations

import logging
from typing import Final

INTERVAL_NS: Final = 10_000_000_000


class LogThrottle:
    """Logs at most one line each `interval_ns`, with how many were left out before it.  For one thread."""

    def __init__(self, logger: logging.Logger, interval_ns: int = INTERVAL_NS) -> None:
        self._logger = logger
        self._interval_ns = interval_ns
        self._next_ns: int | None = None
        self._suppressed = 0

    def warn(self, now_ns: int, message: str, *arguments: object) -> None:
        """Log the warning, or count it as left out."""
        self.log(logging.WARNING, now_ns, message, *arguments)

    def log(self, level: int, now_ns: int, message: str, *arguments: object) -> None:
        """Log the message at this level, or count it as left out."""
        if self.is_due(now_ns):
            if self._suppressed:
                message, arguments = message + " (and %d like it before)", (*arguments, self._suppressed)
                self._suppressed = 0
            self._logger.log(level, message, *arguments)

    def is_due(self, now_ns: int) -> bool:
        """Whether a line may be logged now; the interval then begins.  If not, it is counted as left out."""
        if self._next_ns is not None and now_ns < self._next_ns:
            self._suppressed += 1
            return False
        self._next_ns = now_ns + self._interval_ns
        return True
