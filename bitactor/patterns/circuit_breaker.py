"""Circuit breaker: calls that keep failing are refused for a while, and then let through a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.messages.duration import nanoseconds
from bitactor.messages.outcome import Halt, Outcome
from bitactor.messages.values import shown
from bitactor.patterns.errors import CircuitOpen, Refused
from bitactor.patterns.options import (
    Exceptions,
    check_count,
    check_name,
    check_seconds,
    fix_exceptions,
    is_number,
    refuse,
    refuse_together,
)
from bitactor.ports import Clock

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half-open"

DEFAULT_FAILURES: Final = 5
DEFAULT_MINIMUM: Final = 10
PROBE_WAIT: Final = 1.0
"""`retry_after`, in seconds, of a call refused while others probe; nobody knows how long a probe takes."""

SLICES: Final = 10
"""Number of slices of a window, which are forgotten one after the other."""


@dataclass(frozen=True)
class CircuitBreaker(Policy):
    """A circuit that is closed, opens on failures, and closes again by way of half-open.

        CircuitBreaker("partner-api", failures=5, open_for=30.0)
        CircuitBreaker("search", failure_rate=0.5, window=60.0, minimum=20, counts=(ConnectionError, TimeoutError))

    *Closed*: calls go through, and failures are counted.  *Open*: calls fail at once with `CircuitOpen`, whose
    `retry_after` says how many seconds are left.  *Half-open*, after `open_for`: at most `probes` calls at once go
    through; `successes` of them close the circuit, one failure opens it again.  A call that began before the state
    changed does not count any more.

    Args:
        failures: so many in a row open it (5 unless told otherwise); or else
        failure_rate, window, minimum: this share (0 … 1) of the calls of the last `window` seconds, if they were
            `minimum` (10) or more.
        open_for: seconds.
        probes: calls let through at once while half-open.
        successes: probes that must succeed.
        counts: errors that are failures, `Retry` and `Fail` of the step among them.  Any other error means that the
            other side answered: it counts as a success.
        ignores: errors that say nothing, neither failure nor success; by default those of patterns that did not let the
            call through. `Halt`, and being cancelled, always say nothing; being cancelled because the attempt's time
            was over is a failure.

    Raises:
        DefinitionError: an option is invalid, or two exclude each other.
    """

    pattern: ClassVar[str] = "circuit breaker"
    name: str
    failures: int | None = None
    failure_rate: float | None = None
    window: float | None = None
    minimum: int | None = None
    open_for: float = 30.0
    probes: int = 1
    successes: int = 1
    counts: Exceptions = Exception
    ignores: Exceptions = (Refused,)

    def __post_init__(self) -> None:
        check_name(self)
        check_count(self, "failures", optional=True)
        check_seconds(self, "window", optional=True)
        check_count(self, "minimum", optional=True)
        rate = self.failure_rate
        if rate is None:
            for option in ("window", "minimum"):
                if getattr(self, option) is not None:
                    raise refuse(self, option, "it belongs to failure_rate=; give that too, or leave it out")
        elif not is_number(rate) or not 0 < rate <= 1:
            raise refuse(self, "failure_rate", "give a share, more than 0 and at most 1")
        elif self.failures is not None:
            raise refuse_together(self, f"failures={self.failures!r}, failure_rate={rate!r}; give one of them")
        elif self.window is None:
            raise refuse(self, "failure_rate", "say of how many seconds: give window= too")
        for option in ("probes", "successes"):
            check_count(self, option)
        check_seconds(self, "open_for")
        fix_exceptions(self, "counts", without=Halt)
        fix_exceptions(self, "ignores", without=Halt, empty=True)

    @override
    def open(self, clock: Clock) -> CircuitBreakerState:
        return CircuitBreakerState(self, clock)

    def tally(self) -> Tally:
        """A fresh counter of failures, in a row or by rate, as the options say."""
        if self.failure_rate is None:
            return ConsecutiveFailures(self.failures or DEFAULT_FAILURES)
        assert self.window is not None
        return FailureRate(self.failure_rate, nanoseconds(self.window), self.minimum or DEFAULT_MINIMUM)


class ConsecutiveFailures:
    """Opens at `limit` failures without a success between them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0

    def record(self, now_ns: int, failed: bool) -> bool:
        """Count one call at `now_ns`; True: there are enough failures to open the circuit."""
        self._failures = self._failures + 1 if failed else 0
        return self._failures >= self._limit

    def counted(self, now_ns: int) -> tuple[int, int]:
        """(calls, failures among them) that count at `now_ns`."""
        return self._failures, self._failures

    def reset(self) -> None:
        """Forget all calls."""
        self._failures = 0


class FailureRate:
    """Opens when `rate` of the calls in the last `window_ns` failed, once there were `minimum`.

    Counted in ten slices of the window, so memory does not grow with traffic: a call is forgotten after nine to ten
    tenths of the window.
    """

    def __init__(self, rate: float, window_ns: int, minimum: int) -> None:
        self._rate = rate
        self._slice_ns = max(1, window_ns // SLICES)
        self._minimum = minimum
        self._slices: deque[list[int]] = deque()  # [number, calls, failures] of slices in which something was called

    def record(self, now_ns: int, failed: bool) -> bool:
        number = now_ns // self._slice_ns
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += failed
        calls, failures = self.counted(now_ns)
        return failed and calls >= self._minimum and failures >= self._rate * calls

    def counted(self, now_ns: int) -> tuple[int, int]:
        oldest = now_ns // self._slice_ns - SLICES + 1
        while self._slices and self._slices[0][0] < oldest:
            self._slices.popleft()
        return sum(calls for _, calls, _ in self._slices), sum(failures for _, _, failures in self._slices)

    def reset(self) -> None:
        self._slices.clear()


Tally = ConsecutiveFailures | FailureRate


class CircuitBreakerState(PolicyState):
    """The circuit's state, and the tally of its calls."""

    def __init__(self, policy: CircuitBreaker, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._tally = policy.tally()
        self._state = CLOSED
        # Number of state changes so far; the outcome of a call that began in an earlier state does not count.
        self._generation = 0
        self._until_ns = 0
        self._probing = self._successes = 0
        self._calls = self._rejected = self._failed = self._opened = 0
        self._last_error = ""

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """The outcome of each call that was let through is counted, unless the state has changed since it began.

        Raises:
            CircuitOpen: it is open, or half-open with all its probes under way.
        """
        generation = self._enter()
        try:
            value = await proceed()
        except asyncio.CancelledError:
            deadline_ns = call.deadline()
            over = deadline_ns is not None and self._clock.monotonic_ns() >= deadline_ns
            self._leave(generation, True if over else None, "the attempt's time was over")
            raise
        except BaseException as error:
            self._leave(generation, self._failure(error), shown(error))
            raise
        is_outcome = issubclass(type(value), Outcome)
        self._leave(generation, self._failure(value) if is_outcome else False, shown(value) if is_outcome else "")
        return value

    @override
    def about(self) -> Mapping[str, Any]:
        now_ns = self._clock.monotonic_ns()
        counted, failures = self._tally.counted(now_ns)
        state = HALF_OPEN if self._state == OPEN and now_ns >= self._until_ns else self._state
        return {
            "state": state,
            "calls": self._calls,
            "failed": self._failed,
            "rejected": self._rejected,
            "opened": self._opened,
            "counted": counted,
            "failures": failures,
            "probing": self._probing if state == HALF_OPEN else 0,
            "retry_after": (self._until_ns - now_ns) / 1e9 if state == OPEN else 0.0,
            "last_error": self._last_error,
        }

    def _enter(self) -> int:
        self._calls += 1
        now_ns = self._clock.monotonic_ns()
        if self._state == OPEN:
            if now_ns < self._until_ns:
                raise self._refuse((self._until_ns - now_ns) / 1e9, "is open")
            self._change_state(HALF_OPEN)
        if self._state == HALF_OPEN:
            if self._probing >= self._policy.probes:
                raise self._refuse(min(self._policy.open_for, PROBE_WAIT), "is half-open, and its probes are under way")
            self._probing += 1
        return self._generation

    def _refuse(self, seconds: float, how: str) -> CircuitOpen:
        self._rejected += 1
        last = f" (last failure: {self._last_error})" if self._last_error else ""
        return CircuitOpen(f"circuit {self._policy.name!r} {how}; try again in {seconds:.3g} s{last}", seconds)

    def _failure(self, error: BaseException) -> bool | None:
        """Whether an error, or a verdict, is a failure; None: it says nothing."""
        kind = type(error)  # its `__class__` may be anything
        if not issubclass(kind, Exception) or issubclass(kind, (Halt, self._policy.ignores)):
            return None
        return issubclass(kind, self._policy.counts)

    def _leave(self, generation: int, failed: bool | None, what: str) -> None:
        if failed:
            self._failed += 1
            self._last_error = what
        if generation != self._generation:
            return
        if self._state == HALF_OPEN:
            self._probing -= 1
            self._probed(failed)
        elif failed is not None and self._tally.record(self._clock.monotonic_ns(), failed):
            self._change_state(OPEN)

    def _probed(self, failed: bool | None) -> None:
        if failed:
            self._change_state(OPEN)
        elif failed is False:
            self._successes += 1
            if self._successes >= self._policy.successes:
                self._change_state(CLOSED)

    def _change_state(self, state: str) -> None:
        self._state = state
        self._generation += 1
        self._probing = self._successes = 0
        self._tally.reset()
        if state == OPEN:
            self._opened += 1
            self._until_ns = self._clock.monotonic_ns() + nanoseconds(self._policy.open_for)
