"""The `Clock` port on the operating system's clocks."""

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
        """Run `callback` by the loop's `call_later`, to the loop's resolution; a moment that has passed: in the loop's
        next turn."""
        delay = (when_ns - time.monotonic_ns()) / 1e9
        return self._loop.call_later(max(0.0, delay), callback)
