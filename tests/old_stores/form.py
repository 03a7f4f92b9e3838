"""The store's form before the log, a row a pulse, as every commit from 67fa6fb on has written it until then; and the
statements with which that release began and wrote."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import mesh.stores
from bitactor.messages.pulse import FINAL_STATUSES, Pulse
from mesh.stores.rows import PULSE_COLUMNS, pulse_from_row, pulse_rows

SCHEMA: Final = Path(mesh.stores.__file__).parent / "schema" / "0001_journal.sql"
APPLICATION_ID: Final = 0x42697441
NEWEST: Final = 1

REGISTER: Final = "INSERT INTO owners (owner, pid, boot_id, process_started, expires_ns) VALUES (?, ?, ?, ?, ?)"
LEASE: Final = "SELECT fenced FROM owners WHERE owner = ?"
INSERT: Final = f"INSERT INTO pulses ({PULSE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
TRANSACTION: Final = "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def journal_version(connection: sqlite3.Connection, path: Path) -> int:
    """What that release does first with a file."""
    application, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id, "
        "pragma_user_version"
    ).fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise RuntimeError(f"{path} is an SQLite file of another program; name a file of its own for the journal")
    if version > NEWEST:
        raise RuntimeError(
            f"{path} has schema version {version}, this release knows up to {NEWEST}; run the release that wrote it, "
            "or later"
        )
    return int(version)


def write(path: Path, transactions: Iterable[Sequence[Pulse]], status: str = "running", owner: str = "before") -> None:
    """A store of that form with these transactions, of an owner that is gone."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(path)) as file, file:
        file.executescript(SCHEMA.read_text(encoding="utf-8"))
        file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        file.execute(f"PRAGMA user_version = {NEWEST}")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute(REGISTER, (owner, 1, "another boot", 1, 1))
        for pulses in transactions:
            first = pulses[0]
            file.execute(TRANSACTION, (
                first.transaction, first.root, "", first.workflow, first.digest, "", status,
                status not in FINAL_STATUSES, owner, 0, first.at_ns, pulses[-1].at_ns,
            ))  # fmt: skip
            file.executemany(INSERT, pulse_rows(pulses))


def read(path: Path) -> Mapping[str, Sequence[Pulse]]:
    """The pulses of all transactions of a store of that form."""
    found: dict[str, list[Pulse]] = {}
    with closing(sqlite3.connect(path)) as file:
        for row in file.execute(
            f"SELECT root, workflow, {PULSE_COLUMNS} FROM pulses JOIN transactions USING (transaction_id)"
            " ORDER BY transaction_id, seq"
        ):
            found.setdefault(row[2], []).append(pulse_from_row(row[0], row[1], row[2:]))
    return found
