"""A cursor: an open source of elements, and how far it was read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, Final

from bitactor.messages.values import named_text, type_name

logger = logging.getLogger("bitactor.map")

_SKIPPED_AT_ONCE: Final = 1_000


class Cursor:
    """An open source of elements, and how far it was read."""

    __slots__ = ("ahead", "failure", "holder", "iterator", "over", "pending", "position", "taking")

    def __init__(self, iterator: Iterator[Any] | AsyncIterator[Any], position: int, holder: object) -> None:
        self.iterator = iterator
        self.holder = holder
        """The attempt that reads; one before it, which goes on although its time is over, reads no more."""
        self.position = position
        """Number of elements at the beginning of the source whose batches are done."""
        self.pending: list[Any] = []
        """Elements taken for the batch that begins at `position`; a second attempt at that batch gets the same."""
        self.ahead: list[Any] = []
        """The element after those, if it was read to see whether there is one."""
        self.failure: Exception | None = None
        """What the source raised in place of that element; the batch that begins there fails with it."""
        self.over = False
        """True: the source has no more elements than `pending`."""
        self.taking = True
        """True: the source is being read, or reading was broken off; then nobody knows how many elements it has given,
        and it has to be opened again."""

    def advance_to(self, position: int) -> bool:
        """Drop the elements before `position`; whether the cursor can serve those from there on."""
        if position == self.position:
            return True
        if position == self.position + len(self.pending):
            self.position, self.pending = position, []
            return True
        return False

    def take(self, skipped: int, count: int) -> list[Any]:
        """The elements of the batch that begins at `position`, at most `count`; in a source that was just opened,
        `skipped` are read past first."""
        iterator: Any = self.iterator
        if self.taking:
            for _ in islice(iterator, skipped):
                pass
        if not self.pending:
            ahead = self._begin()
            self.pending = ahead + list(islice(iterator, count - len(ahead)))
        self.taking = False
        return self.pending

    async def take_async(self, skipped: int, count: int) -> list[Any]:
        """As `take`, from a synchronous or asynchronous source."""
        if self.taking:
            await self._skip(skipped)
        if not self.pending:
            ahead = self._begin()
            self.pending = ahead + await self._read(count - len(ahead))
        self.taking = False
        return self.pending

    def has_more(self, holder: object) -> bool:
        """Whether another batch follows the full one that `holder` took: the next element is read, and kept for it.

        If the source raises there, another batch follows, and fails with that.
        """
        if self._looks_ahead(holder):
            iterator: Any = self.iterator
            try:
                self._saw(list(islice(iterator, 1)))
            except Exception as error:
                self._saw([], error)
        return not self.over

    async def has_more_async(self, holder: object) -> bool:
        """As `has_more`, from a synchronous or asynchronous source."""
        if self._looks_ahead(holder):
            try:
                self._saw(await self._read(1))
            except Exception as error:
                self._saw([], error)
        return not self.over

    def _begin(self) -> list[Any]:
        """Begin to take a batch; returns the element that was read ahead, if one was."""
        self.taking = True
        if self.failure is not None:
            raise self.failure
        ahead, self.ahead = self.ahead, []
        return ahead

    def _looks_ahead(self, holder: object) -> bool:
        """Whether the next element has to be read now, by this holder."""
        if self.holder is not holder or self.over or self.ahead or self.failure is not None:
            return False
        self.taking = True
        return self.holder is holder  # still: another thread may have taken over in between, and found it reading

    def _saw(self, ahead: list[Any], failure: Exception | None = None) -> None:
        self.ahead, self.failure, self.over = ahead, failure, not ahead and failure is None
        self.taking = False

    def close(self) -> None:
        """Close the source if it is a generator; an asynchronous one is closed by its loop once nobody refers to it.

        What it raises then is nobody's failure, and is logged: its elements have all been dealt with.
        """
        try:
            close = getattr(self.iterator, "close", None)
            if callable(close):
                close()
        except BaseException as error:
            if type(error) is not ValueError:  # it is running in another thread, and ends there
                what, why = type_name(self.iterator), named_text(error)
                logger.warning("a %s, the source of a map, raised while it was closed: %s", what, why)

    async def _read(self, count: int) -> list[Any]:
        iterator = self.iterator
        if isinstance(iterator, AsyncIterator):
            taken: list[Any] = []
            while len(taken) < count:
                try:
                    taken.append(await anext(iterator))
                except StopAsyncIteration:
                    break
            return taken
        return list(islice(iterator, count))

    async def _skip(self, count: int) -> None:
        while count > 0:
            taken = await self._read(min(count, _SKIPPED_AT_ONCE))
            if not taken:
                return
            count -= len(taken)
