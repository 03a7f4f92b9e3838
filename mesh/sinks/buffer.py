"""A bounded buffer, without a lock, for pulses on their way from the loop's thread to one worker thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Event
from typing import Generic, TypeVar

P = TypeVar("P")
"""A pulse, or what stands for one."""


class PulseBuffer(Generic[P]):
    """A buffer of at most `limit` pulses; what does not fit is dropped and counted, newest first.

    One thread calls `put`, one calls `wait` and `take`; each counter has one writer, so none needs a lock.  A `put`
    costs one append; the worker is woken only when it said that it sleeps.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: deque[Sequence[P]] = deque()
        self.accepted = 0  # pulses that found room
        self._taken = 0
        self.dropped = 0  # pulses that found no room, or came after `close`
        self._asleep = False
        self._wake = Event()
        self._closing = Event()

    @property
    def waiting(self) -> int:
        """How many pulses were put and are not yet taken."""
        return self.accepted - self._taken

    @property
    def closing(self) -> bool:
        """Whether `close` was called; what is left can still be taken."""
        return self._closing.is_set()

    def put(self, pulses: Sequence[P]) -> None:
        """Keep `pulses` if there is room; never blocks, never raises."""
        count = len(pulses)
        free_space = 0 if self._closing.is_set() else self._limit - self.accepted + self._taken
        if count > free_space:
            self.dropped += count - free_space
            pulses, count = pulses[:free_space], free_space
        if not count:
            return
        self.accepted += count
        self._batches.append(tuple(pulses))
        if self._asleep:
            self._asleep = False
            self._wake.set()

    def take(self, most: int) -> list[P]:
        """The oldest pulses, about `most` of them (a batch is not split), or none."""
        taken: list[P] = []
        while self._batches and len(taken) < most:
            taken.extend(self._batches.popleft())
        self._taken += len(taken)
        return taken

    def wait(self, has_other: Callable[[], bool] = lambda: False) -> None:
        """Sleep until there is a pulse to take, or something else as `has_other` says, of which `wake` tells; or the
        buffer is closing."""
        self._wake.clear()
        self._asleep = True
        # Only now look: a `put` before this line left its batch, one after it sees that we sleep.
        if not self._batches and not self._closing.is_set() and not has_other():
            self._wake.wait()
        self._asleep = False

    def wake(self) -> None:
        """Wake the worker, for something else than pulses; from any thread."""
        self._wake.set()

    def linger(self, seconds: float) -> None:
        """Let more pulses gather, unless the buffer is filling up or closing."""
        if self.waiting * 4 < self._limit:
            self.pause(seconds)

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond `close`."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """Take no more pulses, and wake whoever waits.  Twice is once."""
        self._closing.set()
        self._wake.set()
