"""The fake clock of the meshes of a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Final, TypeVar

from typing_extensions import override

from bitactor.messages.duration import nanoseconds
from bitactor.testing import FakeClock
from mesh.runtime.node import Node
from mesh.testing.activity import QUIESCENT, WORKING, activity, has_unfinished, steps_in_threads, turns
from mesh.testing.portal import Portal, in_a_loop

T = TypeVar("T")

IDLE: Final = 0.02
"""Real seconds that a suspended coroutine is given by default before time jumps."""
WITHIN: Final = 10.0
_POLL_SECONDS: Final = 0.001
"""Real seconds between two looks at a function that runs in a thread."""


class MeshClock(FakeClock):
    """A `FakeClock` that knows the meshes which live by it: it lets time pass in steps, and lets them do what follows
    from each.

    In a coroutine, `advance` lets time pass at once, and what follows happens when the loop next turns; `pass_time`
    waits for that.
    """

    def __init__(self, portal: Callable[[], Portal], progress: Callable[[], int]) -> None:
        super().__init__()
        self._portal = portal
        self._progress = progress  # a number that changes when anything happens in one of the meshes
        self._nodes: list[Node] = []

    def watch(self, node: Node) -> None:
        """Take note of a node that lives by this clock."""
        self._nodes.append(node)

    @override
    def advance(self, seconds: float, *, wait: bool = True) -> None:
        """In a test that is no coroutine this is `pass_time`, and blocks."""
        if in_a_loop():
            super().advance(seconds)
        else:
            self._portal().call(self.pass_time, seconds, wait=wait)

    async def pass_time(self, seconds: float, *, wait: bool = True, idle: float = IDLE, within: float = WITHIN) -> None:
        """`advance` from timer to timer, and let the meshes do what follows from each before the next.

        Args:
            seconds: by this clock.
            wait: let functions end that run in a thread or a process, first and in between; without that they come to
                exceed their time.
            idle: as for `run_until`.
            within: real seconds to wait for such functions at most.

        Raises:
            TimeoutError: they have not ended within that.
            ValueError: time does not go back.
        """
        if not seconds >= 0:
            raise ValueError(f"pass_time({seconds!r}): time does not go back")
        until = self.monotonic_ns() + nanoseconds(seconds)
        deadline = asyncio.get_running_loop().time() + within
        while True:
            while not await self._quiesce(wait, idle):
                if asyncio.get_running_loop().time() > deadline:
                    raise TimeoutError(self._timeout_message(within))
            due = self.next_timer_ns()
            if due is None or due > until:
                break
            self.advance_to(due)
        if until > self.monotonic_ns():
            self.advance_to(until)

    async def _quiesce(self, wait: bool, idle: float) -> bool:
        """Let everything happen that takes no time; True: nothing else is left to happen."""
        before = self._progress()
        await turns()
        level = activity(self._nodes)
        if level != QUIESCENT and self._progress() == before:
            await asyncio.sleep(_POLL_SECONDS if level == WORKING and wait else idle)
        return self._progress() == before and not (wait and activity(self._nodes) == WORKING)

    async def run_until(self, awaited: Awaitable[T], *, idle: float = IDLE, within: float = WITHIN) -> T:
        """Let time pass until `awaited` is done, and return what it gives.

        Time jumps from timer to timer, and only while nothing else happens: while a function runs in a thread or a
        process, time stands.

        Args:
            awaited: `tx.result()`, `tx.ended()`, …
            idle: real seconds a coroutine that is suspended is given at each jump, for it may wait for something real,
                such as a socket.
            within: real seconds after which it is given up.

        Raises:
            TimeoutError: given up; it says what is still running.
        """
        future = asyncio.ensure_future(awaited)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        try:
            while not await self._step(future, idle):
                if loop.time() > deadline:
                    raise TimeoutError(self._timeout_message(within))
            return future.result()
        finally:
            future.cancel()

    @contextlib.contextmanager
    def passing(self, *, idle: float = IDLE) -> Iterator[None]:
        """While transactions run, time passes by itself in this block, as in `run_until`.

        For tests that are no coroutines: `with fake_clock.passing(): tx.result(timeout=10)`.
        """
        passing: asyncio.Task[None] | Future[None]
        if in_a_loop():
            passing = asyncio.get_running_loop().create_task(self._pass_for_ever(idle), name="passing")
        else:
            passing = self._portal().start(self._pass_for_ever(idle))
        try:
            yield
        finally:
            passing.cancel()

    async def _pass_for_ever(self, idle: float) -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        while True:
            if has_unfinished(self._nodes):
                await self._step(never, idle)
            else:
                await asyncio.sleep(_POLL_SECONDS)

    async def _step(self, future: asyncio.Future[T], idle: float) -> bool:
        """Let everything happen that takes no time, then jump once if there is nothing else to wait for; whether
        `future` is done."""
        before = self._progress()
        await turns()
        if future.done():
            return True
        if self._progress() != before:
            return False
        level = activity(self._nodes)
        due = self.next_timer_ns()
        if level == WORKING:
            await asyncio.wait((future,), timeout=_POLL_SECONDS)
        elif level != QUIESCENT or due is None:
            await asyncio.wait((future,), timeout=idle)
        quiet = level != WORKING and not future.done() and self._progress() == before
        if quiet and due is not None and (level == QUIESCENT or activity(self._nodes) != WORKING):
            self.advance_to(due)
        return future.done()

    def _timeout_message(self, within: float) -> str:
        stuck = steps_in_threads(self._nodes)
        if stuck:
            return (
                f"after {within:g} s of real time {' and '.join(map(repr, stuck))} still runs in a thread or process, "
                "and time stands "
                "meanwhile; let it end, or let it exceed its time with `pass_time(…, wait=False)`"
            )
        if self.next_timer_ns() is None:
            return f"after {within:g} s of real time what was awaited has not come, and nothing waits for time to pass"
        passed = self.monotonic_ns() / 1e9
        return (
            f"after {within:g} s of real time, {passed:,.0f} s by this clock, what was awaited has not come; "
            "time alone does not bring it"
        )
