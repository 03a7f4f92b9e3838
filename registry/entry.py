"""The values of the registry: an entry, a notice that one came, went or changed, and the loss of a grant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

APPEARED: Final = "appeared"
DISAPPEARED: Final = "disappeared"
CHANGED: Final = "changed"


class Entry(NamedTuple):
    """One holder's claim to one name."""

    name: str
    holder: str
    """The id of the holder, the node that holds the name."""
    value: Mapping[str, Any]
    """Read-only metadata, such as an endpoint."""
    unique: bool
    """True: nobody else can hold the name at the same time."""
    epoch: int
    """Fencing epoch: each grant of a unique name has a higher one than every grant before it.  0 for a duplicate
    name."""


class Notice(NamedTuple):
    """A change in the registry."""

    kind: str
    """The change: `appeared | disappeared | changed`."""
    entry: Entry
    """The entry as it is now; for `disappeared`, as it was."""
    revision: int = 0
    """Number of the change of the table, 1, 2, 3, …; 0 when the entry was there before the watch began."""


class Loss(NamedTuple):
    """A unique name that the holder has lost."""

    entry: Entry
    """The grant that is void; whatever was begun under its epoch must not go on."""
    taken_by: Entry | None
    """The entry of the new holder.  None: the holder's lease lapsed, and the name is asked for again, under a new
    epoch."""
