"""The headers of a stimulus, for those who read them and those who write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

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
