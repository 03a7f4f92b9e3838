"""A disk that is full, or that takes no writes, under a store: SQLite says so itself, on the connection that the store
has opened."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from mesh.stores import sqlite


class Disk:
    """What one `SqliteStore`, opened after this was made, commits to on the thread that uses it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._connect = sqlite.connect
        self._connections: list[sqlite3.Connection] = []
        monkeypatch.setattr(sqlite, "connect", self._opened)

    def fill(self) -> None:
        """The file cannot grow any more."""
        (pages,) = self._ask("PRAGMA page_count")
        self._ask(f"PRAGMA max_page_count = {pages}")

    def free(self) -> None:
        """There is room again."""
        self._ask("PRAGMA max_page_count = 1000000")

    def protect(self) -> None:
        """The file can be read only."""
        self._ask("PRAGMA query_only = 1")

    def unprotect(self) -> None:
        """It can be written again."""
        self._ask("PRAGMA query_only = 0")

    def _opened(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = self._connect(*arguments, **options)
        self._connections.append(connection)
        return connection

    def _ask(self, statement: str) -> Any:
        [connection] = self._connections
        return connection.execute(statement).fetchone()
