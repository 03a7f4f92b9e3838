"""Redaction of secrets in what people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MIN_SECRET_LENGTH: Final = 4
"""Characters; redacting less would make texts unreadable and hide nothing."""
REDACTED: Final = "•••"


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without secrets, the longest first."""
    for secret in sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text
