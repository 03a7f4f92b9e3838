"""Pulses: the recorded facts of a transaction.

The pulse log is the journal that recovery folds, the trace that people look at, and the record that replay runs from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from typing_extensions import override

Named = TypeVar("Named", bound=tuple[Any, ...])

SECRET_MARK: Final = b"\xa6secret"
"""What the packed bytes of whatever holds a secret have in them."""
MASKED: Final = "**********"

ACCEPTED: Final = "accepted"
SPAWNED: Final = "spawned"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
RETRIED: Final = "retried"
SKIPPED: Final = "skipped"
TIMED_OUT: Final = "timed_out"
COMPENSATED: Final = "compensated"
UNDONE: Final = "undone"
UNDO_FAILED: Final = "undo_failed"
TOMBSTONE: Final = "tombstone"
LATE: Final = "late"
EMITTED: Final = "emitted"
HALTED: Final = "halted"
RESUMED: Final = "resumed"
FINISHED: Final = "finished"

KINDS: Final = (
    ACCEPTED, SPAWNED, COMPLETED, FAILED, RETRIED, SKIPPED, TIMED_OUT, COMPENSATED,
    UNDONE, UNDO_FAILED, TOMBSTONE, LATE, EMITTED, HALTED, RESUMED, FINISHED,
)  # fmt: skip

TTL_EXPIRED: Final = "ttl_expired"
DEADLINE_EXCEEDED: Final = "deadline_exceeded"
UNROUTABLE: Final = "unroutable"
REJECTED: Final = "rejected"
POISON: Final = "poison"
UNDELIVERED: Final = frozenset((UNROUTABLE, POISON))
"""Reasons of tombstones of what nobody took, or nobody survived: dead letters."""

RUNNING: Final = "running"
CANCELLED: Final = "cancelled"
STUCK: Final = "stuck"
STATUSES: Final = (RUNNING, COMPLETED, COMPENSATED, CANCELLED, HALTED, STUCK)
FINAL_STATUSES: Final = (COMPLETED, COMPENSATED, CANCELLED)
"""Statuses that never change again; `halted` and `stuck` can be resumed."""
RECEIVING: Final = (RUNNING, HALTED)
"""Statuses in which a transaction can be sent messages."""


def masks_secrets(kind: type[Named]) -> type[Named]:
    """The class, a named tuple's, with a `repr` in which packed bytes that hold a secret are masked."""
    kind.__repr__ = _repr_of_fields  # type: ignore[method-assign]
    return kind


def _repr_of_fields(message: Any) -> str:
    fields = zip(message._fields, message, strict=True)
    return f"{type(message).__name__}({', '.join(f'{name}={masked(value)!r}' for name, value in fields)})"


def masked(value: Any) -> Any:
    """A value for its `repr`: packed bytes in it that hold a secret are masked."""
    if isinstance(value, bytes):
        return _Masked() if SECRET_MARK in value else value
    kind = type(value)
    if kind is list or kind is tuple:
        return kind(map(masked, value))
    return {key: masked(item) for key, item in value.items()} if kind is dict else value


class _Masked:
    """Stands for packed bytes with a secret in them where they are shown."""

    @override
    def __repr__(self) -> str:
        return f"<packed, with a secret: {MASKED}>"


@masks_secrets
class Pulse(NamedTuple):
    """One state transition of one transaction, or of one hop in it."""

    transaction: str
    """The transaction id, 32 hex digits."""
    root: str
    """The id of the root transaction, which is the trace id."""
    workflow: str
    """The workflow's name."""
    seq: int
    """Number of the pulse within the transaction: 0, 1, 2, … without gaps."""
    hop: str
    """The hop id, 16 hex digits, which is the span id; for pulses of the transaction itself, its own span id."""
    causes: tuple[str, ...]
    """Ids of the hops that this one follows from."""
    kind: str
    """What happened: `accepted`, `spawned`, `completed`, …"""
    step: str
    """The path of the step; empty for the transaction itself."""
    spawn: str
    """Where the hop runs: `inline | loop | thread | process`; empty for the transaction itself."""
    direction: str
    """`forward` or `undo`."""
    attempt: int
    """Number of the attempt, from 1; 0 for the transaction itself."""
    ttl: int
    """Hop budget that the hop carries."""
    at_ns: int
    """Wall time, nanoseconds since 1970."""
    elapsed_ns: int | None
    """Nanoseconds that the attempt took; None where that is not known."""
    token_in: Any
    """References to the sources of the arguments, a tuple of strings; in pulses shown to people, the arguments
    themselves."""
    token_out: Any
    """The output, as a token: an immutable scalar as it is, anything else packed."""
    error: str | None
    """`Name: message` of an error, or the reason of a tombstone."""
    data: Mapping[str, Any] | None
    """The data that the fold needs for this kind of pulse: due times, decisions, faults, emits, input, limits."""
    digest: str
    """Digest of the workflow's plan, by which a changed definition is noticed."""
