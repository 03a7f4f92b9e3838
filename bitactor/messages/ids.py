"""Identifiers that are also trace and span ids.

A root transaction's id is the OpenTelemetry trace id of its whole causal tree; a hop's id is its span id.  Hop ids are
derived, never drawn, so that a crash, a replay and a second look name the same hop alike.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NewType

TransactionId = NewType("TransactionId", str)
"""128 bits as 32 lower-case hex digits, time-ordered (uuid7)."""

HopId = NewType("HopId", str)
"""64 bits as 16 lower-case hex digits."""

NO_HOP = HopId("0" * 16)
"""The hop id in a pulse that concerns no hop."""


def hop_salt(transaction: str) -> int:
    """The part of every hop id of one transaction that comes from the transaction (its low 64 bits, mostly random)."""
    return int(transaction[16:], 16)


def path_code(path: str, direction: str, attempt: int) -> int:
    """The part of a hop id that comes from the step: 64 bits of BLAKE2b over path, direction and attempt."""
    digest = blake2b(f"{path}\x00{direction}\x00{attempt}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def hop_id(transaction: str, path: str, direction: str = "forward", attempt: int = 1) -> HopId:
    """The id of one attempt at one step: `hop_salt` and `path_code`, xor-ed.

    Two hops of one transaction collide only if BLAKE2b does; an all-zero id, which OpenTelemetry forbids, becomes 1.
    """
    return join_hop_id(hop_salt(transaction), path_code(path, direction, attempt))


def join_hop_id(salt: int, code: int) -> HopId:
    """`hop_id` from its two halves, for callers that keep them (the saga does, once a transaction and once a step)."""
    # Half the time of an f-string with a width, and of calling HopId.
    return "%016x" % ((salt ^ code) or 1)  # type: ignore[return-value]


TRANSACTION_CODE = path_code("", "transaction", 0)
"""The code of the transaction itself, which is no step."""


def transaction_span_id(transaction: str) -> HopId:
    """The span id of the transaction itself, derived like a hop's."""
    return join_hop_id(hop_salt(transaction), TRANSACTION_CODE)


def idempotency_key(transaction: str, path: str, direction: str = "forward") -> str:
    """A key that is the same over all attempts and deliveries of one step in one direction: 128 bits, hex."""
    return blake2b(f"{transaction}\x00{path}\x00{direction}".encode(), digest_size=16).hexdigest()
