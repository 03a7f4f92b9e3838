"""Owners of transactions: an owner's row with a lease on it, kept alive from a thread, and the claim on what dead
owners left.

An owner is dead when it gave its lease back, when its process on this machine is gone, or when it has been watched for
long enough without renewing its lease: for a lease, where its process cannot be seen from here (another pid namespace,
an earlier boot), and for a bound of its own where it can, for it may only have been stopped.  See `liveness`.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from bitactor.errors import StaleOwner, StoreError
from bitactor.messages.values import is_text
from bitactor.ports import Claim, TransactionRow
from mesh.stores.database import ConnectionThread, tries, write_transaction
from mesh.stores.journal.parts import COMMIT_BITS, log_id
from mesh.stores.journal.takeover import Copies, archive_tails, delete_log
from mesh.stores.liveness import RELEASED, Bounds, Identity, Observer, OwnerRow, of_one_boot
from mesh.stores.locks import LockNotice
from mesh.stores.rows import TRANSACTION_COLUMNS, transaction_from_row
from registry.support.clock import monotonic_ns

_log = logging.getLogger("bitactor.store")

HUNG_AFTER: Final = 300.0
"""Seconds after which an owner hangs, if nothing else is said."""
_LONG_AGO: Final = 1
_IN_USE: Final = (
    "SELECT 1 FROM owners WHERE number = ?1 UNION ALL SELECT 1 FROM (SELECT 1 FROM log WHERE id >= ?2 AND id < ?3"
    " LIMIT 1)"
)
"""Whether a number has rows: an owner's, or in the log."""
_NAME_NAMELESS: Final = (
    "UPDATE transactions SET owner = coalesce((SELECT owner FROM owners WHERE number = log_from >> ?), ?)"
    " WHERE CAST(owner AS BLOB) = ? AND open = 1"
)
_FENCED_RETENTION_NS: Final = 24 * 3600 * 10**9


def identify() -> Identity:
    """The identity of this process."""
    pid = os.getpid()
    return Identity(pid, _boot_id(), process_started(pid) or 0)


def process_started(pid: int) -> int | None:
    """When a process that runs in our pid namespace was started, in clock ticks after boot; None if there is none (or
    only its zombie).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything; field 3 is what comes behind the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def register(connection: sqlite3.Connection, owner: str, identity: Identity, expires_ns: int) -> int:
    """Take the name `owner`, with a lease until `expires_ns`; returns the number of its rows in the log.

    Raises:
        StoreError: the name is taken.
    """
    with write_transaction(connection):
        (number,) = connection.execute("SELECT last + 1 FROM numbers WHERE name = 'owner'").fetchone()
        while connection.execute(_IN_USE, (number, log_id(number, 0), log_id(number + 1, 0))).fetchone():
            number += 1  # a row of another owner is damaged, or, in a damaged file, the last number
        connection.execute("UPDATE numbers SET last = ? WHERE name = 'owner'", (number,))
        try:
            connection.execute(
                "INSERT INTO owners (owner, pid, boot_id, process_started, expires_ns, number)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (owner, *identity, expires_ns, number),
            )
        except sqlite3.IntegrityError as error:
            raise StoreError(
                f"an owner {owner!r} is in the journal already; every process takes a name of its own"
            ) from error
    return int(number)


def release(connection: sqlite3.Connection, owner: str) -> None:
    """Give the lease back: the row goes, or, while open transactions hang on it, others may claim them at once."""
    with write_transaction(connection):
        if _has_open(connection, owner):
            connection.execute("UPDATE owners SET expires_ns = ? WHERE owner = ?", (RELEASED, owner))
        else:
            delete_log(connection, owner)
            connection.execute("DELETE FROM owners WHERE owner = ? AND fenced = ''", (owner,))


def refuse_living(path: Path, now_ns: Callable[[], int], connection: sqlite3.Connection) -> None:
    """Make sure that no process uses a journal whose form is to be changed: one that can be seen running, or, where it
    cannot be seen, whose lease has not run out.

    Raises:
        StoreError: one does.
    """
    identity = identify()
    for owner, pid, boot_id, started, expires_ns in connection.execute(
        "SELECT owner, pid, boot_id, process_started, expires_ns FROM owners WHERE fenced = '' AND expires_ns <> ?",
        (RELEASED,),
    ):
        if boot_id and boot_id == identity.boot_id:
            lives = type(pid) is int and process_started(pid) == started
        else:
            lives = of_one_boot(boot_id, identity.boot_id) and _whole(expires_ns, _LONG_AGO) > now_ns()
        if lives:
            raise StoreError(
                f"{path} is of an earlier release, and process {pid} of that release (owner {owner!r}) still uses it; "
                "nothing was changed: stop all nodes of the earlier release first, then start this one"
            )


def require_lease(connection: sqlite3.Connection, owner: str) -> None:
    """Make sure, inside a database transaction that writes, that nobody has taken over from `owner`.

    Raises:
        StaleOwner: another owner has taken over.
    """
    row = connection.execute("SELECT fenced FROM owners WHERE owner = ?", (owner,)).fetchone()
    if row is None or row[0]:
        by = f"by {row[0]!r}" if row else "by another process"
        error = StaleOwner(
            f"owner {owner!r} was declared dead {by} and its transactions were taken over; stop working on them"
        )
        error.owner = owner
        raise error


def claim(
    connection: sqlite3.Connection,
    owner: str,
    observer: Observer,
    now_ns: int,
    shapes: Mapping[str, str] | None,
    copies: Copies | None = None,
) -> list[Claim]:
    """Move the open transactions of dead owners to `owner`, each with its next epoch, and fence those owners; `copies`
    gets what was read of them.

    Only those that began in one of `shapes` (workflow → digest), if given: the others stay without an owner until
    somebody who can run them asks.

    `observer` has to be the same at each call, and is asked every half a lease or sooner.  `now_ns` is wall time, by
    which only old rows are tidied away.  Of several processes that call this at once, each transaction goes to one.
    Nothing is written if nobody is dead.

    Raises:
        StaleOwner: `owner` itself was declared dead.
    """
    if not _dead_owners(connection, owner, observer) and not _orphaned_owners(connection, owner):
        return []
    with write_transaction(connection):
        require_lease(connection, owner)
        _name_nameless(connection, owner)
        dead = _dead_owners(connection, owner, observer)
        given_back = _given_back(connection)
        connection.execute(  # first, so that who is fenced now can read by whom, whatever the wall clock says
            "DELETE FROM owners WHERE fenced <> '' AND expires_ns < ? AND expires_ns <> ?",
            (now_ns - _FENCED_RETENTION_NS, RELEASED),
        )
        claims: list[Claim] = []
        which = "owner = ? AND open = 1"
        known: tuple[str, ...] = ()
        if shapes is not None:
            which += (
                " AND EXISTS (SELECT 1 FROM json_each(?) AS shape WHERE shape.key = workflow AND shape.value = digest)"
            )
            known = (json.dumps(dict(shapes)),)
        for name in {*dead, *_orphaned_owners(connection, owner)}:
            archive_tails(connection, name, copies or Copies())
            theirs = connection.execute(
                f"SELECT transaction_id, epoch + 1 FROM transactions WHERE {which}", (name, *known)
            )
            claims += [Claim(transaction, epoch, name in given_back) for transaction, epoch in theirs]
            connection.execute(
                f"UPDATE transactions SET owner = ?, epoch = epoch + 1 WHERE {which}", (owner, name, *known)
            )
            # A row that is gone fences as well as one that says so; the latter tells a suspended process who has its
            # work, and who comes later that what is left was given back.
            if dead.get(name, True) and not (name in given_back and _has_open(connection, name)):
                connection.execute("DELETE FROM owners WHERE owner = ?", (name,))
            else:
                connection.execute("UPDATE owners SET fenced = ? WHERE owner = ?", (owner, name))
    return sorted(claims)


def _name_nameless(connection: sqlite3.Connection, owner: str) -> None:
    """Give open transactions whose owner's name is damaged, so that it is no text, to the owner in whose log they are,
    or to nobody; asked for by that name, they would stop the takeover of all others."""
    names: list[Any] = _orphaned_owners(connection, owner)
    for name in names:
        if not is_text(name):
            data = name.encode("utf-8", "surrogateescape") if type(name) is str else bytes(name)
            connection.execute(_NAME_NAMELESS, (COMMIT_BITS, data.decode("utf-8", "backslashreplace"), data))


def unclaimed(
    connection: sqlite3.Connection, owner: str, shapes: Mapping[str, str], limit: int
) -> list[TransactionRow]:
    """Open transactions of the workflows in `shapes`, begun in another shape, that no living owner stands for; oldest
    first."""
    holders = _orphaned_owners(connection, owner)
    if not holders:
        return []
    rows = connection.execute(
        f"SELECT {TRANSACTION_COLUMNS} FROM transactions WHERE open = 1 AND owner IN (SELECT value FROM json_each(?))"
        " AND EXISTS (SELECT 1 FROM json_each(?) AS shape WHERE shape.key = workflow AND shape.value <> digest)"
        " ORDER BY transaction_id LIMIT ?",
        (json.dumps(holders), json.dumps(dict(shapes)), max(limit, 0)),
    ).fetchall()
    return [transaction_from_row(row) for row in rows]


def reclaim(
    connection: sqlite3.Connection, owner: str, held: Container[str], invalidate: Callable[[Iterable[str]], None]
) -> list[Claim]:
    """Give `owner`'s own open transactions that are not in `held` their next epoch; `invalidate` is told while the file
    is ours alone.

    Always writes, so that it succeeds only if the file can be written.

    Raises:
        StaleOwner: these transactions are another owner's by now.
    """
    with write_transaction(connection):
        require_lease(connection, owner)
        connection.execute("UPDATE owners SET expires_ns = expires_ns WHERE owner = ?", (owner,))
        rows = connection.execute(
            "SELECT transaction_id, epoch + 1 FROM transactions WHERE owner = ? AND open = 1", (owner,)
        )
        claims = [Claim(*row) for row in rows if row[0] not in held]
        raised = [(claim.epoch, claim.transaction) for claim in claims]
        connection.executemany("UPDATE transactions SET epoch = ? WHERE transaction_id = ?", raised)
        invalidate(claim.transaction for claim in claims)
    return sorted(claims)


def _dead_owners(connection: sqlite3.Connection, owner: str, observer: Observer) -> dict[str, bool]:
    """Dead owners that are not fenced yet, and whether their process is gone for certain."""
    rows = connection.execute(
        "SELECT owner, pid, boot_id, process_started, expires_ns FROM owners WHERE owner <> ? AND fenced = ''", (owner,)
    )
    return observer.look(
        [
            OwnerRow(str(name), _whole(pid, 0), str(boot_id), _whole(started, 0), _whole(expires_ns, _LONG_AGO))
            for name, pid, boot_id, started, expires_ns in rows
            if is_text(name)  # else nothing is that owner's: what was, has the name that it had
        ]
    )


def _whole(value: object, otherwise: int) -> int:
    """A number of a row; `otherwise` if the row is damaged, which is no reason to leave those of others."""
    return value if type(value) is int else otherwise


def _given_back(connection: sqlite3.Connection) -> set[str]:
    """Owners that gave their lease back while open transactions hung on it."""
    return {name for (name,) in connection.execute("SELECT owner FROM owners WHERE expires_ns = ?", (RELEASED,))}


def _has_open(connection: sqlite3.Connection, owner: str) -> bool:
    """Whether open transactions hang on this owner."""
    which = "SELECT 1 FROM transactions WHERE owner = ? AND open = 1 LIMIT 1"
    return connection.execute(which, (owner,)).fetchone() is not None


def _orphaned_owners(connection: sqlite3.Connection, owner: str) -> list[str]:
    """Names on open transactions that no living row in `owners` stands for.

    Goes from name to name through the index, so that a million open transactions cost no more than one.
    """
    rows = connection.execute(
        "WITH RECURSIVE holders(name) AS ("
        " SELECT min(owner) FROM transactions WHERE open = 1"
        " UNION ALL"
        " SELECT (SELECT min(owner) FROM transactions WHERE open = 1 AND owner > name) FROM holders WHERE name IS NOT "
        "NULL"
        ") SELECT name FROM holders WHERE name IS NOT NULL AND name <> ?"
        " AND name NOT IN (SELECT owner FROM owners WHERE fenced = '')",
        (owner,),
    ).fetchall()
    return [name for (name,) in rows]


def _boot_id() -> str:
    """The boot of this machine and the namespace our pid is a number in; empty where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class LeaseThread(ConnectionThread):
    """The thread that keeps an owner's lease from running out, also while the event loop is blocked: it renews the
    lease every third of it.

    It does so no more while the loop has not turned for `bounds.hung_ns`: who makes no progress for so long lets others
    take over.

    Args:
        began_ns: the moment before the owner was registered, by the monotonic clock.
        notify: runs a function on the loop's thread soon.
        fenced: called there with the reason, once another process has taken over.
        notice: says in the log what is waited for, and is told when the file could be written.
    """

    def __init__(
        self,
        path: Path,
        owner: str,
        bounds: Bounds,
        wall_ns: Callable[[], int],
        began_ns: int,
        notify: Callable[[Callable[[], None]], None],
        fenced: Callable[[StaleOwner], None],
        notice: LockNotice,
    ) -> None:
        what = f"the lease of owner {owner!r} could not be renewed"
        self._interval = bounds.lease_ns / 3e9
        super().__init__("bitactor-store-lease", path, what, synchronous="NORMAL", timeout=0)
        self._owner = owner
        self._bounds = bounds
        self._wall_ns = wall_ns
        self._notify = notify
        self._fenced = fenced
        self._notice = notice
        self._looked_ns = began_ns
        self._silent_ns = 0  # for how long this thread has watched the loop not turn
        self._asked = False  # whether the loop has been asked to say that it turns, and has not yet
        self._hangs = False
        # Until when the lease holds, by our monotonic clock; 0: it was taken from us
        self.until_ns = began_ns + bounds.lease_ns

    @override
    def wait(self) -> bool:
        return not self._closing.wait(self._interval)

    @override
    def work(self, connection: sqlite3.Connection) -> bool:
        began_ns = monotonic_ns()
        turns = self._turns(began_ns)

        def renew() -> None:
            if turns:
                connection.execute(
                    "UPDATE owners SET expires_ns = ? WHERE owner = ? AND fenced = ''",
                    (self._wall_ns() + self._bounds.lease_ns, self._owner),
                )
            require_lease(connection, self._owner)

        try:
            for pause in tries(renew, self._interval, self._notice):
                if self._closing.wait(pause):
                    return False
        except StaleOwner as error:
            self.until_ns = 0
            self._tell(partial(self._fenced, error))
            return False
        if turns:
            self._notice.end()
            self.until_ns = began_ns + self._bounds.lease_ns
        return True

    def stop(self) -> None:
        """Renew no more, without waiting for what is under way."""
        self._closing.set()

    def _turns(self, now_ns: int) -> bool:
        """Whether the loop has turned not too long ago.  Time in which this thread was stopped too does not count."""
        if not self._bounds.hung_ns:
            return True
        if not self._asked:
            self._asked = True
            self._tell(self._note_turn)
        self._silent_ns += min(now_ns - self._looked_ns, self._bounds.lease_ns)
        self._looked_ns = now_ns
        hangs = self._silent_ns > self._bounds.hung_ns
        if hangs and not self._hangs:
            _log.error(
                "%s: the event loop of owner %r has not turned for %.3g s, so its lease is not renewed any more: other "
                "processes may take its transactions over", self._path, self._owner, self._silent_ns / 1e9,
            )  # fmt: skip
        elif self._hangs and not hangs:
            _log.warning("%s: the event loop of owner %r turns again", self._path, self._owner)
        self._hangs = hangs
        return not hangs

    def _note_turn(self) -> None:
        self._silent_ns = 0
        self._asked = False

    def _tell(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._notify(callback)
