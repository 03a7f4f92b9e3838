"""The nouns of the registry: an entry, a notice that one came, went or changed, and the loss of a grant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

APPEARED: Final = "appeared"
DISAPPEARED: Final = "disappeared"
CHANGED: Final = "changed"


class Entry(NamedTuple):
    """One holder's claim on one name."""

    name: str
    holder: str
    """The id of the node that holds it."""
    value: Mapping[str, Any]
    """Read-only metadata, such as an endpoint."""
    unique: bool
    """Whether nobody else can hold the name at the same time."""
    epoch: int
    """Fencing epoch: each grant of a unique name has a higher one than every grant before it.  0 for a duplicate
    name."""


class Notice(NamedTuple):
    """Something changed in the registry."""

    kind: str
    """`appeared | disappeared | changed`."""
    entry: Entry
    """As it is now; for `disappeared`, as it was."""
    revision: int = 0
    """Counts every change of the table, 1, 2, 3, …; 0 when the entry was there before the watch began."""


class Loss(NamedTuple):
    """A unique name we held is not ours any more."""

    entry: Entry
    """The grant that is void; whatever was begun under its epoch must not go on."""
    taken_by: Entry | None
    """Who holds the name now.  None: our lease lapsed, and we try to get the name again, under a new epoch."""
