"""Redaction of secrets in what people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MIN_SECRET_LENGTH: Final = 4
"""Characters that a secret must have to be redacted; redacting less would make texts unreadable and hide nothing."""
REDACTED: Final = "•••"


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with all `secrets` redacted, the longest first."""
    for secret in sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text
