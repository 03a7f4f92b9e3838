"""The W3C `traceparent` header."""

from __future__ import annotations

import re
from typing import Any, Final

_SHAPE: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


def parse_traceparent(header: Any) -> tuple[str, str] | None:
    """(trace id, span id), or None for what is absent or malformed: it comes from a stranger and must not matter."""
    match = _SHAPE.fullmatch(header) if isinstance(header, str) else None
    return (match[1], match[2]) if match else None
