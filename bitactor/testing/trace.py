"""The trace of a workflow that ran in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from bitactor.messages.pulse import UNDONE, Pulse

R_co = TypeVar("R_co", covariant=True, default=Any)


class Emitted(NamedTuple):
    """A signal that a step emitted and that was sent."""

    name: str
    value: Any
    ttl: int
    """Hop budget that the signal carries to its consumers."""
    step: str


@dataclass(frozen=True)
class Trace(Generic[R_co]):
    """The end of a transaction, and everything on the way there."""

    transaction: str
    status: str
    """The status: `completed | compensated | cancelled | halted | stuck`."""
    result: R_co
    """The workflow's result; None unless the workflow completed."""
    results: Mapping[str, Any]
    """Step → value of each step that was done, None for a skipped one."""
    errors: Sequence[BaseException]
    """Errors as live exceptions: the original one first, then those of compensation and undo."""
    pulses: Sequence[Pulse] = field(repr=False)
    """The journal, as a store would have it."""
    emitted: Sequence[Emitted] = ()
    """Emitted signals in the order they were sent."""

    @property
    def undone(self) -> list[str]:
        """Names of the steps that were undone, in the order in which that happened."""
        return [pulse.step for pulse in self.pulses if pulse.kind == UNDONE]

    @property
    def kinds(self) -> list[str]:
        """`kind step` for each pulse, and `kind` alone for those of the transaction itself: short enough to compare in
        a test."""
        return [f"{pulse.kind} {pulse.step}".strip() for pulse in self.pulses]

    def of(self, step: str) -> list[Pulse]:
        """The pulses of one step."""
        return [pulse for pulse in self.pulses if pulse.step == step]
