"""What the saga orders, to be obeyed once the pulses that came with it are kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from bitactor.messages.signal import Fault


class Emission(NamedTuple):
    """A signal emitted by a hop that has committed."""

    id: str
    """`hop:index`: the same over all deliveries."""
    name: str
    token: Any
    ttl: int
    hop: str


class Evaluate(NamedTuple):
    """Evaluate this step's transforms, predicate and guard; ask a container what to open, or what follows; and say
    `Evaluated`."""

    step: int


class Dispatch(NamedTuple):
    """Run this hop."""

    step: int
    direction: str
    fault: Fault | None = None
    """Set: do not run the step, ask its compensation what this fault means."""


class ArmRetry(NamedTuple):
    """Say `RetryDue` at this wall time."""

    step: int
    due_ns: int


class ArmGrace(NamedTuple):
    """Say `GraceExpired` after this long."""

    after_ns: int


class ArmDeadline(NamedTuple):
    """Say `DeadlineExpired` at this wall time; replaces the one armed before; None: only disarm."""

    due_ns: int | None


class CancelHop(NamedTuple):
    """Stop this hop if that is possible; its reply is wanted if it comes."""

    step: int


class Deliver(NamedTuple):
    """Bring this emitted signal to its consumers."""

    emission: Emission


class AnswerProceed(NamedTuple):
    """Tell the function around nested steps, which waits, what they came to."""

    step: int
    token: Any


class Settle(NamedTuple):
    """Nothing more will happen by itself: completed, compensated, cancelled, halted or stuck."""

    status: str


Command = Evaluate | Dispatch | ArmRetry | ArmGrace | ArmDeadline | CancelHop | Deliver | AnswerProceed | Settle
