"""The demo's users table: a real one, shared by all workers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS users (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        email TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        country TEXT NOT NULL
    )
"""


class EmailTaken(Exception):
    """Another user has signed up with this address."""


class Users:
    """The users table in a SQLite file; each call has a connection of its own, so any thread of any process may make
    it."""

    def __init__(self, file: str) -> None:
        self._file = file

    def create(self) -> None:
        """Make the table."""
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_SCHEMA)

    def refuse_taken(self, email: str) -> None:
        """Raise `EmailTaken` if a user has this address."""
        with self._connection() as connection:
            if connection.execute("SELECT 1 FROM users WHERE email = ?", (email,)).fetchone():
                raise EmailTaken(f"{email} has signed up before")

    def insert(self, key: str, user: Mapping[str, str]) -> int:
        """Add a user, once per `key`, and return its id; raises `EmailTaken`."""
        with self._connection() as connection:
            try:
                connection.execute(
                    "INSERT INTO users (key, email, name, country) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                    (key, user["email"], user["name"], user["country"]),
                )
            except sqlite3.IntegrityError:
                raise EmailTaken(f"{user['email']} is signing up at this very moment") from None
            row: int = connection.execute("SELECT id FROM users WHERE key = ?", (key,)).fetchone()[0]
            return row

    def delete(self, key: str) -> None:
        """Remove the user who was added with `key`; nothing happens if none was."""
        with self._connection() as connection:
            connection.execute("DELETE FROM users WHERE key = ?", (key,))

    def count(self) -> int:
        """How many users there are."""
        with self._connection() as connection:
            found: int = connection.execute("SELECT count(*) FROM users").fetchone()[0]
            return found

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._file, timeout=10.0, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=OFF")
            yield connection
        finally:
            connection.close()
