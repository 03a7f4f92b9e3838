"""Verdicts: what a step decides (`Retry`, `Fail`, `Halt`, further steps) is no value and no error, and passes through
patterns."""

from __future__ import annotations

from typing import Any, Final

from bitactor.declare.then import Then
from bitactor.messages.outcome import Continue, Outcome

_VERDICTS: Final = (Outcome, Continue, Then)


def is_verdict(value: Any) -> bool:
    """Whether `value` is for the supervisor to judge, and not to be kept or handed on."""
    return isinstance(value, _VERDICTS)
