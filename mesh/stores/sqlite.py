"""A journal in one SQLite file, shared by any number of processes of one machine.

Guarantees: what `done` was called for without an error is in the file, a whole write or nothing of it, in the order of
the calls. With `durability="process"` it survives the death of the process, with `"power"` that of the machine, with
`"none"` neither is promised once the machine dies (the file may then be damaged).

Cost: `"process"` and `"none"` commit on the calling thread, tens of microseconds; when another process holds the file's
lock, a commit thread takes over until it has caught up, so that the caller never sleeps.  `"power"` waits for the disk
in that thread, all that is waiting in one commit.  Checkpoints and the renewal of the lease have threads of their own.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

from typing_extensions import override

from bitactor.errors import ConfigurationError, StaleOwner, StoreError, suggest
from bitactor.ports import (
    Arrived,
    Claim,
    Due,
    Message,
    Refusal,
    Sent,
    Store,
    StoreFault,
    StoreQueries,
    TransactionRow,
    Write,
)
from mesh.stores.audit import Inspector
from mesh.stores.database import Value, await_through, connect, is_busy, sleep_through, store_error, tries, unless
from mesh.stores.journal.forget import forget
from mesh.stores.journal.inbox import pack_message, send_message
from mesh.stores.journal.migration import migrating
from mesh.stores.journal.takeover import Copies
from mesh.stores.lease import (
    HUNG_AFTER,
    LeaseThread,
    claim,
    identify,
    process_started,
    reclaim,
    register,
    release,
    unclaimed,
)
from mesh.stores.liveness import Observer, bounds_of
from mesh.stores.locks import LockNotice
from mesh.stores.read import OwnQueries
from mesh.stores.store_file import StoreFile
from mesh.stores.threads import (
    CHECKPOINT_PAGES,
    LONGEST_LOG,
    Append,
    Change,
    CheckpointThread,
    CommitThread,
    Done,
    make_changes,
)
from mesh.stores.write import Writer
from registry.support.clock import monotonic_ns

_log = logging.getLogger("bitactor.store")

Durability = Literal["process", "power", "none"]

_SYNCHRONOUS: Final = {"process": "NORMAL", "power": "FULL", "none": "OFF"}
CLOSING_PATIENCE: Final = 5.0
REFUSALS_LOOK: Final = 0.005  # seconds between looks whether all that was appended has been answered


class SqliteStore(Store):
    """The `Store` port on an SQLite file.  Queries see what is committed, not what waits for the commit thread.

    `notify` runs a function on the thread that calls this store, soon (`loop.call_soon_threadsafe`).  After `lease`
    seconds of silence an owner that cannot be seen from here counts as dead, after `hung_after` one whose process can
    (0: never; no sooner than after two leases).  `patience`: seconds an append waits for a locked file before it fails.
    The write-ahead log goes into the file every second, and after `checkpoint_pages` of 4 KiB at once.
    """

    shared = True
    synchronous = False

    def __init__(
        self,
        path: str | Path,
        *,
        notify: Callable[[Callable[[], None]], None],
        durability: Durability = "process",
        lease: float = 5.0,
        hung_after: float = HUNG_AFTER,
        patience: float = 30.0,
        checkpoint_pages: int = CHECKPOINT_PAGES,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if durability not in _SYNCHRONOUS:
            raise ConfigurationError(f"durability={durability!r}.{suggest(str(durability), get_args(Durability))}")
        if not lease > 0 or not patience >= 0 or not hung_after >= 0:
            raise ConfigurationError(
                f"lease={lease!r}, patience={patience!r}, hung_after={hung_after!r}: seconds, more than 0, at least 0, "
                "and at least 0"
            )
        self._path = Path(path).absolute()
        self._notice = LockNotice(self._path)
        self._queries = OwnQueries(self._path, self._notice)
        self._connection: sqlite3.Connection | None = None
        self._notify = notify
        self._synchronous = _SYNCHRONOUS[durability]
        self._commits_on_caller = durability != "power"
        self._patience = patience
        self._checkpoint_pages = checkpoint_pages
        self._wall_ns = wall_ns
        self._identity = identify()
        self._bounds = bounds_of(lease, hung_after)
        self._observer = Observer(self._identity, self._bounds, monotonic_ns, wall_ns, process_started)
        self._began_ns = 0
        self._owner = ""
        self._number = 0
        self._opened = False
        self._closing = False
        self._refusal = ""  # why nothing may be written any more; empty: it may
        # Appends submitted to the commit thread and not delivered; this thread may commit only while there are none
        self._in_flight = 0
        self._file: StoreFile
        self._writer: Writer
        self._commit_thread: CommitThread
        self._checkpoint_thread: CheckpointThread
        self._lease_thread: LeaseThread

    @override
    def open(self, owner: str) -> None:
        """Creates the file if need be.

        Raises:
            StoreError: the file cannot be used (says why, and what to do), the name is taken, or it was opened before.
        """
        sleep_through(self._opening(owner))

    @override
    async def open_on_loop(self, owner: str) -> None:
        await await_through(self._opening(owner))

    def _opening(self, owner: str) -> Generator[float]:
        """Open; yields how many seconds to wait before the next look at a file that others keep locked."""
        if self._opened:
            raise StoreError(f"{self._path}: a store is opened once; make another one")
        if not owner:
            raise StoreError(f"{self._path}: an owner needs a name")
        yield from self._unless_closed(migrating(self._path, self._wall_ns))
        connection = yield from self._trying(self._connect)
        try:
            yield from self._trying(partial(self._queries.words.load, connection))
            yield from self._taking_name(connection, owner)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._opened = True
        try:
            self._writer = Writer(self._owner, self._number, self._queries.words)
            self._file = StoreFile(self._path, self._writer.newest_row)
            self._start_threads()
            self._queries.open(connection, self._require_file)
        except BaseException:
            self._connection = None
            connection.close()
            raise

    @override
    async def rejoin(self, owner: str) -> None:
        """Waits as `open` does.

        Raises:
            StoreError: the file cannot be written, the name is taken, or this store is closed.
        """
        await await_through(self._rejoining(owner))

    def _rejoining(self, owner: str) -> Generator[float]:
        connection = self._connection
        if connection is None or self._closing:
            raise StoreError(f"{self._path} is {'closed' if self._opened else 'not open'}")
        self._lease_thread.stop()
        while self._in_flight:  # what was appended as the owner before is refused as such
            yield REFUSALS_LOOK
            if self._closing:
                raise StoreError(f"{self._path}: the store was closed meanwhile")
        yield from self._taking_name(connection, owner)
        self._writer.become(owner, self._number)
        self._lease_thread = self._make_lease_thread()
        self._lease_thread.start()

    def _taking_name(self, connection: sqlite3.Connection, owner: str) -> Generator[float]:
        """Take part as `owner` from now on."""

        def take() -> None:
            self._began_ns = monotonic_ns()
            self._number = register(connection, owner, self._identity, self._wall_ns() + self._bounds.lease_ns)

        yield from self._trying(take)
        self._owner = owner

    def _trying(self, action: Callable[[], Value]) -> Generator[float, None, Value]:
        """The value of `action()`, tried until no other connection is in the way."""
        try:
            return (yield from self._unless_closed(tries(action, self._patience, self._notice)))
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error

    def _unless_closed(self, waiting: Generator[float, None, Value]) -> Generator[float, None, Value]:
        why = f"{self._path}: the store was closed while it waited for the file"
        return unless(waiting, lambda: self._closing, why)

    @override
    def lease_until_ns(self) -> int:
        return self._lease_thread.until_ns if self._opened else 0

    @override
    def append(self, writes: Sequence[Write], done: Done) -> None:
        """`done` is called before this returns, or later on the loop's thread."""
        connection = self._connection
        if connection is None or self._refusal:
            done((), self._refused())
            return
        items = self._writer.prepare(writes)
        if self._in_flight or not self._commits_on_caller:
            self._submit(Append(items, done))
            return
        try:
            refusals: Sequence[Refusal]
            refusals, size = self._writer.commit(connection, items)
        except sqlite3.Error as error:
            if is_busy(error):
                self._submit(Append(items, done))
                return
            failure = store_error(error, self._path)
            failure.__cause__ = error
        except StoreError as error:
            failure = error
        else:
            self._checkpoint_thread.count_commit(size)
            done(refusals, None)
            return
        done((), failure)

    @override
    def reader(self) -> StoreQueries:
        return self._queries

    @override
    async def claim(self, shapes: Mapping[str, str] | None = None) -> list[Claim]:
        """Waits up to 5 s for the file's lock if there is a transaction to take over; the event loop goes on meanwhile.

        Raises:
            StoreError: the file cannot be written.
        """
        owner = self._owner  # not another that we are by the time the file is free

        def take_over(connection: sqlite3.Connection) -> tuple[list[Claim], Copies]:
            copies = Copies()  # anew each time it is tried
            return claim(connection, owner, self._observer, self._wall_ns(), shapes, copies), copies

        claims, copies = await self._ask(take_over)
        read = self._queries.decoded({name: copies.frames[name] for name, *_ in claims if name in copies.frames})
        return [one._replace(pulses=read.get(one.transaction)) for one in claims] if read else claims

    @override
    async def unclaimed(self, shapes: Mapping[str, str], limit: int = 100) -> list[TransactionRow]:
        return await self._ask(lambda connection: unclaimed(connection, self._owner, shapes, limit))

    @override
    async def reclaim(self, held: Container[str]) -> list[Claim]:
        """Reads all that is open here; for the moment after a failure.  Waits as `claim` does.

        Raises:
            StoreError: the file cannot be written, or our lease was taken from us.
        """
        return await self._ask(partial(reclaim, owner=self._owner, held=held, invalidate=self._writer.invalidate))

    async def _ask(self, question: Callable[[sqlite3.Connection], Value]) -> Value:
        return await await_through(self._unless_closed(self._queries.asking(question)))

    @override
    async def due(self, limit: int = 100) -> list[Due]:
        return self._queries.due(self._owner, limit)

    @override
    async def send(self, message: Message) -> Sent:
        packed = pack_message(message)
        return await self._change(lambda connection: send_message(connection, packed))

    @override
    async def inbox(self, transaction: str) -> list[Message]:
        return self._queries.inbox(transaction)

    @override
    async def arrived(self, after: int = 0, limit: int = 100) -> Arrived:
        return self._queries.arrived(self._owner, after, limit)

    @override
    async def forget(self, before_ns: int, limit: int = 100) -> int:
        return await self._change(lambda connection: forget(connection, before_ns, limit))

    async def _change(self, make: Callable[[sqlite3.Connection], Value]) -> Value:
        """What `make` returns, which changes the file inside a database transaction; kept as an append is, on this
        thread or on the commit thread.

        Raises:
            StoreError: nothing was changed.
        """
        connection = self._connection
        if connection is None or self._refusal:
            raise self._refused()
        if not self._in_flight and self._commits_on_caller:
            try:
                [value] = make_changes(connection, make)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise store_error(error, self._path) from error
            else:
                self._checkpoint_thread.count_commit(0)
                return value
        answer: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
        self._submit(Change(make, answer))
        return await answer

    def _refused(self) -> StoreError:
        return StoreError(self._refusal or f"{self._path} is {'closed' if self._opened else 'not open'}")

    @override
    def close(self) -> None:
        """Takes tens of milliseconds (the log goes into the file, the file to the disk); up to `patience` seconds when
        another process keeps the file locked.  Queries still answer afterwards, on any thread, as long as the file is
        there; appends fail."""
        connection = self._connection
        if connection is None or self._closing:
            self._closing = True  # one that waits for its file waits no more
            return
        self._closing = True
        lost, self._refusal = self._refusal, f"{self._path} is closed"
        self._commit_thread.close()
        self._deliver()
        self._lease_thread.close()
        self._checkpoint_thread.close()
        try:
            if lost or self._file.moved():
                return  # that is nothing to write to
            sleep_through(tries(lambda: release(connection, self._owner), CLOSING_PATIENCE))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            # Others find the owner's process gone, or its lease run out, a little later.
            _log.warning("%s: the lease of owner %r could not be given back: %s", self._path, self._owner, error)
        finally:
            self._connection = None
            self._queries.close()
            connection.close()

    def _require_file(self) -> None:
        """Raise `StoreError` if the file is not what was opened any more."""
        if self._opened and self._file.fault:
            raise StoreError(self._file.fault)

    def _may_checkpoint(self) -> bool:
        """Whether the file is what it was; tells if that has changed.  On the thread of checkpoints."""
        if self._file.look() and not self._closing:
            self._refusal = self._file.fault
            self._tell(StoreFault(self._file.fault, lost=True))
        return not self._file.fault

    def _tell_damage(self, why: str, transaction: str) -> None:
        """Say what of the journal is damaged, unless that is because the file is another by now; on the thread of
        checkpoints."""
        if self._may_checkpoint():
            self._tell(StoreFault(f"{self._path}: {why}", transaction))

    def _tell(self, fault: StoreFault) -> None:
        """Say what is wrong, on the loop's thread; from any thread."""
        try:
            self._notify(lambda: self._report(fault))
        except Exception as error:  # the loop is closed, most likely
            _log.debug("%s: nobody can be told: %r: %s", self._path, error, fault.why)

    def _report(self, fault: StoreFault) -> None:
        if self.on_fault is not None and not self._closing:
            self.on_fault(fault)

    def _connect(self) -> sqlite3.Connection:
        """A connection that writes, for the calling thread.

        Its own commits make a checkpoint where the thread for that cannot get in between: the log stays bounded.
        """
        pages = LONGEST_LOG * self._checkpoint_pages
        return connect(self._path, synchronous=self._synchronous, timeout=0, checkpoint_pages=pages)

    def _start_threads(self) -> None:
        synchronous = self._synchronous if self._synchronous == "OFF" else "NORMAL"
        self._checkpoint_thread = CheckpointThread(self._path, synchronous, self._checkpoint_pages)
        self._checkpoint_thread.may_work = self._may_checkpoint
        self._checkpoint_thread.inspect = Inspector(self._tell_damage).work
        self._lease_thread = self._make_lease_thread()
        self._commit_thread = CommitThread(
            self._path,
            self._writer,
            connect=self._connect,
            patience=self._patience,
            notify=self._notify,
            deliver=self._deliver,
            on_commit=self._checkpoint_thread.count_commit,
            guard=self._require_file,
            notice=self._notice,
        )
        self._checkpoint_thread.start()
        self._lease_thread.start()

    def _make_lease_thread(self) -> LeaseThread:
        fenced = partial(self._fenced, self._owner)
        thread = LeaseThread(
            self._path, self._owner, self._bounds, self._wall_ns, self._began_ns, self._notify, fenced, self._notice,
        )  # fmt: skip
        thread.may_work = lambda: not (self._file.fault or self._file.moved())
        return thread

    def _fenced(self, owner: str, error: StaleOwner) -> None:
        if self.on_fenced is not None and owner == self._owner and not self._closing:
            self.on_fenced(error)

    def _submit(self, item: Append | Change) -> None:
        self._in_flight += 1
        self._commit_thread.submit(item)

    def _deliver(self) -> None:
        """Call the `done`s of what the commit thread did; on the loop's thread."""
        completions = self._commit_thread.completions
        while completions:
            done, answer, error = completions.popleft()
            self._in_flight -= 1
            try:
                done(answer, error)
            except Exception:
                _log.exception("%s: a callback of append raised", self._path)
