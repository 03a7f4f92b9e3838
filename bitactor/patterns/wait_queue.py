"""A first-come, first-served queue of waiting tasks; a task that is cancelled leaves, and the next one is woken."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class WaitQueue:
    """Waiting tasks, in order of arrival.

    Only the first is woken, and only whoever was woken takes what there is, in its own task and just before using it:
    so nothing is ever taken for somebody who is not there any more.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> asyncio.Future[bool]:
        """Join at the end.  The future is True: it is this task's turn; False: it has waited too long.  Whoever joins
        must `leave`."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[bool]) -> None:
        """Remove a waiter that has joined."""
        del self._waiting[waiter]

    def first(self) -> asyncio.Future[bool] | None:
        """The first waiter, if it has not been woken yet; else None."""
        waiter = next(iter(self._waiting), None)
        return None if waiter is None or waiter.done() else waiter
