"""The journal of releases before, a row a pulse, brought into the form of this one."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Final

from mesh.stores.database import connect, store_error, tries, write_transaction
from mesh.stores.journal.blobs import keep_blobs
from mesh.stores.journal.frames import GENESIS, LeanPacker, digest_of, make_frame
from mesh.stores.journal.parts import part_body
from mesh.stores.journal.tail import id_bytes
from mesh.stores.journal.takeover import INSERT_PART
from mesh.stores.journal.words import Words
from mesh.stores.rows import PULSE_COLUMNS, pulse_from_row

_log = logging.getLogger("bitactor.store")

_PATIENCE: Final = 30.0
_STEP: Final = 200
"""Transactions that are converted in one commit."""
_FRAME_PULSES: Final = 16


def converting(path: Path) -> Generator[float]:
    """Convert what is left of a journal of the form before, in steps that each are kept, so that who is killed in
    between goes on where it was; yields as `tries` does.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        with closing(connect(path, synchronous="NORMAL", timeout=0)) as connection:
            words = Words()
            converted = 0
            while (yield from tries(lambda: _is_there(connection), _PATIENCE, path)):
                done = yield from tries(lambda: _step(connection, words), _PATIENCE, path)
                converted += done
                if done:
                    _log.info("%s: %d transactions brought into the form of this release", path, converted)
                    yield 0.0
    except sqlite3.Error as error:
        raise store_error(error, path) from error


def _is_there(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'pulses'").fetchone() is not None


def _step(connection: sqlite3.Connection, words: Words) -> int:
    """Convert some transactions; how many.  With none left, the table goes."""
    with write_transaction(connection):
        if not _is_there(connection):
            return 0
        names = connection.execute(
            "SELECT DISTINCT transaction_id FROM pulses ORDER BY transaction_id LIMIT ?", (_STEP,)
        ).fetchall()
        for (transaction,) in names:
            _convert(connection, transaction, words)
        if not names:
            connection.execute("DROP VIEW IF EXISTS pulse_log")
            connection.execute("DROP TABLE pulses")
        return len(names)


def _convert(connection: sqlite3.Connection, transaction: str, words: Words) -> None:
    rows = connection.execute(
        f"SELECT {PULSE_COLUMNS} FROM pulses WHERE transaction_id = ? ORDER BY seq", (transaction,)
    ).fetchall()
    pulses = [pulse_from_row("", "", row) for row in rows]
    packer = LeanPacker(words.numbers)
    packer.pack(pulses)
    words.learn(words.add(connection, list(packer.wanted)))
    frames, head = [], GENESIS
    name = id_bytes(transaction)
    for start in range(0, len(pulses), _FRAME_PULSES):
        some = pulses[start : start + _FRAME_PULSES]
        body = packer.pack(some)
        frames.append(make_frame(name, start, len(some), some[0].at_ns, head, body))
        head = digest_of(frames[-1])
    keep_blobs(connection, transaction, packer.blobs)
    body = part_body(name, 0, len(pulses), 0, b"".join(frames))
    connection.execute(INSERT_PART, (transaction, 0, len(pulses), 0, body))
    connection.execute("UPDATE transactions SET head = ? WHERE transaction_id = ?", (head, transaction))
    connection.execute("DELETE FROM pulses WHERE transaction_id = ?", (transaction,))
