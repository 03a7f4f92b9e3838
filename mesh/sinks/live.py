"""A sink for subscribers in this process: tests, and a view of what is going on now."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

from bitactor.messages.pulse import Pulse

_log = logging.getLogger("bitactor.sinks")

PulseFilter = Callable[[Pulse], bool]


class Subscription:
    """The pulses one subscriber has not read yet, newest kept: with more than `limit` the oldest go, counted in
    `dropped`.

    Read it with `async for` (one reader at a time, on any loop; it ends when sink or subscription is closed and all
    is read), or by `drain()` from any thread.
    """

    def __init__(self, accepts: PulseFilter | None, limit: int, leave: Callable[[Subscription], None]) -> None:
        self._accepts = accepts
        self._pulses: deque[Pulse] = deque(maxlen=limit)
        self._leave = leave
        self._limit = limit
        self._dropped = 0
        self._closed = False
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def dropped(self) -> int:
        """How many pulses were thrown away because the subscriber did not keep up."""
        return self._dropped

    def drain(self) -> list[Pulse]:
        """All pulses that wait, without waiting for more."""
        drained: list[Pulse] = []
        while self._pulses:
            drained.append(self._pulses.popleft())
        return drained

    def close(self) -> None:
        """Receive no more pulses; those that wait can still be read.  Twice is once."""
        if not self._closed:
            self._closed = True
            self._leave(self)
            self._wake()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Pulse:
        while not self._pulses:
            if self._closed:
                raise StopAsyncIteration
            await self._wait_for_pulses()
        return self._pulses.popleft()

    async def _wait_for_pulses(self) -> None:
        if self._reader is not None:
            raise RuntimeError("somebody else reads this subscription; make one per reader")
        changed = asyncio.Event()
        self._reader = (asyncio.get_running_loop(), changed)
        try:
            # Only now look: what came before this line is in the queue, what comes after it sees the reader.
            if not self._pulses and not self._closed:
                await changed.wait()
        finally:
            self._reader = None

    def _push(self, pulses: Sequence[Pulse]) -> None:
        accepted = pulses if self._accepts is None else [pulse for pulse in pulses if self._accepts(pulse)]
        if not accepted:
            return
        self._dropped += max(0, len(self._pulses) + len(accepted) - self._limit)
        self._pulses.extend(accepted)
        self._wake()

    def _wake(self) -> None:
        reader = self._reader
        if reader is None:
            return
        loop, changed = reader
        try:
            loop.call_soon_threadsafe(changed.set)
        except RuntimeError:  # that loop is closed: nobody is waiting there any more
            self._reader = None


class LiveSink:
    """A sink that hands pulses to subscribers in this process; one that reads slowly, or not at all, is not waited
    for."""

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = Lock()
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether it takes no more pulses."""
        return self._closed

    def subscribe(self, accepts: PulseFilter | None = None, *, limit: int = 10_000) -> Subscription:
        """A subscription to the pulses from now on for which `accepts` is true (all, without one); at most `limit` wait
        to be read.

        A filter that raises ends its own subscription, nobody else's.
        """
        if limit < 1:
            raise ValueError(f"subscribe(limit={limit}): at least one pulse must have room")
        subscription = Subscription(accepts, limit, self._leave)
        with self._lock:
            if not self._closed:
                self._subscriptions = (*self._subscriptions, subscription)
                return subscription
        subscription.close()
        return subscription

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """Hand `pulses` out to the subscribers; never blocks."""
        for subscription in self._subscriptions:
            try:
                subscription._push(pulses)
            except Exception:
                _log.exception("the filter of a subscriber raised; the subscription is closed")
                subscription.close()

    def close(self, timeout: float) -> None:
        """End all subscriptions; readers get what waits, then the end.  Twice is once."""
        with self._lock:
            self._closed = True
        for subscription in self._subscriptions:
            subscription.close()

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)
