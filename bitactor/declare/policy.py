"""The port of a resilience pattern: a policy declared at a step, and its state, which lives in the mesh across runs.

    limiter = RateLimit("partner-api", per_second=10, burst=5)

    @workflow.step(policies=[limiter, CircuitBreaker("partner-api")])
    async def fetch(url: str) -> dict: ...

The first policy is the outermost: it sees the call first and its outcome last.  Policies wrap one attempt of the step,
wherever that runs. Two policies of one class and one name share one state; what they were declared with must then be
the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from bitactor.declare.then import Then
from bitactor.messages.outcome import Continue, Outcome
from bitactor.ports import Clock

Proceed = Callable[[], Awaitable[Any]]
"""Runs what is inside a policy: the next policy, in the end the step's function where the step's `spawn` says; may be
called several times."""


def is_verdict(value: Any) -> bool:
    """Whether `value` is what a step decides (`Retry`, `Fail`, `Halt`, further steps): it is for the supervisor to
    judge, no value and no error, and passes through patterns."""
    return issubclass(type(value), (Outcome, Continue, Then))


class Call(NamedTuple):
    """One attempt of one step, as a policy sees it."""

    workflow: str
    """The workflow's name."""
    step: str
    """The path of the step."""
    transaction: str
    """The transaction's id."""
    attempt: int
    """Number of the attempt, from 1."""
    arguments: Mapping[str, Any]
    """The arguments of the step's function, without `ctx` and resources."""
    deadline: Callable[[], int | None] = lambda: None
    """Monotonic time, in nanoseconds and as things stand, at which the mesh ends this attempt and cancels what still
    runs; None if nothing does.

    An attempt's time begins when the step's function first does, and a heartbeat puts its end off.  Once it has ended
    so, this is in the past.
    """


class PolicyState(ABC):
    """A policy's state: one for each mesh and name.  Used on the mesh's loop only."""

    @abstractmethod
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Run `proceed` as the pattern demands; the value is the step's value, an error the step's error.

        Cancellation passes through, and leaves the state as if the call had never been, or as failed, never in between.
        """

    @abstractmethod
    def about(self) -> Mapping[str, Any]:
        """The state in plain data, for people."""

    def drain(self) -> None:  # noqa: B027 - most hold nothing back
        """Hold nothing back any more, for present and future calls, because the mesh begins to close."""

    async def close(self, timeout: float) -> None:  # noqa: B027 - most have nothing to flush
        """Flush what is held back, within `timeout` seconds; nothing may be lost silently."""


class Policy(ABC):
    """A policy as declared: a frozen description that can be compared, named uniquely within its class."""

    pattern: ClassVar[str]
    """The pattern as it is printed: `rate limit`, `circuit breaker`, …"""
    name: str

    @abstractmethod
    def open(self, clock: Clock) -> PolicyState:
        """A fresh state for one mesh."""

    def check(self, takes: Sequence[str]) -> None:  # noqa: B027 - most need nothing of the step
        """Check the policy against the names of the step's arguments; called when the step is compiled.

        Raises:
            DefinitionError: the policy refers to one that is not there.
        """

    @property
    def key(self) -> tuple[str, str]:
        """The key of the policy's state in a mesh: pattern and name."""
        return self.pattern, self.name
