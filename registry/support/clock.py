"""The clock that leases and budgets are judged by: monotonic, and going on while the process, or the whole machine,
sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)

monotonic_ns: Callable[[], int] = time.monotonic_ns if _BOOTTIME is None else partial(time.clock_gettime_ns, _BOOTTIME)
"""Nanoseconds since the machine was started, those in which it slept included; where there is no such clock,
`time.monotonic_ns`, which may rest with the machine."""


def clock_id() -> int:
    """A number that processes have in common if their `monotonic_ns` can be compared, of one boot of one machine; 0
    where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        zero = Path("/proc/self/ns/time").readlink()
    except OSError:
        return 0
    return int.from_bytes(sha256(f"{boot}/{zero}".encode()).digest()[:7])
