"""Counters of a transport, and warnings that do not flood the log."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import Final

WARN_EVERY: Final = 10.0
"""Seconds between two log lines about the same trouble."""


@dataclass(slots=True)
class Counters:
    """Totals of a transport since `open`."""

    frames_in: int = 0
    frames_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    """Bytes of frames, as they came."""
    bytes_out: int = 0
    malformed: int = 0
    """Frames that could not be read as frames."""
    too_large: int = 0
    """Frames above the limit.  ZeroMQ cuts off who sends such; it does not tell us about those."""
    dropped: int = 0
    """Messages to a peer that was forgotten, is unknown, or did not take them before `close`."""
    receive_failures: int = 0
    """Times the receive callback raised."""

    def as_dict(self) -> dict[str, int]:
        """A copy of the totals, name to total."""
        return asdict(self)


class ThrottledWarning:
    """A warning about one kind of trouble: logged when it starts, then at most every `WARN_EVERY` seconds, with how
    often it was."""

    __slots__ = ("_log", "_next", "_suppressed")

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = float("-inf")
        self._suppressed = 0

    def warn(self, text: str, error: BaseException | None = None) -> None:
        """Log `text` as a warning, with the traceback of `error`, unless it is too soon."""
        now = time.monotonic()
        if now < self._next:
            self._suppressed += 1
            return
        again = f" ({self._suppressed:,} more like this were not logged)" if self._suppressed else ""
        self._next, self._suppressed = now + WARN_EVERY, 0
        self._log.warning("%s%s", text, again, exc_info=error)
