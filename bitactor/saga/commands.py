"""The commands of the saga, to be obeyed once the pulses that came with them are kept."""

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
    again: bool = False
    """Whether somebody had it sent again after nobody had taken it; its transaction's deadline is over then."""


class Evaluate(NamedTuple):
    """Evaluate a step: its transforms, predicate and guard; of a container, what to open or what follows.  Answered
    with `Evaluated`."""

    step: int


class Dispatch(NamedTuple):
    """Run a hop of a step, in one direction."""

    step: int
    direction: str
    fault: Fault | None = None
    """Set: the step itself is not run; its compensation is asked what this fault means."""


class ArmRetry(NamedTuple):
    """Feed `RetryDue` at wall time `due_ns`."""

    step: int
    due_ns: int


class ArmGrace(NamedTuple):
    """Feed `GraceExpired` after `after_ns` nanoseconds."""

    after_ns: int


class ArmDeadline(NamedTuple):
    """Feed `DeadlineExpired` at wall time `due_ns`, instead of the deadline armed before; None: only disarm that
    one."""

    due_ns: int | None


class CancelHop(NamedTuple):
    """Stop the hop of a step, if that is possible; its reply, if one comes, is still wanted."""

    step: int


class Deliver(NamedTuple):
    """Bring an emitted signal to its consumers."""

    emission: Emission


class AnswerProceed(NamedTuple):
    """Answer the `proceed()` of a function around nested steps with their result."""

    step: int
    token: Any


class Settle(NamedTuple):
    """The transaction has settled: nothing more happens by itself, whether completed, compensated, cancelled, halted or
    stuck."""

    status: str


Command = Evaluate | Dispatch | ArmRetry | ArmGrace | ArmDeadline | CancelHop | Deliver | AnswerProceed | Settle
