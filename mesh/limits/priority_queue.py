"""A priority queue: the lowest rank first, in order of arrival among equals."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, Generic, TypeVar

from bitactor.messages.signal import UNDO

T = TypeVar("T", bound=Hashable)

Rank = tuple[int, int, int]
"""The order among those that wait; the smaller tuple goes first."""

_COMPACT_AT: Final = 64  # stale entries (of items that were discarded) that are kept before they are cleared away


def rank_of(direction: str, priority: int, *, depth: int = 0, compensating: bool = False) -> Rank:
    """The rank of a hop among those that wait.

    An undo or compensation goes ahead of what begins: it is what lets a transaction end.  Then the highest priority.
    Within one, the hops of a transaction that another hop waits for go first, or everything would be begun before
    anything ends.
    """
    return 1 if direction == UNDO or compensating else 2, -priority, -depth


class PriorityQueue(Generic[T]):
    """A queue of items by rank, from which any item can be discarded.  Each item waits at most once; adding, popping
    and discarding cost log n."""

    __slots__ = ("_entries", "_serial", "_waiting")

    def __init__(self) -> None:
        self._entries: list[tuple[Rank, int, int, T]] = []
        # Waiting item → serial number of its entry; an entry with another number is stale
        self._waiting: dict[T, int] = {}
        self._serial = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, item: T) -> bool:
        return item in self._waiting

    def __iter__(self) -> Iterator[T]:
        return iter(self._waiting)

    def add(self, item: T, rank: Rank, arrival: int | None = None) -> None:
        """Enter `item`; `arrival` decides among equals, and is by default the order of calls."""
        serial = next(self._serial)
        self._waiting[item] = serial
        heappush(self._entries, (rank, serial if arrival is None else arrival, serial, item))

    def head(self) -> tuple[Rank, int]:
        """Rank and arrival of the first item.

        Raises:
            IndexError: nobody waits.
        """
        while self._waiting.get(self._entries[0][3]) != self._entries[0][2]:
            heappop(self._entries)
        return self._entries[0][:2]

    def pop(self) -> T:
        """Remove and return the first item.

        Raises:
            IndexError: nobody waits.
        """
        self.head()
        item = heappop(self._entries)[3]
        del self._waiting[item]
        return item

    def discard(self, item: T) -> bool:
        """Remove `item`; True: it was waiting."""
        if self._waiting.pop(item, None) is None:
            return False
        if len(self._entries) > 2 * len(self._waiting) + _COMPACT_AT:
            self._entries = [entry for entry in self._entries if self._waiting.get(entry[3]) == entry[2]]
            heapify(self._entries)
        return True

    def clear(self) -> None:
        """Remove all items."""
        self._waiting.clear()
        self._entries.clear()
