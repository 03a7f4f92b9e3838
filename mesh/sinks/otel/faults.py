"""The error that a pulse carries, for span attributes and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault

MAX_TEXT: Final = 16_384
"""Longest text kept of a message or traceback, in characters, so that no span outgrows what collectors take."""


def error_name(summary: str) -> str:
    """`Name` of a summary `Name: message`; a tombstone's reason is its own name."""
    return short(summary.partition(":")[0], 256)


def short(text: str, limit: int = MAX_TEXT) -> str:
    """`text`, its end cut off beyond `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def pulse_fault(pulse: Pulse) -> Fault | None:
    """The fault a pulse carries, if any, whichever way it is written down."""
    raw: Any = (pulse.data or {}).get("fault")
    if isinstance(raw, Fault):
        return raw
    if isinstance(raw, Mapping):
        return Fault(str(raw.get("type") or ""), str(raw.get("message") or ""), str(raw.get("traceback") or ""))
    if isinstance(raw, list | tuple) and len(raw) >= 2:
        return Fault(str(raw[0]), str(raw[1]), str(raw[2]) if len(raw) > 2 else "")
    return None


def exception_attributes(pulse: Pulse) -> dict[str, Any]:
    """OpenTelemetry's `exception.*` attributes of a failure."""
    fault = pulse_fault(pulse)
    if fault is None:
        name, _, message = (pulse.error or pulse.kind).partition(": ")
        fault = Fault(name, message)
    module, _, name = fault.type.rpartition(":")
    attributes = {"exception.type": name if module in ("", "builtins") else f"{module}.{name}"}
    if fault.message:
        attributes["exception.message"] = short(fault.message)
    if fault.traceback:
        attributes["exception.stacktrace"] = _end_of(fault.traceback)
    return attributes


def _end_of(traceback: str) -> str:
    # The end of a traceback tells more than its beginning.
    return traceback if len(traceback) <= MAX_TEXT else "…" + traceback[1 - MAX_TEXT :]
