"""One delivery of a hop to another node, as the router that sends it knows it."""

from __future__ import annotations

from typing import Any

from bitactor.errors import Cancelled
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import UNDO, Reply, Signal
from bitactor.plan.plan import PlanStep
from mesh.limits.timing_wheel import Timer
from mesh.runtime.live import LiveTransaction
from registry import Entry


class RemoteDelivery:
    """One delivery of one hop to another node."""

    __slots__ = (
        "deadline_ns", "holder", "index", "live", "question", "signal", "since_ns", "step", "stopped", "timer",
        "token", "waited_ns",
    )  # fmt: skip

    def __init__(self, live: LiveTransaction, step: PlanStep, signal: Signal, token: Any) -> None:
        self.live = live
        self.step = step
        self.index = step.index
        self.signal = signal
        self.token = token  # the arguments and a result, as they are sent
        self.holder: Entry | None = None
        # When its transaction's time is over, by the monotonic clock, if less is left of that than the step may take
        self.deadline_ns: int | None = None
        self.stopped = False  # its holder was asked to stop it
        self.question: Reply | None = None  # of a holder that asked whether it is still wanted, and got no answer
        self.timer: Timer | None = None
        self.since_ns = 0
        """Monotonic time since when it waits for a holder, as if it had waited without a break."""
        self.waited_ns = 0
        """How long it had waited for one when it was sent last."""

    @property
    def key(self) -> tuple[str, int]:
        """The hop's id and the delivery's number, which identify the delivery."""
        return self.signal.hop, self.signal.delivery

    @property
    def holder_name(self) -> str:
        """The node that it was sent to; empty if to none."""
        return self.holder.holder if self.holder is not None else ""

    @property
    def has_begun(self) -> bool:
        """Whether anything of its transaction may have run, so that to fail now would undo what somebody did."""
        signal, live = self.signal, self.live
        state = live.state
        return (
            signal.direction is UNDO
            or signal.delivery > 1
            or signal.attempt > 1
            or state.epoch > 0  # another process had it before
            or live.sent > 0
            or bool(live.actors)
            or bool(state.completion_order)
        )

    def disarm(self) -> None:
        """Disarm the delivery's timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def not_started(question: Reply) -> Reply:
    """The reply of a hop that is not wanted any more, and whose holder has asked before it began it."""
    fault = fault_of(Cancelled("it was stopped before it had started"))
    return question._replace(outcome="fail", fault=fault, after_ns=None)
