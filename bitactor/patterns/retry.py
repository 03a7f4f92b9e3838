"""Retry within one attempt of a step, for errors that are cheap and soon over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Final

from typing_extensions import override

from bitactor.declare.backoff import Backoff
from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.errors import DefinitionError
from bitactor.messages.duration import nanoseconds
from bitactor.messages.outcome import Outcome
from bitactor.patterns.options import (
    Exceptions,
    check_count,
    check_name,
    check_seconds,
    fix_exceptions,
    is_number,
    refuse,
)
from bitactor.patterns.tasks import sleep_until
from bitactor.ports import Clock

DEFAULT_BACKOFF: Final = Backoff(initial=0.05, cap=1.0)


@dataclass(frozen=True)
class RetryPolicy(Policy):
    """Calls again, up to `attempts` times in all, within one attempt of the step.

        RetryPolicy("blips", attempts=3, backoff=Backoff(initial=0.02, cap=0.2), on=(ConnectionResetError, CircuitOpen))

    The step's own `retries=` are durable: each is a hop with a pulse, survives a crash, waits without holding anything,
    and can take hours. These leave no trace in the journal, share one attempt's timeout, and are lost with the process;
    they are for what a moment mends.

    Args:
        attempts: calls in all.
        backoff: how long to wait between two.
        on: errors that are worth another call.  `Retry`, `Fail` and `Halt` are the step's decisions and pass through.
        max_wait: seconds.  An error whose `retry_after` (an attribute, in seconds) asks for a longer pause than the
            backoff gets it, up to this; one that asks for more is raised at once, and so is one whose pause would
            outlast the attempt.

    Raises:
        DefinitionError: an option is invalid.
    """

    pattern: ClassVar[str] = "retry"
    name: str
    attempts: int = 3
    backoff: Backoff = DEFAULT_BACKOFF
    on: Exceptions = Exception
    max_wait: float = 30.0

    def __post_init__(self) -> None:
        check_name(self)
        check_count(self, "attempts", least=2)
        if not isinstance(self.backoff, Backoff):
            raise refuse(self, "backoff", "give a Backoff(…)")
        fix_exceptions(self, "on")
        check_seconds(self, "max_wait", zero=True)

    @override
    def open(self, clock: Clock) -> RetryState:
        return RetryState(self, clock)


class RetryState(PolicyState):
    """Counts of calls and tries, and how many calls wait for their next try."""

    def __init__(self, policy: RetryPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._calls = self._retried = self._recovered = self._exhausted = self._waiting = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """The error of the last try is raised once tries, or the time for another pause, are used up."""
        self._calls += 1
        tries = 0
        while True:
            tries += 1
            try:
                value = await proceed()
            except Outcome:
                raise
            except self._policy.on as error:
                until_ns = self._pause(call, tries, error)
                if until_ns is None:
                    self._exhausted += 1
                    raise
            else:
                self._recovered += tries > 1
                return value
            await self._wait(until_ns)
            self._retried += 1

    @override
    def about(self) -> Mapping[str, Any]:
        return {
            "calls": self._calls,
            "retried": self._retried,
            "recovered": self._recovered,
            "exhausted": self._exhausted,
            "waiting": self._waiting,
        }

    def _pause(self, call: Call, tries: int, error: Exception) -> int | None:
        """Monotonic time at which the next try is due; None: there is to be none."""
        if tries >= self._policy.attempts or isinstance(error, DefinitionError):
            return None  # what is declared wrong stays so
        pause_ns = self._policy.backoff.delay_ns(tries, _fraction(call, tries))
        asked = getattr(error, "retry_after", None)
        if asked is not None and is_number(asked) and asked > 0:
            if asked > self._policy.max_wait:
                return None
            pause_ns = max(pause_ns, nanoseconds(asked))
        until_ns = self._clock.monotonic_ns() + pause_ns
        deadline_ns = call.deadline()
        return None if deadline_ns is not None and until_ns >= deadline_ns else until_ns

    async def _wait(self, until_ns: int) -> None:
        self._waiting += 1
        try:
            await sleep_until(self._clock, until_ns)
        finally:
            self._waiting -= 1


def _fraction(call: Call, tries: int) -> float:
    """Jitter between 0 and 1: different for each hop, the same when the hop is run again."""
    named = f"{call.transaction}/{call.step}/{call.attempt}/{tries}".encode()
    return int.from_bytes(blake2b(named, digest_size=4).digest()) / 0xFFFF_FFFF
