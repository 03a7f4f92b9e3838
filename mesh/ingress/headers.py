"""The headers of a stimulus, for those who read them and those who write them; and the prefix of paths in answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from bitactor.declare.stimulus import StimulusOptions

HEADERS: Final[Mapping[str, str]] = {
    "key": "Idempotency-Key",
    "ttl": "BitActor-TTL",
    "deadline": "BitActor-Deadline",
    "max_concurrency": "BitActor-Max-Concurrency",
    "priority": "BitActor-Priority",
    "metadata": "BitActor-Metadata",
    "traceparent": "traceparent",
}
"""Option of a stimulus → header."""


def headers_of(options: StimulusOptions) -> dict[str, str]:
    """The headers that say what these options say."""
    return {
        HEADERS[name]: value if isinstance(value, str) else json.dumps(value) for name, value in options.given().items()
    }


def prefix_of(scope: Mapping[str, Any]) -> str:
    """The path under which a client finds the application: where it is mounted, or a proxy has it (`root_path`)."""
    return quote(str(scope.get("root_path", "")).rstrip("/"))
