"""Lending a hop's permits while it waits for other hops."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType

from mesh.limits.pools import PermitSet


class PermitLender:
    """Lends a hop's permits while any of its code is inside `async with lender`, and reacquires them before it goes on.

    Of several waits at once the last one to end reacquires them.  A hop that is asked to stop, or has had to be
    answered for, reacquires nothing; its permits are released by then.  On the loop's thread only.
    """

    __slots__ = ("_permit_sets", "_reacquired", "_waits", "depth", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        self.loop = loop
        self.depth = depth  # how many hops wait for another above the transaction that this hop is of
        self._permit_sets: list[PermitSet] = []
        self._waits = 0
        self._reacquired: asyncio.Event | None = None

    def add(self, permit_set: PermitSet) -> None:
        """Lend `permit_set` as well.  Permit sets are reacquired in the order in which they were added, which is the
        order in which every hop acquires them."""
        self._permit_sets.append(permit_set)

    async def __aenter__(self) -> None:
        self._waits += 1
        if self._waits > 1:
            return
        if self._reacquired is None:
            self._reacquired = asyncio.Event()
        self._reacquired.set()
        for permit_set in self._permit_sets:
            permit_set.on_reacquired = self._reacquired.set
            permit_set.lend()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._reacquired is not None
        self._waits -= 1
        while not self._waits and not all(permit_set.reacquire() for permit_set in self._permit_sets):
            self._reacquired.clear()
            await self._reacquired.wait()


LENDER: ContextVar[PermitLender | None] = ContextVar("bitactor_permit_lender", default=None)
"""The lender of the hop whose code runs; None if it holds nothing."""


def lend_permits(loop: asyncio.AbstractEventLoop) -> AbstractAsyncContextManager[None]:
    """A context manager for a wait on `loop` for other hops: if a hop waits there, its permits are lent meanwhile."""
    lender = LENDER.get()
    return nullcontext() if lender is None or lender.loop is not loop else lender
