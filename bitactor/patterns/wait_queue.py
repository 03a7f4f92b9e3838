"""A waiting line: first come, first served; who is cancelled leaves, and the next takes its turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class WaitQueue:
    """Those who wait, in order.

    Only the first is woken, and only whoever was woken takes what there is, in its own task and just before using it:
    so nothing is ever taken for somebody who is not there any more.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> asyncio.Future[bool]:
        """Stand at the end.  True: it is your turn; False: you have waited long enough.  Whoever joins must `leave`."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[bool]) -> None:
        """Make room for those behind."""
        del self._waiting[waiter]

    def first(self) -> asyncio.Future[bool] | None:
        """Who is next, if it has not been woken yet."""
        waiter = next(iter(self._waiting), None)
        return None if waiter is None or waiter.done() else waiter
