"""The state of one name that a client registered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.entry import Entry
from registry.protocol.waiters import Waiting


class NameState:
    """A name that a client registered: its value, who waits for the verdict, and the grant."""

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
        """The version that the registration began with; verdicts on lower ones are on a withdrawn registration.
        Versions of all names rise together."""
        self.waiting: list[tuple[int, Waiting]] = [(version, origin)]
        self.grant: tuple[Entry, int | None] | None = None
        """The granted entry, and None or the time until which a restarted server must confirm it."""
        self.lost_entry: Entry | None = None
        self.void_epoch = -1
        """The highest epoch whose grant is void; lower ones are void too."""

    @property
    def entry(self) -> Entry | None:
        """The granted entry, or None."""
        return self.grant[0] if self.grant is not None else None
