"""The file of a journal as its path names it, and whether that is still the one that this process has open."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bitactor.errors import StoreError
from mesh.stores.database import APPLICATION_ID
from mesh.stores.journal.parts import COMMIT_BITS, end_of_log

_RESTART: Final = "put the file back (with its -wal, if there is one) and restart this node, it takes what is there"
_RESTORE: Final = "stop every node that uses it, then put a sound copy there, without -wal and -shm, and start them"


_LOST: Final = (
    "SELECT 1 FROM owners WHERE number = ? AND fenced = '' AND NOT EXISTS (SELECT 1 FROM log WHERE id >= ? AND id < ?)"
)


class StoreFile:
    """The file at a journal's path with its companions -wal and -shm, as they were when it was opened.

    It is only ever looked at by its names and by SQLite: a descriptor of our own would, when closed, take SQLite's
    locks with it.
    """

    def __init__(self, path: Path, newest_row: Callable[[], int] = lambda: 0) -> None:
        """Call it while a connection of this process is open.

        Args:
            newest_row: gives the newest row of the log that this process has committed, 0 if it has none; from any
                thread.

        Raises:
            StoreError: one of the files is gone already.
        """
        self._path = path
        self._newest_row = newest_row
        self.fault = ""
        """What has become of it, and what to do; empty: all is well.  Once there is one, it stays, and nobody may
        write: what others did to the file meanwhile cannot be told."""
        real = Path(os.path.realpath(path))  # beside it SQLite has the companions
        names = (path, *(real.with_name(real.name + end) for end in ("-wal", "-shm")))
        try:
            self._files = {name: name.stat() for name in names}
            self._size = self._files[path].st_size
            self._version = self._schema_version()
        except OSError as error:
            raise StoreError(f"{path} vanished while it was opened: {error}") from error

    def look(self) -> bool:
        """Look what has become of it; whether there is a fault that was not there before.

        For one thread, which does so before it moves the log into the file, so that it does not cover the traces.
        """
        if self.fault:
            return False
        moved = self.moved()
        if moved:
            self.fault = f"{moved}; {_RESTART}"
            return True
        try:
            why = self._overwritten()
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_NOTADB:
                # It went just now, there is no descriptor to look with, or somebody's checkpoint is half done, for
                # which SQLite, told to leave the log alone, says SQLITE_CORRUPT.
                return False
            why = f"was overwritten while it was in use ({error})"
        if why:
            self.fault = f"{self._path} {why}; {_RESTORE}"
        return bool(why)

    def moved(self) -> str:
        """What has become of the names; empty: they are what they were.  Cheap, and for any thread."""
        for name, was in self._files.items():
            try:
                found = name.stat()
            except FileNotFoundError:
                return f"{name} was deleted or moved away while it was in use"
            except OSError as error:
                return f"{name} can be looked at no more ({error.strerror})"
            if not os.path.samestat(found, was):
                return f"{name} was replaced by another file while it was in use"
        return ""

    def _overwritten(self) -> str:
        """What has become of the contents, by what is always true of them; empty: nothing is known to be wrong."""
        newest = self._newest_row()
        found = self._path.stat()
        shrunk = found.st_size < self._size
        if not found.st_size or (shrunk and self._logical()[0] >= self._size):
            return "was truncated or overwritten while it was in use"
        version = self._schema_version()
        if version != self._version and not self._version <= version <= self._logical()[1]:
            return "was overwritten while it was in use"
        if newest and self._is_lost(newest):
            return "was overwritten while it was in use"
        self._size, self._version = found.st_size, version
        return ""

    def _is_lost(self, newest: int) -> bool:
        """Whether neither this row of the log nor one after it is there, though its owner is not fenced."""
        connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            values = (newest >> COMMIT_BITS, newest, end_of_log(newest))
            return connection.execute(_LOST, values).fetchone() is not None
        finally:
            connection.close()

    def _schema_version(self) -> int:
        """SQLite's number of the schema in the file itself, whatever the log has; it only ever rises."""
        connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        try:
            application, version = connection.execute(
                "SELECT application_id, schema_version FROM pragma_application_id, pragma_schema_version"
            ).fetchone()
        finally:
            connection.close()
        return int(version) if application == APPLICATION_ID else -1

    def _logical(self) -> tuple[int, int]:
        """The size in bytes, and the number of the schema, as the log has them."""
        connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            pages, size, version = connection.execute(
                "SELECT page_count, page_size, schema_version"
                " FROM pragma_page_count, pragma_page_size, pragma_schema_version"
            ).fetchone()
        finally:
            connection.close()
        return pages * size, version
