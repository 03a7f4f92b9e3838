"""The threads of an SQLite journal: one commits where the event loop must not wait (for the disk, or for another
process's lock), one moves the write-ahead log into the database file, so that no commit has to."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from typing_extensions import override

from bitactor.errors import StoreError
from bitactor.ports import Refusal
from mesh.stores.database import ConnectionThread, Value, retry_while_busy, store_error, write_transaction
from mesh.stores.locks import LockNotice
from mesh.stores.write import PreparedWrite, Writer

_log = logging.getLogger("bitactor.store")

Done = Callable[[Sequence[Refusal], BaseException | None], None]

# Writes after which a group is closed, so that one commit does not hold memory and the file's lock for too long
_GROUP_WRITES: Final = 4_096

CHECKPOINT_PAGES: Final = 4_096
"""Pages (of 4 KiB) of log after which a checkpoint is made without waiting for the interval."""

LONGEST_LOG: Final = 8
"""So many times as much log, and the commit that finds it makes the checkpoint itself: the thread does not get in
between, as under a writer that never pauses on a busy machine."""

LOOK_INTERVAL: Final = 0.5
"""Seconds between looks at the file."""
_LOOKS_A_CHECKPOINT: Final = 2  # of a journal that is written to slowly
_PAGES_A_COMMIT: Final = 2
_PAGE_BITS: Final = 12


class Append(NamedTuple):
    """The writes of one call of `append`, and its `done`."""

    items: Sequence[PreparedWrite]
    done: Done


class Change(NamedTuple):
    """A change of the file that is no append: `make` is called inside a database transaction, and what it returns is
    the answer once that is kept."""

    make: Callable[[sqlite3.Connection], Any]
    answer: asyncio.Future[Any]

    def done(self, value: Any, error: BaseException | None) -> None:
        """Answer, on the loop's thread, unless who asked was cancelled."""
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(value)


def make_changes(connection: sqlite3.Connection, *makes: Callable[[sqlite3.Connection], Value]) -> list[Value]:
    """Make changes in one database transaction; returns their answers."""
    with write_transaction(connection):
        return [make(connection) for make in makes]


class Completion(NamedTuple):
    """The outcome of an append or a change, to be told on the loop's thread."""

    done: Callable[[Any, BaseException | None], None]
    answer: Any
    error: BaseException | None


class CommitThread:
    """Commits appends and changes in the order they were submitted; all that waits goes into one commit, but for a
    change behind an append, and the other way round.

    After each commit `deliver` is handed to `notify`; it finds the outcomes in `completions`.  Before each, `guard` is
    called: it raises if the file must not be written any more.  `notice` says in the log what it waits for.
    """

    def __init__(
        self,
        path: Path,
        writer: Writer,
        *,
        connect: Callable[[], sqlite3.Connection],
        patience: float,
        notify: Callable[[Callable[[], None]], None],
        deliver: Callable[[], None],
        on_commit: Callable[[int], None],
        guard: Callable[[], None],
        notice: LockNotice,
    ) -> None:
        self._path = path
        self._writer = writer
        self._guard = guard
        self._connect = connect
        self._patience = patience
        self._notify = notify
        self._deliver = deliver
        self._on_commit = on_commit
        self._notice = notice
        self._queue: SimpleQueue[Append | Change | None] = SimpleQueue()
        self._ahead: Append | Change | None = None
        """Taken from the queue, and of another commit than what was before it."""
        self._connection: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self.completions: deque[Completion] = deque()

    def submit(self, item: Append | Change) -> None:
        """Commit `item` after everything submitted before.  Called on the loop's thread; the first call starts the
        thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bitactor-store-commit", daemon=True)
            self._thread.start()
        self._queue.put(item)

    def close(self) -> None:
        """Commit the appends that wait, then stop; `completions` holds those that were not delivered.  Twice is
        once."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        try:
            while group := self._next_group():
                self.completions.extend(self._commit(group))
                try:
                    self._notify(self._deliver)
                except Exception as error:
                    # The loop is closed, most likely; `close` of the store delivers.
                    _log.debug("%s: completions are kept until close: %r", self._path, error)
        finally:
            if self._connection is not None:
                self._connection.close()

    def _next_group(self) -> list[Append] | list[Change]:
        """What goes into the next commit: at least one item, and what has come by now; empty when closing and none is
        left."""
        first, self._ahead = self._ahead or self._queue.get(), None
        if first is None:
            return []
        group: list[Any] = [first]
        kind = type(first)
        writes = _writes_of(first)
        while writes < _GROUP_WRITES:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            if type(item) is not kind:
                self._ahead = item
                break
            group.append(item)
            writes += _writes_of(item)
        return group

    def _commit(self, group: list[Append] | list[Change]) -> list[Completion]:
        try:
            return retry_while_busy(lambda: self._make(group), self._patience, self._notice)
        except sqlite3.Error as error:
            failure = store_error(error, self._path)
            failure.__cause__ = error
        except Exception as error:
            failure = error if isinstance(error, StoreError) else StoreError(f"{self._path}: {error!r}")
        return [Completion(item.done, (), failure) for item in group]

    def _make(self, group: Sequence[Any]) -> list[Completion]:
        connection = self._open_connection()
        if type(group[0]) is Change:
            answers = make_changes(connection, *(change.make for change in group))
            self._on_commit(0)
            return [Completion(change.done, answer, None) for change, answer in zip(group, answers, strict=True)]
        items = group[0].items if len(group) == 1 else [item for append in group for item in append.items]
        refusals, size = self._writer.commit(connection, items)
        self._on_commit(size)
        return _split(group, refusals)

    def _open_connection(self) -> sqlite3.Connection:
        self._guard()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection


def _writes_of(item: Append | Change) -> int:
    return len(item.items) if type(item) is Append else 1


def _split(group: Sequence[Append], refusals: Sequence[Refusal]) -> list[Completion]:
    """The completions of the appends in a group: to each its own refusals, with indexes into its own writes."""
    if not refusals:
        return [Completion(append.done, (), None) for append in group]
    completions: list[Completion] = []
    start = 0
    for append in group:
        end = start + len(append.items)
        own = [Refusal(index - start, error) for index, error in refusals if start <= index < end]
        completions.append(Completion(append.done, own, None))
        start = end
    return completions


class CheckpointThread(ConnectionThread):
    """Looks twice a second whether the file is still there, and keeps the write-ahead log short: a checkpoint every
    second, and after `pages` of log at once.  Writers and readers go on meanwhile.

    A log twice as long is closed and begun afresh, for which writers are kept out for the time of one fsync or two.
    """

    def __init__(self, path: Path, synchronous: str, pages: int = CHECKPOINT_PAGES) -> None:
        complaint = "checkpoint failed, the log keeps growing"
        super().__init__("bitactor-store-checkpoint", path, complaint, synchronous=synchronous, timeout=0)
        self._pages_a_checkpoint = pages
        # Pages of log since the last checkpoint, estimated; a thread that overwrites another's count makes a checkpoint
        # come early or late, no more.
        self._pages = 0
        self._looks = 0
        self._full = threading.Event()
        self.inspect: Callable[[sqlite3.Connection], None] = lambda connection: None
        """Called at each look, with a connection."""

    def count_commit(self, size: int) -> None:
        """Count a commit of so many bytes of log.  Cheap: called after each, on whichever thread made it."""
        self._pages += _PAGES_A_COMMIT + (size >> _PAGE_BITS)
        if self._pages >= self._pages_a_checkpoint and not self._full.is_set():
            self._full.set()

    @override
    def close(self) -> None:
        self._closing.set()
        self._full.set()
        super().close()

    @override
    def wait(self) -> bool:
        self._looks += 1
        if self._full.wait(LOOK_INTERVAL):
            # Before the checkpoint: a commit that comes in between wakes us once too often, never once too seldom.
            self._full.clear()
            self._looks = _LOOKS_A_CHECKPOINT
        return not self._closing.is_set()

    @override
    def work(self, connection: sqlite3.Connection) -> bool:
        self.inspect(connection)
        if not self._pages or self._looks < _LOOKS_A_CHECKPOINT:
            return True
        self._pages = self._looks = 0
        if not self.may_work():  # the file may have become another during the inspection, and is not to be written
            return True
        if not self._checkpoint(connection):
            self._closing.wait(LOOK_INTERVAL)  # while a checkpoint is under way here, no commit could make one
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
