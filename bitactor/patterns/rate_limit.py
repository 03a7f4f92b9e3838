"""Rate limit: a limit on calls per time; calls above it wait for their turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.messages.duration import nanoseconds
from bitactor.patterns.errors import RateLimited
from bitactor.patterns.options import (
    check_count,
    check_name,
    check_seconds,
    is_number,
    refuse,
    refuse_together,
)
from bitactor.patterns.wait_queue import WaitQueue
from bitactor.ports import Clock, TimerHandle


@dataclass(frozen=True)
class RateLimit(Policy):
    """A token bucket: calls start at most `burst` at once and then at the given rate, in the order in which they came.

        RateLimit("partner-api", per_second=10, burst=5)
        RateLimit("quota", rate=5000, per=3600.0, max_wait=30.0)

    In any stretch of `t` seconds at most `burst + rate / per * t` calls start, over all transactions of the mesh.

    Args:
        name: limits of one name are one limit.
        per_second: calls a second; or else
        rate, per: so many calls in so many seconds (`per` is 1 unless told otherwise).
        burst: calls that may start at once after a pause.
        max_wait: seconds that a call may wait for its turn; one whose turn would come later, or after its attempt's
            end, fails at once with `RateLimited`.  None: it waits as long as its transaction may last (an attempt's own
            time has not begun).

    Raises:
        DefinitionError: an option is invalid.
    """

    pattern: ClassVar[str] = "rate limit"
    name: str
    per_second: float | None = None
    rate: float | None = None
    per: float | None = None
    burst: int = 1
    max_wait: float | None = None

    def __post_init__(self) -> None:
        check_name(self)
        if (self.per_second is None) == (self.rate is None):
            raise refuse_together(self, f"per_second={self.per_second!r}, rate={self.rate!r}; give one of them")
        if self.rate is None and self.per is not None:
            raise refuse(self, "per", "it belongs to rate=; leave it out beside per_second=")
        check_seconds(self, "per", optional=True)
        for option in ("per_second", "rate"):
            value = getattr(self, option)
            if value is not None and not (is_number(value) and value > 0 and self.interval_ns):
                raise refuse(self, option, "give a number of calls, more than zero and less than a billion a second")
        check_count(self, "burst")
        check_seconds(self, "max_wait", zero=True, optional=True)

    @property
    def interval_ns(self) -> int:
        """Nanoseconds between two calls at the given rate, rounded up, so that the rate is never exceeded; 0 above a
        billion calls a second."""
        calls = self.per_second if self.rate is None else self.rate
        assert calls is not None
        exact = (self.per or 1.0) * 1e9 / calls
        return math.ceil(exact) if exact >= 1 else 0

    @override
    def open(self, clock: Clock) -> RateLimitState:
        return RateLimitState(self, clock)


class RateLimitState(PolicyState):
    """The bucket, as the one time at which it will be full again: the generic cell rate algorithm (GCRA, ITU-T
    I.371)."""

    def __init__(self, policy: RateLimit, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._interval_ns = policy.interval_ns
        self._slack_ns = (policy.burst - 1) * self._interval_ns
        self._max_wait_ns = None if policy.max_wait is None else nanoseconds(policy.max_wait)
        self._full_at_ns = clock.monotonic_ns()
        self._queue = WaitQueue()
        self._timer: TimerHandle | None = None
        self._calls = self._started = self._waited = self._rejected = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Calls start in the order in which they came.

        Raises:
            RateLimited: the turn would come too late.
        """
        self._calls += 1
        if len(self._queue) or self._next_start_ns() > self._clock.monotonic_ns():
            await self._wait(call)
        else:
            self._start_call()
        return await proceed()

    @override
    def about(self) -> Mapping[str, Any]:
        missing = max(0, self._full_at_ns - self._clock.monotonic_ns())
        return {
            "calls": self._calls,
            "started": self._started,
            "waited": self._waited,
            "rejected": self._rejected,
            "waiting": len(self._queue),
            "available": self._policy.burst - math.ceil(missing / self._interval_ns),
        }

    def _next_start_ns(self) -> int:
        """Monotonic time from which the next call may start."""
        return self._full_at_ns - self._slack_ns

    def _start_call(self) -> None:
        self._full_at_ns = max(self._full_at_ns, self._clock.monotonic_ns()) + self._interval_ns
        self._started += 1

    async def _wait(self, call: Call) -> None:
        self._refuse_if_late(call)
        with self._queue.waiter(self._wake_first) as waiter:
            if len(self._queue) == 1:
                self._wake_first()
            await waiter
            self._start_call()
            self._waited += 1

    def _refuse_if_late(self, call: Call) -> None:
        now_ns = self._clock.monotonic_ns()
        start_ns = max(now_ns, self._next_start_ns() + len(self._queue) * self._interval_ns)
        wait_ns = start_ns - now_ns
        late = self._max_wait_ns is not None and wait_ns > self._max_wait_ns
        deadline_ns = call.deadline()
        if late or (deadline_ns is not None and start_ns >= deadline_ns):
            self._rejected += 1
            bound = f"max_wait={self._policy.max_wait:g} s" if late else "the attempt would have ended by then"
            seconds = wait_ns / 1e9
            raise RateLimited(
                f"rate limit {self._policy.name!r}: the next turn is in {seconds:.3g} s, and {bound}", seconds
            )

    def _wake_first(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        first = self._queue.first()
        if first is None:
            return
        if self._next_start_ns() <= self._clock.monotonic_ns():
            first.set_result(True)
        else:
            self._timer = self._clock.call_at(self._next_start_ns(), self._wake_first)
