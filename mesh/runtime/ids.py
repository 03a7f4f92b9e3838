"""Fresh ids, ids as callers give them, and fingerprints."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from typing_extensions import override
from uuid_utils import uuid7

from bitactor.errors import UnknownTransaction
from bitactor.messages.codec import token_bytes
from bitactor.messages.values import is_text, shown
from bitactor.ports import Ids


class TimeOrderedIds(Ids):
    """The `Ids` port with version 7 UUIDs (RFC 9562): time-ordered, 74 bits of randomness."""

    @override
    def transaction(self) -> str:
        return uuid7().hex


def fingerprint(token: Any) -> str:
    """A 128-bit digest of a token, in hex, to tell whether two inputs are the same."""
    return blake2b(token_bytes(token), digest_size=16).hexdigest()


def known_as(transaction: Any) -> str:
    """The id, if a transaction can have it.

    Raises:
        UnknownTransaction: none can.
    """
    if not is_text(transaction):
        raise UnknownTransaction(f"{shown(transaction)} is no transaction's id: 32 hex digits, a text")
    return transaction  # type: ignore[no-any-return]
