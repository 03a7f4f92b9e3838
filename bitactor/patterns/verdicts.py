"""What a step decides (`Retry`, `Fail`, `Halt`, further steps) is no value and no error: patterns pass it through."""

from __future__ import annotations

from typing import Any, Final

from bitactor.declare.then import Then
from bitactor.messages.outcome import Continue, Outcome

_VERDICTS: Final = (Outcome, Continue, Then)


def is_verdict(value: Any) -> bool:
    """Whether this is for the supervisor to judge, not a value to keep or to hand on."""
    return isinstance(value, _VERDICTS)
