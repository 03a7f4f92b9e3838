"""A cache in this process as a resource."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cachetools import TTLCache

from bitactor import Resource
from bitactor.errors import ConfigurationError

MISS: Final = object()
"""What `get` answers when nothing is kept; None can be kept like anything else."""


class Cache:
    """Values by key, each for so many seconds; the least recently used go first when it is full.  Used on the mesh's loop."""

    def __init__(self, max_entries: int, ttl: float) -> None:
        self._entries: TTLCache[Any, Any] = TTLCache(max_entries, ttl)
        self._making: dict[Any, asyncio.Future[Any]] = {}
        self.hits = 0
        self.misses = 0

    async def get(self, key: Any, default: Any = MISS) -> Any:
        """What is kept, or `default`."""
        found = self._entries.get(key, MISS)
        if found is MISS:
            self.misses += 1
            return default
        self.hits += 1
        return found

    async def set(self, key: Any, value: Any) -> None:
        """Keep a value."""
        self._entries[key] = value

    async def delete(self, key: Any) -> bool:
        """Forget a value; whether there was one."""
        return self._entries.pop(key, MISS) is not MISS

    async def get_or_make(self, key: Any, make: Callable[[], Awaitable[Any]]) -> Any:
        """What is kept, or what `make` makes, which is then kept; several who miss at once wait for one making.  An error is not kept."""
        found = await self.get(key)
        if found is not MISS:
            return found
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.ensure_future(make())
            making.add_done_callback(lambda done: self._made(key, done))
        return await asyncio.shield(making)

    def _made(self, key: Any, done: asyncio.Future[Any]) -> None:
        self._making.pop(key, None)
        if not done.cancelled() and done.exception() is None:
            self._entries[key] = done.result()

    def __len__(self) -> int:
        return len(self._entries)


def cache(name: str = "cache", *, max_entries: int = 10_000, ttl: float = 300.0) -> Resource:
    """A resource: one `Cache` for all steps of a mesh.

    Raises:
        ConfigurationError: an option makes no sense.
    """
    if max_entries < 1 or not ttl > 0:
        raise ConfigurationError(f"cache({name!r}): max_entries={max_entries!r} and ttl={ttl!r} must be more than zero")

    async def opened() -> Cache:
        return Cache(max_entries, ttl)

    return Resource(name, opened, provides=Cache)
