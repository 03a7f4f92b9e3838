"""What a hop lends while it waits for other hops."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.pools import Claim


class Loan:
    """A hop's places, lent while any of its code is inside `async with loan`, and taken again before it goes on.

    Of several waits at once the last one to end takes them again.  A hop that is asked to stop, or has had to be
    answered for, takes nothing again; its claims are gone by then.  On the loop's thread only.
    """

    __slots__ = ("_again", "_claims", "_waits", "depth", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        self.loop = loop
        self.depth = depth
        """How many hops wait for another above the transaction that this hop is of."""
        self._claims: list[Claim] = []
        self._waits = 0
        self._again: asyncio.Event | None = None

    def add(self, claim: Claim) -> None:
        """One more to lend.  They are taken again in the order in which they were added, which is the order in which
        every hop takes them."""
        self._claims.append(claim)

    async def __aenter__(self) -> None:
        self._waits += 1
        if self._waits > 1:
            return
        if self._again is None:
            self._again = asyncio.Event()
        self._again.set()
        for claim in self._claims:
            claim.on_return = self._again.set
            claim.lend()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._again is not None
        self._waits -= 1
        while not self._waits and not all(claim.take_again() for claim in self._claims):
            self._again.clear()
            await self._again.wait()


LOAN: ContextVar[Loan | None] = ContextVar("bitactor_loan", default=None)
"""Of the hop whose code runs; None if it holds nothing."""


def lending(loop: asyncio.AbstractEventLoop) -> AbstractAsyncContextManager[None]:
    """Around a wait on `loop` for other hops: if it is a hop that waits there, its places are lent meanwhile."""
    loan = LOAN.get()
    return nullcontext() if loan is None or loan.loop is not loop else loan
