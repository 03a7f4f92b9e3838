"""Time as the operating system tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bitactor.ports import TimerHandle


class SystemClock:
    """The `Clock` port over an event loop; `loop.time()` is the monotonic clock in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wall_ns = time.time_ns
        self.monotonic_ns = time.monotonic_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See the port."""
        delay = (when_ns - time.monotonic_ns()) / 1e9
        return self._loop.call_later(max(0.0, delay), callback)
