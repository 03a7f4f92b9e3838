"""The system's clock, and a timing wheel: many timers, few wake-ups, and arming or disarming one costs two dictionary
operations.

Timers are kept in buckets one tick wide.  A timer never fires early, and at most one tick late.  After "Hashed and
Hierarchical Timing Wheels", Varghese and Lauck, 1987; the hierarchy is a heap of the ticks that have a bucket.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from bitactor.ports import Clock, TimerHandle
from registry.support.clock import monotonic_ns

logger = logging.getLogger("bitactor.timers")

TICK_NS = 4_000_000
COMPACT_AT = 1_024
"""Ticks kept before those without timers are dropped; disarming leaves an empty bucket behind, which is likely to be
used again."""


class SystemClock:
    """The `Clock` port over an event loop; its monotonic clock goes on while the machine sleeps, as that of the loop
    does not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wall_ns = time.time_ns
        self.monotonic_ns = monotonic_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Run `callback` by the loop's `call_later`, to the loop's resolution; a moment that has passed: in the loop's
        next turn."""
        delay = (when_ns - monotonic_ns()) / 1e9
        return self._loop.call_later(max(0.0, delay), callback)


class Expiring(Protocol):
    """An object that can be armed in a timing wheel: hashable by identity."""

    def expire(self) -> None:
        """Called once on the loop's thread, when the armed time has come."""


class TimingWheel:
    """The timing wheel with all timers of one node."""

    def __init__(self, clock: Clock, tick_ns: int = TICK_NS) -> None:
        self._clock = clock
        self._tick_ns = tick_ns
        self._buckets: dict[int, dict[Any, None]] = {}
        self._ticks: list[int] = []
        self._compact_at = COMPACT_AT
        self._wake: TimerHandle | None = None
        self._wake_tick = 0
        self.failures = 0
        """How many timers have raised."""

    def arm(self, timer: Expiring, when_ns: int) -> int:
        """Call `timer.expire()` once the monotonic clock has reached `when_ns`; returns the tick that `disarm`
        needs."""
        tick = -(-when_ns // self._tick_ns)
        bucket = self._buckets.get(tick)
        if bucket is None:
            if len(self._ticks) >= self._compact_at:
                self._compact()
            self._buckets[tick] = {timer: None}
            heapq.heappush(self._ticks, tick)
            if self._wake is None or tick < self._wake_tick:
                self._sleep_until(tick)
        else:
            bucket[timer] = None
        return tick

    def disarm(self, timer: Expiring, tick: int) -> None:
        """Forget a timer, by the tick that `arm` returned; forgetting one that has fired does nothing."""
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.pop(timer, None)

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def about(self) -> dict[str, int]:
        """How many timers are `armed`, what they take (`buckets`, some of them empty, and `ticks`), and how many have
        raised (`failures`)."""
        buckets = list(self._buckets.values())
        armed = sum(map(len, buckets))
        return {"armed": armed, "buckets": len(buckets), "ticks": len(self._ticks), "failures": self.failures}

    def close(self) -> None:
        """Forget all timers: none fires any more."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self._buckets.clear()
        self._ticks.clear()

    def _compact(self) -> None:
        self._buckets = {tick: bucket for tick, bucket in self._buckets.items() if bucket}
        self._ticks = sorted(self._buckets)
        self._compact_at = max(COMPACT_AT, 2 * len(self._ticks))

    def _sleep_until(self, tick: int) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake_tick = tick
        self._wake = self._clock.call_at(tick * self._tick_ns, self._turn)

    def _turn(self) -> None:
        self._wake = None
        now_tick = self._clock.monotonic_ns() // self._tick_ns
        while self._ticks and self._ticks[0] <= now_tick:
            tick = heapq.heappop(self._ticks)
            bucket = self._buckets.pop(tick)
            try:
                while bucket:
                    timer, _ = bucket.popitem()
                    try:
                        timer.expire()
                    except Exception:
                        self.failures += 1
                        logger.exception("a timer raised; the others go on")
            finally:
                if bucket:  # it exits
                    for timer in bucket:
                        self.arm(timer, tick * self._tick_ns)
        while self._ticks and not self._buckets[self._ticks[0]]:
            del self._buckets[heapq.heappop(self._ticks)]
        if self._ticks and (
            self._wake is None or self._ticks[0] < self._wake_tick
        ):  # of those that have just been armed
            self._sleep_until(self._ticks[0])


class Timer:
    """A single armed callback, for what is no hop; a `TimerHandle`."""

    __slots__ = ("_callback", "_tick", "_wheel")

    def __init__(self, wheel: TimingWheel, when_ns: int, callback: Any) -> None:
        self._wheel = wheel
        self._callback = callback
        self._tick = wheel.arm(self, when_ns)

    def expire(self) -> None:
        """Call the callback."""
        self._callback()

    def cancel(self) -> None:
        """Disarm the timer: the callback is not called any more."""
        self._wheel.disarm(self, self._tick)
