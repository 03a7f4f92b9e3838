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

    __slots__ = ("iterator", "pending", "position", "taking")

    def __init__(self, iterator: Iterator[Any] | AsyncIterator[Any], position: int) -> None:
        self.iterator = iterator
        self.position = position
        """Number of elements at the beginning of the source whose batches are done."""
        self.pending: list[Any] = []
        """Elements taken for the batch that begins at `position`; a second attempt at that batch gets the same."""
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
        iterator = self.iterator
        assert isinstance(iterator, Iterator)
        if self.taking:
            for _ in islice(iterator, skipped):
                pass
        if not self.pending:
            self.taking = True
            self.pending = list(islice(iterator, count))
        self.taking = False
        return self.pending

    async def take_async(self, skipped: int, count: int) -> list[Any]:
        """As `take`, from a synchronous or asynchronous source."""
        if self.taking:
            await self._skip(skipped)
        if not self.pending:
            self.taking = True
            self.pending = await self._read(count)
        self.taking = False
        return self.pending

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
