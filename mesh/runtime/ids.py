"""Fresh ids and fingerprints."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from typing_extensions import override
from uuid_utils import uuid7

from bitactor.messages.codec import token_bytes
from bitactor.ports import Ids


class TimeOrderedIds(Ids):
    """The `Ids` port with version 7 UUIDs (RFC 9562): time-ordered, 74 bits of randomness."""

    @override
    def transaction(self) -> str:
        return uuid7().hex


def fingerprint(token: Any) -> str:
    """A 128-bit digest of a token, in hex, to tell whether two inputs are the same."""
    return blake2b(token_bytes(token), digest_size=16).hexdigest()
