"""A first-come, first-served queue of waiting tasks; a task that is cancelled leaves, and the next one is woken."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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

    @contextmanager
    def waiter(self, wake_first: Callable[[], None]) -> Iterator[asyncio.Future[bool]]:
        """A waiter at the end, which leaves as the context does; then `wake_first` is called.  The future is True: it
        is this task's turn; False: it has waited too long."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            yield waiter
        finally:
            del self._waiting[waiter]
            wake_first()

    def first(self) -> asyncio.Future[bool] | None:
        """The first waiter, if it has not been woken yet; else None."""
        waiter = next(iter(self._waiting), None)
        return None if waiter is None or waiter.done() else waiter
