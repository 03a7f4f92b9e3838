"""What became of a workflow that ran in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bitactor.messages.pulse import UNDONE, Pulse


class Emitted(NamedTuple):
    """A signal that a step emitted and that was sent."""

    name: str
    value: Any
    ttl: int
    """The hop budget it carries to its consumers."""
    step: str


@dataclass(frozen=True)
class Trace:
    """How a transaction ended, and everything on the way there."""

    transaction: str
    status: str
    """`completed | compensated | cancelled | halted | stuck`."""
    result: Any
    """The workflow's value; None unless it completed."""
    results: Mapping[str, Any]
    """Step → value of everything that was done, None for what was skipped."""
    errors: Sequence[BaseException]
    """The original error first, then those of compensation and undo, as the live exceptions."""
    pulses: Sequence[Pulse] = field(repr=False)
    """The journal, as a store would have it."""
    emitted: Sequence[Emitted] = ()
    """Signals in the order they were sent."""

    @property
    def undone(self) -> list[str]:
        """Steps that were undone, in the order that happened."""
        return [pulse.step for pulse in self.pulses if pulse.kind == UNDONE]

    @property
    def kinds(self) -> list[str]:
        """`kind step` for each pulse, `kind` alone where it is of the whole transaction: short enough to compare in a
        test."""
        return [f"{pulse.kind} {pulse.step}".strip() for pulse in self.pulses]

    def of(self, step: str) -> list[Pulse]:
        """The pulses of one step."""
        return [pulse for pulse in self.pulses if pulse.step == step]
