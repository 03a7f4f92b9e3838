"""Bulkhead: a limit on concurrent calls, so that one slow neighbour does not take all capacity."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.messages.duration import nanoseconds
from bitactor.patterns.errors import BulkheadFull
from bitactor.patterns.options import check_count, check_name, check_seconds, refuse
from bitactor.patterns.wait_queue import WaitQueue
from bitactor.ports import Clock


@dataclass(frozen=True)
class Bulkhead(Policy):
    """Bounded concurrency, over all steps and transactions that share the name.

        Bulkhead("reports", concurrent=4, queue=20, max_wait=5.0)

    A step's `limit=` (a named pool) holds hops back before they are spawned, and takes any number; this holds back
    attempts of hops that are spawned, and refuses what is too much.

    Args:
        concurrent: calls under way at once.
        queue: calls that may wait for a place, in order; the next fails at once with `BulkheadFull`.
        max_wait: seconds one may wait for its place, then it fails likewise.  None: as long as its transaction may
            last.

    Raises:
        DefinitionError: an option is invalid.
    """

    pattern: ClassVar[str] = "bulkhead"
    name: str
    concurrent: int
    queue: int = 0
    max_wait: float | None = None

    def __post_init__(self) -> None:
        check_name(self)
        check_count(self, "concurrent")
        check_count(self, "queue", least=0)
        check_seconds(self, "max_wait", optional=True)
        if self.max_wait is not None and not self.queue:
            raise refuse(self, "max_wait", "nobody waits with queue=0; give queue= too")

    @override
    def open(self, clock: Clock) -> BulkheadState:
        return BulkheadState(self, clock)


class BulkheadState(PolicyState):
    """The calls under way, and those that wait for a place."""

    def __init__(self, policy: Bulkhead, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._queue = WaitQueue()
        self._running = self._calls = self._waited = self._rejected = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Calls start in the order in which they came, each once a place is free.

        Raises:
            BulkheadFull: no place, and none in the queue.
        """
        self._calls += 1
        if self._running < self._policy.concurrent and not len(self._queue):
            self._running += 1
        elif len(self._queue) < self._policy.queue:
            await self._wait()
        else:
            raise self._full(f"{self._running} calls are under way and {len(self._queue)} wait")
        try:
            return await proceed()
        finally:
            self._running -= 1
            self._wake_first()

    @override
    def about(self) -> Mapping[str, Any]:
        return {
            "calls": self._calls,
            "running": self._running,
            "waiting": len(self._queue),
            "waited": self._waited,
            "rejected": self._rejected,
        }

    async def _wait(self) -> None:
        with self._queue.waiter(self._wake_first) as waiter, ExitStack() as armed:
            if self._policy.max_wait is not None:
                until_ns = self._clock.monotonic_ns() + nanoseconds(self._policy.max_wait)
                timer = self._clock.call_at(until_ns, lambda: None if waiter.done() else waiter.set_result(False))
                armed.callback(timer.cancel)
            if not await waiter:
                raise self._full(f"no place was free within max_wait={self._policy.max_wait:g} s")
            self._running += 1
            self._waited += 1

    def _full(self, why: str) -> BulkheadFull:
        self._rejected += 1
        return BulkheadFull(f"bulkhead {self._policy.name!r}: {why}")

    def _wake_first(self) -> None:
        if self._running < self._policy.concurrent and (first := self._queue.first()) is not None:
            first.set_result(True)
