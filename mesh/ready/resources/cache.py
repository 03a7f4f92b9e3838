"""A cache as a resource: values by key, in this process, the least recently used given up first.

    prices = cache("prices", max_entries=10_000, ttl=60)
    orders = Workflow("orders", input={...}, resources=[prices])

    @orders.step
    async def price(item: str, prices: Cache) -> int:
        return await prices.get_or_make(item, lambda: ask_the_shop(item))

It forgets everything when the mesh closes, and each process has its own.  To keep the results of a step, see the
pattern `bitactor.patterns.Cache`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, NamedTuple

from cachetools import TLRUCache
from typing_extensions import override

from bitactor.declare.resource import Resource
from bitactor.errors import DefinitionError
from bitactor.messages.duration import duration_rule, is_duration

DEFAULT_ENTRIES: Final = 1_024


class _Entry(NamedTuple):
    value: Any
    ttl: float


class _Maker:
    """The turns of those who want to make one value."""

    __slots__ = ("lock", "waiters")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiters = 0


class _Missing:
    """The type of `MISSING`, so that it is no value anybody keeps."""

    @override
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""The default for `get` that is no value: `await cache.get(key, MISSING) is MISSING` if there is no such entry, also
where None is a value."""


class Cache:
    """A cache of at most `max_entries` values, each kept for `ttl` seconds unless set with another.  Used on the mesh's
    loop, by steps that are `async def`.

    A value is handed out as it was put in: whoever changes it changes it for all.
    """

    def __init__(self, max_entries: int, ttl: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._ttl = float("inf") if ttl is None else ttl
        self._entries: TLRUCache[Hashable, _Entry] = TLRUCache(max_entries, ttu=_ends, timer=now)
        self._making: dict[Hashable, _Maker] = {}
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        self._entries.expire()
        return len(self._entries)

    @property
    def making(self) -> int:
        """How many values are being made for `get_or_make`."""
        return len(self._making)

    async def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of `key`, or `default` if there is none or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return default
        self.hits += 1
        return entry.value

    async def set(self, key: Hashable, value: Any, ttl: float | None = None) -> None:
        """Keep a value, for `ttl` seconds instead of the cache's own time."""
        self._entries[key] = _Entry(value, self._ttl if ttl is None else ttl)

    async def delete(self, key: Hashable) -> bool:
        """Forget the value of `key`; True: there was one."""
        return self._entries.pop(key, None) is not None

    async def clear(self) -> None:
        """Forget all values."""
        self._entries.clear()

    async def get_or_make(self, key: Hashable, make: Callable[[], Awaitable[Any]], ttl: float | None = None) -> Any:
        """The value of `key`, made by `make` and kept if there is none.

        Of several who ask at once one makes it and the others wait; if that one fails or is cancelled, the next of them
        tries.  What `make` raises is not kept.
        """
        found = await self.get(key, MISSING)
        if found is not MISSING:
            return found
        maker = self._making.setdefault(key, _Maker())
        maker.waiters += 1
        try:
            async with maker.lock:
                entry = self._entries.get(key)
                if entry is None:
                    await self.set(key, value := await make(), ttl)
                    return value
                return entry.value
        finally:
            maker.waiters -= 1
            if maker.waiters == 0:
                del self._making[key]


def cache(name: str = "cache", *, max_entries: int = DEFAULT_ENTRIES, ttl: float | None = None) -> Resource:
    """A resource that is a `Cache`.

    Args:
        name: what the parameter of a step is called that takes it.
        max_entries: how many values are kept; the least recently used goes first.
        ttl: seconds that a value is kept; None: as long as there is room.

    Raises:
        DefinitionError: the name or an option is wrong.
    """
    if isinstance(max_entries, bool) or not isinstance(max_entries, int) or max_entries < 1:
        raise DefinitionError(f"resource {name!r}: max_entries={max_entries!r}; a whole number, at least 1")
    if ttl is not None and not is_duration(ttl):
        raise DefinitionError(f"resource {name!r}: ttl={ttl!r}; give {duration_rule()}, or None")

    async def make() -> Cache:
        return Cache(max_entries, ttl)

    return Resource(name, make, provides=Cache, requires=())


def _ends(_: Hashable, entry: _Entry, now: float) -> float:
    return now + entry.ttl
