"""The thread that moves the write-ahead log into the database file, so that no commit has to."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Final

from typing_extensions import override

from mesh.stores.database import ConnectionThread

CHECKPOINT_PAGES: Final = 4_096
"""Pages (of 4 KiB) of log after which a checkpoint is made without waiting for the interval."""

LONGEST_LOG: Final = 8
"""So many times as much log, and the commit that finds it makes the checkpoint itself: the thread does not get in
between, as under a writer that never pauses on a busy machine."""

_INTERVAL: Final = 1.0  # seconds between checkpoints of a journal that is written to slowly
_PAGES_A_COMMIT: Final = 4


class CheckpointThread(ConnectionThread):
    """Keeps the write-ahead log short: a checkpoint every second, and after `pages` of log at once.  Writers and
    readers go on meanwhile.

    A log twice as long is closed and begun afresh, for which writers are kept out for the time of one fsync or two.
    """

    def __init__(self, path: Path, synchronous: str, pages: int = CHECKPOINT_PAGES) -> None:
        complaint = "checkpoint failed, the log keeps growing"
        super().__init__("bitactor-store-checkpoint", path, complaint, synchronous=synchronous, timeout=0)
        self._pages_a_checkpoint = pages
        # Pages of log since the last checkpoint, estimated; a thread that overwrites another's count makes a checkpoint
        # come early or late, no more.
        self._pages = 0
        self._dirty = threading.Event()
        self._full = threading.Event()

    def count_commit(self, writes: int) -> None:
        """Count a commit of `writes` writes.  Cheap: called after each, on whichever thread made it."""
        self._pages += _PAGES_A_COMMIT + writes
        if not self._dirty.is_set():
            self._dirty.set()
        if self._pages >= self._pages_a_checkpoint and not self._full.is_set():
            self._full.set()

    @override
    def close(self) -> None:
        self._closing.set()
        self._dirty.set()
        self._full.set()
        super().close()

    @override
    def wait(self) -> bool:
        self._dirty.wait()
        self._full.wait(_INTERVAL)
        # In this order: a commit that comes in between wakes us once too often, never once too seldom.
        self._dirty.clear()
        self._full.clear()
        self._pages = 0
        return not self._closing.is_set()

    @override
    def work(self, connection: sqlite3.Connection) -> bool:
        if not self._checkpoint(connection):
            self._closing.wait(_INTERVAL)  # while a checkpoint is under way here, no commit could make one
        return True

    def _checkpoint(self, connection: sqlite3.Connection) -> bool:
        """Make a checkpoint; False if the log is too long and the writer could not be kept out to begin it afresh."""
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > 2 * self._pages_a_checkpoint:
            # Under a writer that never pauses, a passive checkpoint never reaches the log's end, and only then can it
            # be reused.
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            return not busy
        return True
