"""One delivery of a hop to another node, as the router that sends it knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitactor.errors import Cancelled
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import UNDO, Reply, Signal
from bitactor.plan.plan import PlanStep
from mesh.limits.timing_wheel import TimingWheel
from mesh.runtime.live import LiveTransaction
from registry import Entry


class RemoteDelivery:
    """One delivery of one hop to another node."""

    __slots__ = (
        "_then", "_tick", "_wheel", "deadline_ns", "holder", "index", "key", "live", "question", "signal", "since_ns",
        "step", "stopped", "token", "waited_ns",
    )  # fmt: skip

    _then: Callable[[RemoteDelivery], None]

    def __init__(self, live: LiveTransaction, step: PlanStep, signal: Signal, token: Any, wheel: TimingWheel) -> None:
        self.live = live
        self.step = step
        self.index = step.index
        self.signal = signal
        self.key = (signal.hop, signal.delivery)
        """The hop's id and the delivery's number, which identify the delivery."""
        self.token = token  # the arguments and a result, as they are sent
        self.holder: Entry | None = None
        # When its transaction's time is over, by the monotonic clock, if less is left of that than the step may take
        self.deadline_ns: int | None = None
        self.stopped = False  # its holder was asked to stop it
        self.question: Reply | None = None  # of a holder that asked whether it is still wanted, and got no answer
        self._wheel = wheel
        self._tick: int | None = None
        self.since_ns = 0
        """Monotonic time since when it waits for a holder, as if it had waited without a break."""
        self.waited_ns = 0
        """How long it had waited for one when it was sent last."""

    @property
    def holder_name(self) -> str:
        """The node that it was sent to; empty if to none."""
        return self.holder.holder if self.holder is not None else ""

    def ran_by(self, reply: Reply) -> str:
        """Who ran what was answered: the node, and the worker process of it that did (`node/pid`)."""
        return f"{self.holder_name}/{reply.pid}" if 0 < reply.pid < 2**31 else self.holder_name

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

    def arm(self, when_ns: int, then: Callable[[RemoteDelivery], None]) -> None:
        """Have `then` called with the delivery, in place of what was to be called before, once the monotonic clock has
        reached `when_ns`."""
        self.disarm()
        self._then = then
        self._tick = self._wheel.arm(self, when_ns)

    def expire(self) -> None:
        """Call what the delivery was armed with; the timing wheel does."""
        self._tick = None
        self._then(self)

    def disarm(self) -> None:
        """Forget what the delivery was armed with."""
        if self._tick is not None:
            self._wheel.disarm(self, self._tick)
            self._tick = None


def not_started(question: Reply) -> Reply:
    """The reply of a hop that is not wanted any more, and whose holder has asked before it began it."""
    fault = fault_of(Cancelled("it was stopped before it had started"))
    return question._replace(outcome="fail", fault=fault, after_ns=None)
