"""What the tests of patterns share: calls of a policy's state under a clock that stands still, and steps that end when
they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bitactor.declare.policy import Call, Policy, PolicyState
from bitactor.testing import FakeClock

BOUND = 10.0
"""Seconds after which a test that waits has failed; never reached when all is well."""


def call(arguments: Mapping[str, Any] | None = None, **fields: Any) -> Call:
    return Call("shop", "price", "0190" * 8, 1, arguments or {})._replace(**fields)


def at(when_ns: int) -> Callable[[], int | None]:
    """The deadline of a call."""
    return lambda: when_ns


async def turns(count: int = 10) -> None:
    """Let the loop do what waits for nobody else."""
    for _ in range(count):
        await asyncio.sleep(0)


async def soon(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(BOUND):
        return await awaitable


class Step:
    """A step's function, call by call; those under way end when they are told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.open: list[asyncio.Future[Any]] = []

    async def __call__(self) -> Any:
        self.begun += 1
        ends = asyncio.get_running_loop().create_future()
        self.open.append(ends)
        try:
            return await ends
        except asyncio.CancelledError:
            self.cancelled += 1
            self.open.remove(ends)
            raise

    def end(self, outcome: Any = None, index: int = 0) -> None:
        """End one: by an exception, or with a value."""
        ends = self.open.pop(index)
        if isinstance(outcome, BaseException):
            ends.set_exception(outcome)
        else:
            ends.set_result(outcome)


class Bench:
    """One policy's state, its clock, and the calls that were made."""

    def __init__(self, policy: Policy) -> None:
        self.clock = FakeClock()
        self.clock.advance(1000.0)
        self.policy = policy
        self.state: PolicyState = policy.open(self.clock)
        self.tasks: list[asyncio.Task[Any]] = []

    async def now(self, outcome: Any = None, arguments: Mapping[str, Any] | None = None, **fields: Any) -> Any:
        """A call whose step ends at once; its value, or what it raises."""
        return await soon(self.state.around(call(arguments, **fields), answering(outcome)))

    def begin(
        self, step: Callable[[], Awaitable[Any]], arguments: Mapping[str, Any] | None = None, **fields: Any
    ) -> asyncio.Task[Any]:
        """A call beside."""
        task = asyncio.ensure_future(self.state.around(call(arguments, **fields), step))
        self.tasks.append(task)
        return task

    async def pass_time(self, seconds: float) -> None:
        await turns()
        self.clock.advance(seconds)
        await turns()

    def __getitem__(self, counter: str) -> Any:
        return self.state.about()[counter]


def answering(outcome: Any) -> Callable[[], Awaitable[Any]]:
    """A step that raises `outcome`, or returns it."""

    async def step() -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return step
