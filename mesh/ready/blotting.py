"""Secrets blotted out of what people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SHORTEST_SECRET: Final = 4
"""Characters; blotting out less would make texts unreadable and hide nothing."""
BLOT: Final = "•••"


def blotted(text: str, secrets: Iterable[str]) -> str:
    """The text without secrets, the longest first."""
    for secret in sorted((secret for secret in secrets if len(secret) >= SHORTEST_SECRET), key=len, reverse=True):
        text = text.replace(secret, BLOT)
    return text
