"""A cursor: a source of elements that is open, and how far it was read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, Final

_SKIPPED_AT_ONCE: Final = 1_000


class Cursor:
    """A source that is open, and how far it was read."""

    __slots__ = ("iterator", "pending", "position", "taking")

    def __init__(self, iterator: Iterator[Any] | AsyncIterator[Any], position: int) -> None:
        self.iterator = iterator
        self.position = position
        """Elements that are done with."""
        self.pending: list[Any] = []
        """Elements taken for the batch that begins at `position`; a second try of it gets the same."""
        self.taking = True
        """Whether it is being read, or reading it was broken off: nobody knows then what it has given, and it has to be
        opened again."""

    def advance_to(self, position: int) -> bool:
        """Let go of what lies before `position`; whether the cursor can serve what lies behind."""
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
        """`take`, from any source."""
        if self.taking:
            await self._skip(skipped)
        if not self.pending:
            self.taking = True
            self.pending = await self._read(count)
        self.taking = False
        return self.pending

    def close(self) -> None:
        """A generator is told that nobody wants more; an async one is closed by its loop when it is let go of."""
        close = getattr(self.iterator, "close", None)
        if callable(close):
            try:
                close()
            except ValueError:
                return  # it is running in another thread, and ends there

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
