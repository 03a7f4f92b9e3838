"""Pulses as lines of text, short enough to be written in a test."""

from __future__ import annotations

from typing import Any

from bitactor.messages.pulse import UNDO_FAILED, UNDONE, Pulse
from bitactor.messages.signal import UNDO


def format_pulse(pulse: Pulse, *, error: bool = False) -> str:
    """A pulse as text: `kind step`; `kind step.undo` for what an undo goes through on its way to `undone step`; `kind`
    alone where there is no step."""
    step = pulse.step
    if step and pulse.direction == UNDO and pulse.kind not in (UNDONE, UNDO_FAILED):
        step = f"{step}.undo"
    text = f"{pulse.kind} {step}".rstrip()
    return f"{text}: {pulse.error}" if error and pulse.error else text


def transaction_id_of(given: Any) -> str | None:
    """The id of a transaction that is given by its id or itself."""
    return given if given is None or isinstance(given, str) else given.id
