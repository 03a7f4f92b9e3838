"""The thread that commits where the event loop must not wait: for the disk, or for another process's lock."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from bitactor.errors import StoreError
from bitactor.ports import Refusal
from mesh.stores.database import retry_while_busy, store_error
from mesh.stores.write import PreparedWrite, Writer

_log = logging.getLogger("bitactor.store")

Done = Callable[[Sequence[Refusal], BaseException | None], None]

# Writes after which a group is closed, so that one commit does not hold memory and the file's lock for too long
_GROUP_WRITES: Final = 4_096


class Append(NamedTuple):
    """The writes of one call of `append`, and its `done`."""

    items: Sequence[PreparedWrite]
    done: Done


class Completion(NamedTuple):
    """The outcome of an append, to be told on the loop's thread."""

    done: Done
    refusals: Sequence[Refusal]
    error: BaseException | None


class CommitThread:
    """Commits appends in the order they were submitted; all that waits goes into one commit.

    After each commit `deliver` is handed to `notify`; it finds the outcomes in `completions`.
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
    ) -> None:
        self._path = path
        self._writer = writer
        self._connect = connect
        self._patience = patience
        self._notify = notify
        self._deliver = deliver
        self._on_commit = on_commit
        self._queue: SimpleQueue[Append | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self.completions: deque[Completion] = deque()

    def submit(self, append: Append) -> None:
        """Commit `append` after everything submitted before.  Called on the loop's thread; the first call starts the
        thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bitactor-store-commit", daemon=True)
            self._thread.start()
        self._queue.put(append)

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

    def _next_group(self) -> list[Append]:
        """The appends of the next commit: at least one, and what has come by now; empty when closing and none is
        left."""
        first = self._queue.get()
        if first is None:
            return []
        group = [first]
        writes = len(first.items)
        while writes < _GROUP_WRITES:
            try:
                append = self._queue.get_nowait()
            except Empty:
                break
            if append is None:
                self._queue.put(None)
                break
            group.append(append)
            writes += len(append.items)
        return group

    def _commit(self, group: Sequence[Append]) -> list[Completion]:
        items = group[0].items if len(group) == 1 else [item for append in group for item in append.items]
        try:
            refusals = retry_while_busy(lambda: self._writer.commit(self._open_connection(), items), self._patience)
        except sqlite3.Error as error:
            failure = store_error(error, self._path)
            failure.__cause__ = error
            return [Completion(append.done, (), failure) for append in group]
        except Exception as error:
            failure = error if isinstance(error, StoreError) else StoreError(f"{self._path}: {error!r}")
            return [Completion(append.done, (), failure) for append in group]
        self._on_commit(len(items))
        return _split(group, refusals)

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection


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
