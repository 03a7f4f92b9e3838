"""Stores, where pulses are kept: `memory` for as long as the process lives, `sqlite` for as long as the file does.

A store is named by a URL: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`.  What follows the third slash
is the path as it stands; nothing in it is decoded or expanded.  `register_store` adds a scheme.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple

from bitactor.errors import ConfigurationError, suggest
from bitactor.ports import Inbox, Store, StoreQueries
from mesh.stores.journal.inbox import SqliteInbox
from mesh.stores.journal.migration import migrate
from mesh.stores.lease import HUNG_AFTER
from mesh.stores.memory import MemoryStore
from mesh.stores.read import SqliteReader
from mesh.stores.sqlite import Durability, SqliteStore

__all__ = [
    "Durability",
    "MemoryStore",
    "SqliteInbox",
    "SqliteReader",
    "SqliteStore",
    "migrate_store",
    "open_inbox",
    "open_reader",
    "open_store",
    "register_store",
]

Reader = AbstractContextManager[StoreQueries]
Sender = AbstractContextManager[Inbox]


class _Scheme(NamedTuple):
    example: str
    open: Callable[..., Store]
    read: Callable[[str], Reader] | None
    inbox: Callable[[str], Sender] | None = None
    migrate: Callable[[str], int] | None = None


def register_store(
    scheme: str,
    opener: Callable[..., Store],
    reader: Callable[[str], Reader] | None = None,
    inbox: Callable[[str], Sender] | None = None,
) -> None:
    """Let URLs of this scheme name a store from now on.

    Args:
        opener: called with the URL and what `open_store` takes by name.
        reader: called with the URL, for a store that other processes can read.
        inbox: called with the URL, for a store to whose transactions other processes can send messages.
    """

    def open_it(url: str, *, hung_after: float, **options: Any) -> Store:
        return opener(url, **options)

    _SCHEMES[scheme] = _Scheme(f"{scheme}://", open_it, reader, inbox)


def open_store(
    url: str,
    *,
    notify: Callable[[Callable[[], None]], None],
    durability: Durability = "process",
    lease: float = 5.0,
    hung_after: float = HUNG_AFTER,
    wall_ns: Callable[[], int] = time.time_ns,
) -> Store:
    """The store that `url` names; its `open` is still to be called.

    `notify` runs a function soon on the thread that uses the store (`loop.call_soon_threadsafe`).  `hung_after` is for
    the stores that are built in.

    Raises:
        ConfigurationError: the URL or the durability names nothing that is built.
    """
    options = {"notify": notify, "durability": durability, "lease": lease, "wall_ns": wall_ns}
    return _scheme(url).open(url, hung_after=hung_after, **options)


def open_reader(url: str) -> Reader:
    """A reader of the journal that `url` names, while others write it; nothing is created.

    Raises:
        ConfigurationError: the URL names nothing that can be read from another process.
        StoreError: there is no such file, or it is no journal of this version.
    """
    scheme = _scheme(url)
    if scheme.read is None:
        raise ConfigurationError(
            f"{scheme.example} can be read only by the process it is in; name a file, as in sqlite:///pulses.db"
        )
    return scheme.read(url)


def open_inbox(url: str) -> Sender:
    """What sends messages to the transactions of the journal that `url` names, while others write it; nothing is
    created.

    Raises:
        ConfigurationError: the URL names nothing that can be written from another process.
        StoreError: there is no such file, it cannot be written, or it is no journal of this version.
    """
    scheme = _scheme(url)
    if scheme.inbox is None:
        raise ConfigurationError(
            f"{scheme.example} takes messages only from the process it is in; name a file, as in sqlite:///pulses.db"
        )
    return scheme.inbox(url)


def migrate_store(url: str) -> int:
    """Bring the journal that `url` names into the form of this release, if it is of an earlier one; a node that opens
    it does the same.  Blocks the calling thread until all of it is done; returns how many pulses were brought over.

    Raises:
        ConfigurationError: the URL names nothing that is kept in a file of ours.
        StoreError: there is no such file, it cannot be written, or a process of the earlier release still uses it.
    """
    scheme = _scheme(url)
    if scheme.migrate is None:
        raise ConfigurationError(f"{scheme.example} is no file of ours; name one, as in sqlite:///pulses.db")
    return scheme.migrate(url)


def _scheme(url: str) -> _Scheme:
    name, separator, _ = url.partition("://")
    if separator and name in _SCHEMES:
        return _SCHEMES[name]
    if name in ("postgresql", "postgres"):
        raise ConfigurationError(f"a store at {name}:// is not built yet; use sqlite:///pulses.db")
    known = [scheme.example for scheme in _SCHEMES.values()]
    raise ConfigurationError(f"store {url!r}: not a store's URL.{suggest(url, known)}")


def _open_memory(url: str, durability: Durability, **options: Any) -> Store:
    if url != "memory://":
        raise ConfigurationError(f"store {url!r}: memory:// takes nothing behind it")
    if durability == "power":
        raise ConfigurationError('memory:// cannot give durability="power"; use a file, as in sqlite:///pulses.db')
    return MemoryStore()


def _path(url: str) -> Path:
    rest = url.partition("://")[2]
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


_SCHEMES: Final = {
    "memory": _Scheme("memory://", _open_memory, None),
    "sqlite": _Scheme(
        "sqlite:///pulses.db",
        lambda url, **options: SqliteStore(_path(url), **options),
        lambda url: SqliteReader(_path(url)),
        lambda url: SqliteInbox(_path(url)),
        lambda url: migrate(_path(url)),
    ),
}
