"""Whether all that a journal keeps is what was written: each transaction's frames, from the first to the last, by the
checksums of what they are kept in and by the chain of their digests; and whether each pulse can be read back.

It walks a part of the archive, or some rows of the log, at a time, so that it needs little memory and nothing waits for
it, and may do so while the file is written: what it then finds to be odd it looks at once more, as of one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import groupby
from typing import Any, Final, NamedTuple

from bitactor.errors import StoreError
from mesh.stores.journal.blobs import read_blob
from mesh.stores.journal.frames import GENESIS, Digest, Frame, Word, digest_of, frames_in, pulses_of, why_of
from mesh.stores.journal.parts import COMMIT_BITS, end_of_log, frames_of_log, frames_of_part, home_of_log
from mesh.stores.journal.state import TOLD_COLUMNS, Told
from mesh.stores.journal.tail import DamagedTail, Tail, id_bytes, one_moment, tails_in_log
from mesh.stores.journal.words import read_word

_TRANSACTIONS_A_STEP: Final = 50
_WORDS_A_STEP: Final = 500
_PARTS_A_STEP: Final = 2
_LOG_BYTES_A_STEP: Final = 64 * 1024
_PULSES_A_STEP: Final = 200
_END: Final = 1 << 63
_USERS: Final = "those that use it are named"
_OWNERS: Final = "those that need it are named"

# Texts as bytes, for what is damaged may be none.
_TRANSACTIONS: Final = (
    "SELECT CAST(transaction_id AS BLOB), log_from, head, CAST(root AS BLOB), CAST(workflow AS BLOB), open,"
    f" CAST(digest AS BLOB), {TOLD_COLUMNS} FROM transactions WHERE transaction_id > CAST(? AS TEXT)"
    " ORDER BY transaction_id LIMIT ?"
)
_TRANSACTION: Final = (
    "SELECT open <> 0 OR status IN ('halted', 'stuck'), log_from, head, CAST(root AS BLOB), CAST(workflow AS BLOB),"
    f" open, CAST(digest AS BLOB), {TOLD_COLUMNS} FROM transactions WHERE transaction_id = CAST(? AS TEXT)"
)
_PARTS: Final = (
    "SELECT seq, next_seq, log_id, CAST(body AS BLOB) FROM archive WHERE transaction_id = CAST(? AS TEXT) AND seq > ?"
    " ORDER BY seq LIMIT ?"
)
_STRAYS: Final = (
    "SELECT DISTINCT CAST(transaction_id AS BLOB) FROM archive WHERE transaction_id > CAST(? AS TEXT)"
    " AND (? OR transaction_id <= CAST(? AS TEXT)) AND NOT EXISTS"
    " (SELECT 1 FROM transactions WHERE transactions.transaction_id = archive.transaction_id)"
)
_WORDS: Final = "SELECT word, CAST(body AS BLOB) FROM words WHERE word > ? ORDER BY word LIMIT ?"
_LOG: Final = "SELECT id, CAST(body AS BLOB) FROM log WHERE id > ? AND id <= ? ORDER BY id"
_AROUND: Final = (
    "SELECT (SELECT max(id) FROM log WHERE id >= ?1 AND id < ?2), (SELECT id FROM log WHERE id = ?3)"
    " WHERE NOT EXISTS (SELECT 1 FROM log WHERE id = ?2)"
)
_WORKFLOWS: Final = (
    "WITH RECURSIVE names(name) AS (SELECT min(workflow) FROM transactions UNION ALL"
    " SELECT (SELECT min(workflow) FROM transactions WHERE workflow > name) FROM names WHERE name IS NOT NULL)"
    " SELECT CAST(name AS BLOB) FROM names WHERE name IS NOT NULL"
)
"""From name to name through the index."""
_RUNNING: Final = (
    "SELECT CAST(transaction_id AS BLOB), CAST(root AS BLOB), CAST(workflow AS BLOB), open FROM transactions"
    " WHERE status = 'running'"
)
_NEXT_LOG: Final = "SELECT min(id) FROM log WHERE id >= ?"


class Fault(NamedTuple):
    """What of a journal is not as it was written."""

    transaction: str
    """Whose pulses cannot be read for it; empty: nobody's, all that is needed is there."""
    pulse: int
    """The first of them that cannot be read; -1: that cannot be told."""
    why: str
    wanted: bool
    """Something is left to do of that transaction, or it may be resumed."""


class Progress(NamedTuple):
    """How far a look through a journal is."""

    transactions: int
    pulses: int


class _Chain:
    """The frames of one transaction, followed from the first on."""

    __slots__ = ("digest", "head", "name", "part", "row", "seq", "told")

    def __init__(self, name: bytes, digest: bytes = b"") -> None:
        self.name = name
        self.digest = digest
        """Of the workflow's shape, as the row has it."""
        self.seq = 0
        """The number of the next pulse."""
        self.head = GENESIS
        """The digest of the frame before that."""
        self.part = -_END
        """The number that the last part in the archive begins with."""
        self.row: tuple[Any, ...] = ()
        """What its row says of what its pulses tell."""
        self.told = Told()


class _InLog(NamedTuple):
    """A transaction that has frames only in the log."""

    log_from: int
    chain: _Chain


class _End(NamedTuple):
    """Where the archive ends for a transaction."""

    log_from: int | None
    transaction: str
    chain: _Chain
    wanted: bool


class Verification:
    """A look through a journal; between two steps the connection may do other work."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._words: dict[int, Word] = {}
        self._last_word = 0
        self._in_log: dict[bytes, _InLog] = {}
        self._named: set[bytes] = set()  # those with a fault that was told first
        self._transactions = self._pulses = 0

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self._transactions, self._pulses)

    def walk(self) -> Iterator[Fault | Progress]:
        """The first fault of each transaction of the journal, and how far it is after each step: a few hundred pulses,
        or a part of the archive.

        Raises:
            sqlite3.Error: the file itself cannot be read.
        """
        yield from self._walk_running()
        yield from self._walk_words()
        yield from self._walk_transactions()
        yield from self._walk_logs()

    def look(self, transaction: str) -> Iterator[Fault | Progress]:
        """The same of one transaction alone, at once."""
        self._load_words()
        self._transactions += 1
        yield from self._faults([transaction.encode("utf-8", "surrogateescape")])
        yield self.progress

    def _walk_running(self) -> Iterator[Fault | Progress]:
        """First the transactions that run and that no look for what is to be taken over finds, for what it goes by is
        damaged."""
        sound = all(_is_text(name) for (name,) in self._connection.execute(_WORKFLOWS))
        for name, *row in self._connection.execute(f"{_RUNNING} AND open NOT IN (0, 1)" if sound else _RUNNING):
            try:
                _require_sound(*row)
            except StoreError as error:
                self._named.add(name)
                yield Fault(_text(name), 0, str(error), True)
        yield self.progress

    def _walk_words(self) -> Iterator[Fault | Progress]:
        expected = 1
        while rows := self._connection.execute(_WORDS, (self._last_word, _WORDS_A_STEP)).fetchall():
            for number, body in rows:
                if number != expected:
                    yield _of_nobody(f"word {expected} is missing; {_USERS}")
                if self._read_word(number, body) is None:
                    yield _of_nobody(f"word {number} is damaged; {_USERS}")
                expected = number + 1
            yield self.progress
        for (number,) in self._connection.execute("SELECT word FROM words WHERE word < 1 LIMIT 1").fetchall():
            yield _of_nobody(f"word {number} is damaged: no word has such a number")

    def _load_words(self) -> None:
        for number, body in self._connection.execute(_WORDS, (self._last_word, -1)):
            self._read_word(number, body)

    def _read_word(self, number: int, body: bytes) -> Word | None:
        word = read_word(number, body)
        if word is not None:
            self._words[number] = word
        self._last_word = number
        return word

    def _walk_transactions(self) -> Iterator[Fault | Progress]:
        after, more = b"", True
        while more:
            rows = self._connection.execute(_TRANSACTIONS, (after, _TRANSACTIONS_A_STEP)).fetchall()
            upto = rows[-1][0] if rows else b""
            for (name,) in self._connection.execute(_STRAYS, (after, not rows, upto)).fetchall():
                yield _of_nobody(f"the archive has a part of transaction {_text(name)}, which is not there")
            seen = self._pulses
            for name, *row in rows:
                yield from self._walk_archive(name, *row)
                if self._pulses - seen >= _PULSES_A_STEP:
                    yield self.progress
                    seen = self._pulses
            after, more = upto, bool(rows)
            yield self.progress

    def _walk_archive(
        self, name: bytes, log_from: int | None, head: Digest | None, *row: Any
    ) -> Iterator[Fault | Progress]:
        """Follow a transaction through the archive; what it has in the log comes later."""
        self._transactions += 1
        if name in self._named:
            return
        fault = False
        try:
            chain = _Chain(id_bytes(_text(name)), _require_sound(*row[:4]))
            chain.row = row[4:]
            while self._follow_parts(chain, name) == _PARTS_A_STEP:
                yield self.progress
            _require_end(chain, log_from, head)
            if log_from is not None:
                self._in_log[chain.name] = _InLog(log_from, chain)
            else:
                fault = bool(chain.told.contradiction(chain.row))
        except sqlite3.Error:
            raise
        except Exception:
            fault = True
        if fault:  # or it was written to meanwhile
            yield from self._again([name])

    def _follow_parts(self, chain: _Chain, name: bytes) -> int:
        """Follow the next parts of a transaction in the archive; how many there were."""
        parts = self._connection.execute(_PARTS, (name, chain.part, _PARTS_A_STEP)).fetchall()
        for seq, next_seq, row, body in parts:
            chain.part = seq
            if seq != chain.seq:
                raise StoreError(f"pulse {chain.seq} is missing in the archive: the part there begins with pulse {seq}")
            data = frames_of_part(chain.name, seq, next_seq, row, body)
            for frame in frames_in(data):
                self._follow(chain, data, frame)
            if chain.seq != next_seq:
                raise StoreError(f"pulse {chain.seq} is missing: its part of the archive ends before")
        return len(parts)

    def _follow(self, chain: _Chain, data: bytes, frame: Frame) -> None:
        """Follow a transaction to its next frame, in `data`, and read the pulses in it.

        Raises:
            StoreError: it was altered, is missing, is out of order, or cannot be read.
        """
        if frame.transaction != chain.name:
            raise StoreError(f"pulse {chain.seq} is missing: one of transaction {frame.transaction.hex()} is there")
        if frame.seq != chain.seq:
            raise StoreError(f"pulse {chain.seq} is missing: pulse {frame.seq} is there")
        if frame.before != chain.head:
            raise StoreError(f"what comes before pulse {chain.seq} is not what it was when that was written")
        try:
            try:
                pulses = pulses_of(frame, data, "", "", self._words, self._blob)
            except KeyError:
                self._load_words()  # it may have been added meanwhile
                pulses = pulses_of(frame, data, "", "", self._words, self._blob)
            if not chain.seq and pulses[0].digest.encode() != chain.digest:
                raise StoreError("its row says another shape of the workflow than it does")
        except Exception as error:  # of bytes that are not what was written, anything
            raise StoreError(f"pulse {chain.seq} cannot be read: {why_of(error)}") from error
        chain.told.take(pulses)
        self._pulses += frame.pulses
        chain.seq += frame.pulses
        chain.head = digest_of(memoryview(data)[frame.start : frame.end])

    def _blob(self, name: bytes) -> bytes:
        return read_blob(self._connection, name)

    def _walk_logs(self) -> Iterator[Fault | Progress]:
        """Follow each owner's log, and in it those that have frames only there; of what is odd, all who might need it
        are looked at once more."""
        at = -_END
        followed: set[bytes] = set()
        odd = False
        while at < _END and (first := self._connection.execute(_NEXT_LOG, (at,)).fetchone()[0]) is not None:
            at = end_of_log(first)
            for found in self._walk_log(at - (1 << COMMIT_BITS), at, followed):
                odd = odd or isinstance(found, Fault)
                yield found
        followed = {name for name in followed if not (one := self._in_log[name].chain).told.contradiction(one.row)}
        suspects = self._in_log.keys() if odd else self._in_log.keys() - followed
        yield from self._again(sorted(name.hex().encode() for name in suspects))

    def _walk_log(self, begin: int, end: int, followed: set[bytes]) -> Iterator[Fault | Progress]:
        """Follow one owner's log; in `followed` are those that are all right as far as it is."""
        last, expected, seen = max(begin - 1, -_END), -1, self._pulses
        broken: set[bytes] = set()
        while rows := self._some_of_log(last, end):
            for row, body in rows:
                last = row
                try:
                    data = frames_of_log(row, body)
                    frames = list(frames_in(data))
                except StoreError as error:
                    frames, home = [], home_of_log(row, body)
                    yield _of_nobody(f"{error if home is None else _moved(row, home)}; {_OWNERS}")
                    if home is not None:
                        continue
                if expected not in (-1, row) and self._is_missing(begin, expected, row):
                    yield _of_nobody(f"log row {expected} is missing; {_OWNERS}")
                expected = row + 1
                for frame in frames:
                    one = self._in_log.get(frame.transaction)
                    if one is None or not one.log_from <= row < end_of_log(one.log_from) or frame.transaction in broken:
                        continue
                    try:
                        self._follow(one.chain, data, frame)
                        followed.add(frame.transaction)
                    except StoreError:
                        broken.add(frame.transaction)
                    if self._pulses - seen >= _PULSES_A_STEP:
                        yield self.progress
                        seen = self._pulses
            yield self.progress
        followed -= broken

    def _some_of_log(self, last: int, end: int) -> list[tuple[int, bytes]]:
        """The next rows of a log."""
        rows: list[tuple[int, bytes]] = []
        size = 0
        with closing(self._connection.execute(_LOG, (last, end - 1))) as found:
            for row in found:
                rows.append(row)
                size += len(row[1])
                if size >= _LOG_BYTES_A_STEP:
                    break
        return rows

    def _is_missing(self, begin: int, first: int, row: int) -> bool:
        """Whether rows of a log from `first` on are not there, while those before them and `row` are: the oldest go
        first."""
        return None not in (self._connection.execute(_AROUND, (begin, first, row)).fetchone() or (None,))

    def _again(self, names: Iterable[bytes]) -> list[Fault]:
        """What is wrong with transactions that seemed odd, which may have been written to meanwhile."""
        pulses = self._pulses
        found = self._faults(names)
        self._pulses = pulses
        return found

    def _faults(self, names: Iterable[bytes]) -> list[Fault]:
        """The first fault of each of these transactions, as of one moment."""
        with one_moment(self._connection):
            ends = [self._end_of_archive(name) for name in names]
            in_log = [(end.log_from, end) for end in ends if isinstance(end, _End) and end.log_from is not None]
            in_log.sort(key=lambda one: one[0])
            tails: dict[str, Tail | StoreError] = {}
            for _, group in groupby(in_log, key=lambda one: one[0] >> COMMIT_BITS):
                wanted = [(end.transaction, log_from, end.chain.seq, end.chain.head) for log_from, end in group]
                tails |= tails_in_log(self._connection, wanted)
            found = [end if isinstance(end, Fault) else self._fault_in_log(end, tails) for end in ends if end]
        return [fault for fault in found if fault is not None]

    def _end_of_archive(self, name: bytes) -> _End | Fault | None:
        """Where a transaction ends in the archive, or what is wrong there; None: there is no such transaction."""
        row = self._connection.execute(_TRANSACTION, (name,)).fetchone()
        if row is None:
            return None
        wanted, log_from, head, *about = row
        transaction = _text(name)
        chain = _Chain(b"")
        try:
            chain.name = id_bytes(transaction)
            chain.digest, chain.row = _require_sound(*about[:4]), tuple(about[4:])
            while self._follow_parts(chain, name):
                pass
            _require_end(chain, log_from, head)
        except sqlite3.Error:
            raise
        except Exception as error:
            return _fault(transaction, chain, error, wanted)
        return _End(log_from, transaction, chain, wanted)

    def _fault_in_log(self, end: _End, tails: Mapping[str, Tail | StoreError]) -> Fault | None:
        """What is wrong with what a transaction has in the log."""
        tail = tails.get(end.transaction)
        if isinstance(tail, StoreError):
            return _fault(end.transaction, end.chain, tail, end.wanted)
        try:
            for data in tail.frames if tail else ():
                for frame in frames_in(data):
                    self._follow(end.chain, data, frame)
        except StoreError as error:
            return _fault(end.transaction, end.chain, error, end.wanted)
        why = end.chain.told.contradiction(end.chain.row)
        return _of_nobody(f"the row of transaction {end.transaction} says {why}") if why else None


def _require_sound(root: bytes, workflow: bytes, is_open: Any, digest: bytes = b"") -> bytes:
    """Refuse a transaction whose row is not one that was written; else, its digest."""
    if not (_is_text(root) and _is_text(workflow)):
        raise StoreError("its row cannot be read: its root or its workflow is no text")
    if type(is_open) is not int or is_open not in (0, 1):
        raise StoreError("its row cannot be read: open is neither 0 nor 1")
    return digest


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _require_end(chain: _Chain, log_from: int | None, head: Digest | None) -> None:
    """Refuse a transaction that does not end in the archive where its row says."""
    if chain.head != (head or GENESIS):
        raise StoreError(f"what the archive has of it ends at pulse {chain.seq}, and that is not its end")
    if not (chain.seq or log_from is not None):
        raise StoreError("the journal has no pulse of it")
    if not (log_from is None or type(log_from) is int):
        raise StoreError(f"its row says {log_from!r} of where it is in the log")


def _fault(transaction: str, chain: _Chain, error: Exception, wanted: object) -> Fault:
    pulse = error.pulse if isinstance(error, DamagedTail) else chain.seq
    return Fault(transaction, pulse, why_of(error), bool(wanted))


def _of_nobody(why: str) -> Fault:
    return Fault("", -1, why, False)


def _moved(row: int, home: int) -> str:
    return f"log row {home} has another id, {row}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
