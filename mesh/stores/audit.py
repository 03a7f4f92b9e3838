"""The look through a journal beside the work of whoever has it open."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Final

from mesh.stores.journal.verify import Fault, Progress, Verification
from registry.support.clock import monotonic_ns

INTERVAL_NS: Final = 1_000_000_000
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Inspector:
    """Looks through a journal over and over, a step a second.

    `tell` is called with the reason, and with the transaction that has something left to do and cannot be read, or
    with none if the file itself is damaged; once for each.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._told: set[str] = set()
        self._walk: Iterator[Fault | Progress] | None = None
        self._doubted = False  # SQLite called the file damaged in the last walk
        self._due_ns = 0

    def work(self, connection: sqlite3.Connection) -> None:
        """Take the next step, if it is time."""
        now_ns = monotonic_ns()
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + INTERVAL_NS
        walk = self._walk = self._walk or Verification(connection).walk()
        try:
            for found in walk:
                if isinstance(found, Progress):
                    return
                if found.wanted:
                    self._say(found.transaction, found.why)
            self._doubted = False
        except sqlite3.Error as error:
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
            if damaged and self._doubted:  # once alone, it may be a file that is being replaced just now
                self._say(
                    "", f"the file is damaged ({error}): look with `bitactor doctor --store`, restore a sound copy"
                )
            self._doubted = damaged
        self._walk = None  # from the beginning again: it has seen all, or what it waited for was locked

    def _say(self, transaction: str, why: str) -> None:
        if transaction not in self._told:
            self._told.add(transaction)
            self._tell(why, transaction)
