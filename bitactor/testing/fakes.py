"""Fakes of the ports: a clock that stands still until a test advances it, ids that count up, a sink that keeps all."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final

from bitactor.messages.duration import nanoseconds
from bitactor.messages.pulse import Pulse

START_NS: Final = 1_750_000_000_000_000_000
"""Wall time of a fresh `FakeClock`: in June 2025."""


class FakeTimer:
    """The `TimerHandle` port for `FakeClock`."""

    __slots__ = ("callback", "when_ns")

    def __init__(self, when_ns: int, callback: Callable[[], None]) -> None:
        self.when_ns = when_ns
        """Monotonic time at which it is due."""
        self.callback: Callable[[], None] | None = callback
        """What is called then; None once it is disarmed."""

    def cancel(self) -> None:
        """Disarm the timer; twice, or too late, does nothing."""
        self.callback = None


class FakeClock:
    """The `Clock` port for tests in one process.

    Wall time and monotonic time advance together, by `advance` and by nothing else.  Callbacks run on the thread that
    advances.
    """

    def __init__(self, wall_ns: int = START_NS) -> None:
        self._start_ns = wall_ns
        self._elapsed_ns = 0
        self._armed = 0
        self._timers: list[tuple[int, int, FakeTimer]] = []

    def wall_ns(self) -> int:
        """Wall time: `START_NS`, or the time given to the constructor, plus what was advanced."""
        return self._start_ns + self._elapsed_ns

    def monotonic_ns(self) -> int:
        """Monotonic time: the nanoseconds advanced so far."""
        return self._elapsed_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> FakeTimer:
        """Arm a timer; what is due already is called by the next `advance`, also by `advance(0)`."""
        timer = FakeTimer(when_ns, callback)
        self._armed += 1
        heapq.heappush(self._timers, (when_ns, self._armed, timer))
        return timer

    def next_timer_ns(self) -> int | None:
        """Monotonic time at which the next timer is due; None if none is armed."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, seconds: float) -> None:
        """Let time pass; what comes due is called in order, each at its own time, also what callbacks arm meanwhile.

        Raises:
            ValueError: time does not go back.
            Exception: whatever a callback raises; time then stands where that one was due, and may be advanced further.
        """
        if not seconds >= 0:
            raise ValueError(f"advance({seconds!r}): time does not go back")
        self.advance_to(self._elapsed_ns + nanoseconds(seconds))

    def advance_to(self, monotonic_ns: int) -> None:
        """Let time pass, as `advance` does, until `monotonic_ns()` is this."""
        while (due_ns := self.next_timer_ns()) is not None and due_ns <= monotonic_ns:
            timer = heapq.heappop(self._timers)[2]
            self._elapsed_ns = max(self._elapsed_ns, due_ns)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self._elapsed_ns = max(self._elapsed_ns, monotonic_ns)


class SequentialIds:
    """The `Ids` port, predictable: 32 hex digits that count up from `first`, in order like the real ones."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def transaction(self) -> str:
        """The next id, in order."""
        number, self._next = self._next, self._next + 1
        # The low half is what hop ids are made from; spread so that hops of neighbouring transactions look unlike.
        return f"{number:016x}{(number * 0x9E3779B97F4A7C15) & (2**64 - 1):016x}"


class RecordingSink:
    """The `Sink` port: keeps every pulse it is told, in order.

    Args:
        raises: raise this from every `receive`, to see that nothing else is harmed.
    """

    def __init__(self, *, raises: BaseException | None = None) -> None:
        self.pulses: list[Pulse] = []
        self.batches = 0
        self.closed = False
        self._raises = raises

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """Keep the pulses, and count the call in `batches`; with `raises`, raise that instead."""
        if self._raises is not None:
            raise self._raises
        self.batches += 1
        self.pulses.extend(pulses)

    def close(self, timeout: float) -> None:
        """Set `closed`."""
        self.closed = True

    def kinds(self, transaction: str | None = None) -> list[str]:
        """The kinds of the pulses so far, of one transaction or of all."""
        return [pulse.kind for pulse in self.pulses if transaction is None or pulse.transaction == transaction]
