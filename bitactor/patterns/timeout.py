"""Timeout: a call that takes too long is cancelled, and may be answered by a fallback."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.messages.duration import nanoseconds
from bitactor.patterns.errors import TimedOut
from bitactor.patterns.options import check_name, check_seconds
from bitactor.patterns.substitute import MISSING, Substitute, substitute
from bitactor.patterns.tasks import TaskResult, cancel_and_wait, result_of, start, wait_for_end
from bitactor.ports import Clock


@dataclass(frozen=True)
class Timeout(Policy):
    """Cancels the call after `seconds`; then the answer is the fallback, or the error `TimedOut`.

        Timeout("quotes", 0.5, fallback=[])
        Timeout("quotes", 0.5, fallback=lambda symbol, error: last_known(symbol))

    The step's own `timeout=` is the mesh's: it ends the attempt, and leaves the hop in doubt, to be undone as such.
    This is an error like any
    other inside the attempt: for what may safely be given up, such as reading.  A call that ends with a value after
    all, although it was cancelled, has ended with that value.

    Args:
        seconds: how long it may take.
        fallback: a value, or a function (`def` or `async def`) of `error` and any of the step's arguments, by name.
        grace: seconds that a cancelled call may take to clean up before the answer is given without waiting any longer;
            it is then counted as a `zombie` until it ends.

    Raises:
        DefinitionError: an option is invalid.
    """

    pattern: ClassVar[str] = "timeout"
    name: str
    seconds: float
    fallback: Any = field(default=MISSING, hash=False)
    grace: float = 1.0
    substitute: Substitute | None = field(init=False, repr=False, compare=False)
    """The fallback, as a value or a function to call; None: there is none."""

    def __post_init__(self) -> None:
        check_name(self)
        check_seconds(self, "seconds")
        check_seconds(self, "grace", zero=True)
        what = f"Timeout({self.name!r}): fallback={self.fallback!r}"
        object.__setattr__(self, "substitute", None if self.fallback is MISSING else substitute(self.fallback, what))

    @override
    def check(self, takes: Sequence[str]) -> None:
        if self.substitute is not None:
            self.substitute.check(takes)

    @override
    def open(self, clock: Clock) -> TimeoutState:
        return TimeoutState(self, clock)


class TimeoutState(PolicyState):
    """Counts of calls and timeouts, and the cancelled calls that have not ended yet."""

    def __init__(self, policy: Timeout, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._limit_ns = nanoseconds(policy.seconds)
        self._grace_ns = nanoseconds(policy.grace)
        self._zombies: set[asyncio.Task[TaskResult]] = set()
        self._calls = self._timed_out = self._fell_back = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """A call that has not ended after `seconds` is cancelled, and given `grace` to end.

        Raises:
            TimedOut: it took longer, and there is no fallback.
        """
        self._calls += 1
        task = start(proceed)
        try:
            in_time = await wait_for_end(task, self._clock, self._clock.monotonic_ns() + self._limit_ns)
            if not in_time:
                task.cancel()
                await wait_for_end(task, self._clock, self._clock.monotonic_ns() + self._grace_ns)
        except asyncio.CancelledError:
            await cancel_and_wait([task])
            raise
        if not task.done():
            self._zombies.add(task)
            task.add_done_callback(self._zombies.discard)
        elif in_time or result_of(task).error is None:
            return result_of(task).get()
        return await self._late(call, result_of(task).error if task.done() else None)

    @override
    def about(self) -> Mapping[str, Any]:
        return {
            "calls": self._calls,
            "timed_out": self._timed_out,
            "fell_back": self._fell_back,
            "zombies": len(self._zombies),
        }

    @override
    async def close(self, timeout: float) -> None:
        """Wait for cancelled calls that have not ended, at most `timeout` seconds."""
        if self._zombies:
            await asyncio.wait(self._zombies, timeout=timeout)

    async def _late(self, call: Call, cause: BaseException | None) -> Any:
        self._timed_out += 1
        policy = self._policy
        error = TimedOut(
            f"{call.workflow}/{call.step}: took longer than the {policy.seconds:g} s of timeout {policy.name!r}"
        )
        error.__cause__ = None if isinstance(cause, asyncio.CancelledError) else cause
        if policy.substitute is None:
            raise error
        self._fell_back += 1
        return await policy.substitute(call.arguments, error=error)
