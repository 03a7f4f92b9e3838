"""Stores, where pulses are kept: `memory` for as long as the process lives, `sqlite` for as long as the file does.

A store is named by a URL: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`.  What follows the third slash
is the path as it stands; nothing in it is decoded or expanded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bitactor.errors import ConfigurationError, suggest
from bitactor.ports import Store
from mesh.stores.memory import MemoryStore
from mesh.stores.read import SqliteReader
from mesh.stores.sqlite import Durability, SqliteStore

__all__ = ["Durability", "MemoryStore", "SqliteReader", "SqliteStore", "open_reader", "open_store"]


def open_store(
    url: str,
    *,
    notify: Callable[[Callable[[], None]], None],
    durability: Durability = "process",
    lease: float = 5.0,
    wall_ns: Callable[[], int] = time.time_ns,
) -> Store:
    """The store that `url` names; its `open` is still to be called.

    `notify` runs a function soon on the thread that uses the store (`loop.call_soon_threadsafe`).

    Raises:
        ConfigurationError: the URL or the durability names nothing that is built.
    """
    scheme, rest = _split(url)
    if scheme == "memory":
        if durability == "power":
            raise ConfigurationError('memory:// cannot give durability="power"; use a file, as in sqlite:///pulses.db')
        return MemoryStore()
    return SqliteStore(_path(url, rest), notify=notify, durability=durability, lease=lease, wall_ns=wall_ns)


def open_reader(url: str) -> SqliteReader:
    """A reader of the journal that `url` names, while others write it; nothing is created.

    Raises:
        ConfigurationError: the URL names nothing that can be read from another process.
        StoreError: there is no such file, or it is no journal of this version.
    """
    scheme, rest = _split(url)
    if scheme == "memory":
        raise ConfigurationError(
            "memory:// can be read only by the process it is in; name a file, as in sqlite:///pulses.db"
        )
    return SqliteReader(_path(url, rest))


def _split(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        raise ConfigurationError(f"a store at {scheme}:// is not built yet; use sqlite:///pulses.db")
    if not separator or scheme not in ("memory", "sqlite"):
        raise ConfigurationError(
            f"store {url!r}: not a store's URL.{suggest(url, ['memory://', 'sqlite:///pulses.db'])}"
        )
    if scheme == "memory" and rest:
        raise ConfigurationError(f"store {url!r}: memory:// takes nothing behind it")
    return scheme, rest


def _path(url: str, rest: str) -> Path:
    path = rest.removeprefix("/")
    if not rest.startswith("/") or not path:
        raise ConfigurationError(
            f"store {url!r}: write sqlite:///relative.db (three slashes) or sqlite:////absolute.db (four)"
        )
    if path == ":memory:":
        raise ConfigurationError(f"store {url!r}: use memory://")
    if "?" in path:
        raise ConfigurationError(f"store {url!r}: takes no options; durability and lease are given by name")
    return Path(path)
