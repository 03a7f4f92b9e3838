"""The state of one name that a client registered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.entry import Entry
from registry.protocol.waiters import Waiting


class NameState:
    """The state of one name that we registered: its value, who waits for the verdict, and the grant."""

    __slots__ = (
        "first",
        "grant",
        "lost_entry",
        "name",
        "origin",
        "unique",
        "value",
        "version",
        "void_epoch",
        "waiting",
    )

    def __init__(self, name: str, value: Mapping[str, Any], unique: bool, version: int, origin: Waiting) -> None:
        self.name = name
        self.value = value
        self.unique = unique
        self.origin = origin
        self.first = self.version = version
        """Verdicts on versions before `first` are on a registration that was withdrawn; versions of all registrations
        rise together."""
        self.waiting: list[tuple[int, Waiting]] = [(version, origin)]
        self.grant: tuple[Entry, int | None] | None = None
        """What we hold; with a time when it is to be confirmed by a restarted server before that time."""
        self.lost_entry: Entry | None = None
        self.void_epoch = -1
        """Grants up to this epoch are void."""

    @property
    def entry(self) -> Entry | None:
        """What we hold."""
        return self.grant[0] if self.grant is not None else None
