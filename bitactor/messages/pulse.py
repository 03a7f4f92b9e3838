"""Pulses: the recorded facts of a transaction.

The pulse log is the journal that recovery folds, the trace that people look at, and the record that replay runs from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bitactor.messages.values import masks_secrets

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
