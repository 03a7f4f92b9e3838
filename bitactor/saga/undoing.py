"""What follows once something has failed: wait for what is in flight, then take back what happened, last first."""

from __future__ import annotations

from typing import Any, Final

from bitactor.policy import DEFAULT_BACKOFF
from bitactor.pulse import (
    DEADLINE_EXCEEDED,
    HALTED,
    LATE,
    POISON,
    RETRIED,
    SPAWNED,
    TIMED_OUT,
    TOMBSTONE,
    UNDO_FAILED,
    UNDONE,
    UNROUTABLE,
)  # fmt: skip
from bitactor.saga.commands import (
    Abandon,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    Deliver,
    Dispatch,
    Settle,
)  # fmt: skip
from bitactor.saga.phases import (
    ASSESSING,
    DONE,
    FAILING,
    HALTING,
    IN_DOUBT,
    IN_FLIGHT,
    TAKEN_BACK,
    UNDO_BACKING_OFF,
    UNDO_BROKEN,
    UNDO_RUNNING,
)  # fmt: skip
from bitactor.saga.stimuli import (
    DeadlineOver,
    GraceOver,
    HopExpired,
    Lost,
    Replied,
    RetryDue,
    Unrouted,
)  # fmt: skip
from bitactor.saga.telling import Telling, emits_data, own_fraction
from bitactor.signal import UNDO, Fault, Reply

_PAST_DOUBT: Final = frozenset((DONE, UNDO_RUNNING, UNDO_BACKING_OFF, TAKEN_BACK))
"""States in which a late word about the step's own run changes nothing any more."""


class Undoing(Telling):
    """Stopping and undoing."""

    __slots__ = ()

    def _stop(self, now_ns: int) -> None:
        """Something failed: cancel what is in flight, and undo once it has answered or the grace period is over."""
        self.commands.append(ArmDeadline(now_ns + self.plan.grace_ns + self.plan.undo_timeout_ns))
        if not self._awaits_answers():
            self._continue_undo(now_ns)
            return
        self.commands.extend(Abandon(index) for index, state in enumerate(self.states) if state in IN_FLIGHT)
        self.commands.append(ArmGrace(self.plan.grace_ns))

    def _awaits_answers(self) -> bool:
        """Whether something is in flight, or has timed out but may still answer, and that would change what is
        undone."""
        return self.in_flight > 0 or any(self.steps[index].undo is not None for index in self.awaited.values())

    def _grace_over(self, stimulus: GraceOver, now_ns: int) -> None:
        self._leave_all_in_doubt(now_ns)
        self._continue_undo(now_ns)

    def _leave_all_in_doubt(self, now_ns: int) -> None:
        for index, state in enumerate(self.states):
            if state in IN_FLIGHT:
                address = self.steps[index].address
                fault = Fault("bitactor.errors:StepTimeout", f"{address!r} did not answer before undo had to begin")
                self._tell_step(index, TIMED_OUT, now_ns, elapsed_ns=now_ns - self.spawned_at_ns[index], error=fault)
                self.commands.append(Abandon(index))

    def _continue_stopping(self, now_ns: int) -> None:
        """Once nothing is in flight any more: halted, or on to undo."""
        if self.phase is HALTING and self.in_flight and self.progress:
            self._pause_what_is_around(now_ns)
        if self.in_flight:
            return
        if self.phase is HALTING:
            left = None if self.deadline_ns is None else max(0, self.deadline_ns - now_ns)
            self._tell(HALTED, now_ns, data={"status": "halted", "left_ns": left})
            self.commands.append(ArmDeadline(None))
            self.commands.append(Settle("halted"))
        elif self.phase is FAILING and not self._awaits_answers():
            self._continue_undo(now_ns)

    def _pause_what_is_around(self, now_ns: int) -> None:
        """Functions around nested steps wait for what will not come before we are resumed: once nothing else is in
        flight, stop them."""
        flying = [index for index, state in enumerate(self.states) if state in IN_FLIGHT]
        if not all(index in self.stranded or self._waits_inside(index) for index in flying):
            return
        for index in flying:
            if index in self.stranded:
                self.stranded.discard(index)
                self._tell_step(index, HALTED, now_ns, data={"reason": "", "lost": "its process ended"})
            else:
                self._pause_around(index, now_ns)

    def _waits_inside(self, index: int) -> bool:
        """Whether it is a function that waits for the steps it is around."""
        step = self.steps[index]
        progress = None if step.scope is None else self.progress.get(step.scope.container)
        return step.surrounding is not None and progress is not None and progress.proceeding

    def _pause_around(self, index: int, now_ns: int) -> None:
        self._tell_step(index, HALTED, now_ns, data={"reason": ""})
        self.commands.append(Abandon(index))

    def _continue_undo(self, now_ns: int) -> None:
        """The next undo, last first; or the end."""
        for index in reversed(self.order):
            step = self.steps[index]
            if step.undo is None or self.states[index] not in (DONE, IN_DOUBT):
                continue
            if index in self.doubts and not step.undo.in_doubt:
                fault = Fault(
                    "bitactor.errors:UndoFailed",
                    f"nobody knows whether {step.address!r} happened, and its undo does not take doubt; look, mend by "
                    "hand, or "
                    "declare undo(in_doubt=True)",
                )
                self._tell_step(index, UNDO_FAILED, now_ns, error=fault, direction=UNDO)
                continue
            self._spawn_undo(index, now_ns)
            return
        status = "stuck" if self.undo_failed else "cancelled" if self.cancelling else "compensated"
        self._finish(status, now_ns)

    def _spawn_undo(self, index: int, now_ns: int) -> None:
        data = {"in_doubt": True} if index in self.doubts else None
        self._tell_step(index, SPAWNED, now_ns, direction=UNDO, data=data)
        self.commands.append(Dispatch(index, UNDO))

    def _undo_replied(self, stimulus: Replied, now_ns: int) -> None:
        index, reply = stimulus
        if (
            self.states[index] != UNDO_RUNNING
            or reply.hop != self.undo_hop(index)
            or reply.delivery != self.deliveries[index]
            or reply.epoch != self.epoch
        ):
            self._late_reply(index, reply, now_ns)
        elif reply.outcome == "ok":
            self._tell_step(index, UNDONE, now_ns, elapsed_ns=reply.elapsed_ns, direction=UNDO, data=emits_data(reply))
            self._deliver_emissions(self.undo_hop(index))
            self._continue_undo(now_ns)
        elif reply.outcome == "retry":
            self._retry_undo(index, reply, now_ns)
        else:
            fault = reply.fault or Fault("bitactor.errors:UndoFailed", reply.reason or reply.outcome)
            self._break_undo(index, fault, now_ns, reply.elapsed_ns)

    def _retry_undo(self, index: int, reply: Reply, now_ns: int) -> None:
        undo = self.steps[index].undo
        attempt = self.undo_attempts[index]
        fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
        if undo is None or attempt > undo.retries:
            self._break_undo(index, fault, now_ns, reply.elapsed_ns)
            return
        after_ns = reply.after_ns
        if after_ns is None:
            after_ns = DEFAULT_BACKOFF.delay_ns(attempt, own_fraction(self.undo_hop(index)))
        data = {"due_ns": now_ns + after_ns, "after_ns": after_ns}
        self._tell_step(index, RETRIED, now_ns, elapsed_ns=reply.elapsed_ns, error=fault, direction=UNDO, data=data)
        self.commands.append(ArmRetry(index, now_ns + after_ns))

    def _undo_retry_due(self, stimulus: RetryDue, now_ns: int) -> None:
        if self.states[stimulus.step] == UNDO_BACKING_OFF:
            self._spawn_undo(stimulus.step, now_ns)

    def _undo_expired(self, stimulus: HopExpired, now_ns: int) -> None:
        index, delivery, fault = stimulus
        if self.states[index] == UNDO_RUNNING and delivery == self.deliveries[index]:
            self._break_undo(index, fault, now_ns)

    def _undo_lost(self, stimulus: Lost, now_ns: int) -> None:
        index, delivery, holder = stimulus
        if self.states[index] != UNDO_RUNNING or delivery != self.deliveries[index]:
            return
        if delivery <= self.plan.redeliveries:
            self._redeliver(index, UNDO, holder, now_ns)
        else:
            fault = self._lost_fault(index, holder)
            self._tell_step(index, TOMBSTONE, now_ns, reason=POISON, direction=UNDO, data={"holder": holder})
            self._break_undo(index, fault, now_ns)

    def _undo_unrouted(self, stimulus: Unrouted, now_ns: int) -> None:
        index, delivery, fault = stimulus
        if self.states[index] == UNDO_RUNNING and delivery == self.deliveries[index]:
            self._tell_step(index, TOMBSTONE, now_ns, reason=UNROUTABLE, direction=UNDO)
            self._break_undo(index, fault, now_ns)

    def _break_undo(self, index: int, fault: Fault, now_ns: int, elapsed_ns: int | None = None) -> None:
        """This undo failed: collected, and the rollback goes on."""
        self._tell_step(index, UNDO_FAILED, now_ns, elapsed_ns=elapsed_ns, error=fault, direction=UNDO)
        self.commands.append(Abandon(index))
        self._continue_undo(now_ns)

    def _undo_time_over(self, stimulus: DeadlineOver, now_ns: int) -> None:
        """What is not undone by now is reported as such."""
        undo_until = self.stopping_since_ns + self.plan.undo_timeout_ns
        if now_ns < undo_until:
            # The transaction's own deadline, which was over in the same moment as something failed.
            self.commands.append(ArmDeadline(undo_until))
            return
        self._leave_all_in_doubt(now_ns)
        self._tell(TOMBSTONE, now_ns, reason=DEADLINE_EXCEEDED, direction=UNDO)
        for index in self.order[::-1]:
            state = self.states[index]
            if self.steps[index].undo is not None and state in (DONE, IN_DOUBT, UNDO_RUNNING, UNDO_BACKING_OFF):
                self._tell_step(index, UNDO_FAILED, now_ns, error=stimulus.fault, direction=UNDO)
                if state == UNDO_RUNNING:
                    self.commands.append(Abandon(index))
        self._continue_undo(now_ns)

    def _late_reply(self, index: int, reply: Reply, now_ns: int) -> None:
        """A reply nobody waits for any more: recorded once, and used if undo has not yet passed by."""
        run = (reply.hop, reply.delivery)
        if run not in self.outstanding or (reply.outcome in ("cancelled", "timed_out") and not self._is_awaited(run)):
            return
        happened = None
        state = self.states[index]
        if (reply.hop, reply.delivery) in self.unknown and state not in _PAST_DOUBT:
            if reply.outcome in ("fail", "retry", "halt"):
                happened = False
            elif (
                reply.outcome in ("ok", "continue")
                and state in (IN_DOUBT, UNDO_BROKEN)
                and reply.hop == self.hops[index]
            ):
                happened = True
        self._tell_step(
            index,
            LATE,
            now_ns,
            hop=reply.hop,
            elapsed_ns=reply.elapsed_ns,
            token_out=reply.token if happened else None,
            error=reply.fault,
            data={"delivery": reply.delivery, "outcome": reply.outcome, "happened": happened},
        )
        if self.phase is FAILING:
            self._continue_stopping(now_ns)

    def _is_awaited(self, run: tuple[str, int]) -> bool:
        """Whether undo waits for this; then even an answer that says nothing is of use."""
        return self.phase is FAILING and run in self.awaited

    def _replied_in_the_end(self, stimulus: Replied, now_ns: int) -> None:
        self._late_reply(stimulus.step, stimulus.reply, now_ns)

    def _lost_fault(self, index: int, holder: str) -> Fault:
        delivery = self.deliveries[index]
        return Fault(
            "bitactor.errors:WorkerLost",
            f"{self.steps[index].address!r} lost its worker ({holder}) on delivery {delivery} of "
            f"{self.plan.redeliveries + 1}",
        )

    def _redeliver(self, index: int, direction: str, holder: str, now_ns: int) -> None:
        """The same hop once more, to somebody else: same id, same key, next delivery number."""
        data: dict[str, Any] = {"delivery": self.deliveries[index] + 1, "lost": holder}
        fault = self.assessed[index] if self.states[index] == ASSESSING else None
        if fault is not None:
            data["assess"] = list(fault)
        self._tell_step(index, SPAWNED, now_ns, direction=direction, data=data)
        self.commands.append(Dispatch(index, direction, fault))

    def _deliver_emissions(self, hop: str) -> None:
        self.commands.extend(Deliver(emission) for emission in self.emissions.values() if emission.hop == hop)
