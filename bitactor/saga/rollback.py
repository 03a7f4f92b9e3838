"""Rollback: wait for the hops in flight once something has failed, then undo what happened, last first."""

from __future__ import annotations

from typing import Any, Final

from bitactor.declare.backoff import DEFAULT_BACKOFF
from bitactor.messages.pulse import (
    CANCELLED,
    COMPENSATED,
    COMPLETED,
    DEADLINE_EXCEEDED,
    HALTED,
    LATE,
    POISON,
    RETRIED,
    SPAWNED,
    STUCK,
    TIMED_OUT,
    TOMBSTONE,
    UNDO_FAILED,
    UNDONE,
    UNROUTABLE,
)
from bitactor.messages.signal import UNDO, Fault, Reply
from bitactor.saga.commands import (
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelHop,
    Deliver,
    Dispatch,
    Settle,
)  # fmt: skip
from bitactor.saga.events import DeadlineExpired, GraceExpired, HopExpired, Lost, Replied, RetryDue, Unrouted
from bitactor.saga.phases import COMPENSATING, FAILING, HALTING, IN_DOUBT, IN_FLIGHT, UNDO_BACKING_OFF, UNDO_RUNNING
from bitactor.saga.record import Recorder, emits_data, jitter_fraction

_OUT_OF_DOUBT: Final = frozenset((COMPLETED, UNDO_RUNNING, UNDO_BACKING_OFF, UNDONE))
"""States in which a late reply about the step's own run changes nothing any more."""


class Rollback(Recorder):
    """The part of the saga that stops and undoes."""

    __slots__ = ()

    def _stop(self, now_ns: int) -> None:
        """Stop after a failure: cancel the hops in flight; undo begins once they have answered or the grace period is
        over."""
        self.commands.append(ArmDeadline(now_ns + self.plan.grace_ns + self.plan.undo_timeout_ns))
        if not self._awaits_replies():
            self._continue_undo(now_ns)
            return
        self.commands.extend(CancelHop(index) for index, state in enumerate(self.states) if state in IN_FLIGHT)
        self.commands.append(ArmGrace(self.plan.grace_ns))

    def _awaits_replies(self) -> bool:
        """Whether undo has to wait: a hop is in flight, or a timed-out run may still answer and change what is
        undone."""
        return self.in_flight > 0 or any(self.steps[index].undo is not None for index in self.awaited_runs.values())

    def _grace_expired(self, event: GraceExpired, now_ns: int) -> None:
        self._leave_all_in_doubt(now_ns)
        self._continue_undo(now_ns)

    def _leave_all_in_doubt(self, now_ns: int) -> None:
        for index, state in enumerate(self.states):
            if state in IN_FLIGHT:
                address = self.steps[index].address
                fault = Fault("bitactor.errors:StepTimeout", f"{address!r} did not answer before undo had to begin")
                self._record_step(index, TIMED_OUT, now_ns, elapsed_ns=now_ns - self.spawned_at_ns[index], error=fault)
                self.commands.append(CancelHop(index))

    def _continue_stopping(self, now_ns: int) -> None:
        """Become halted, or begin to undo, once no hop is in flight."""
        if self.phase is HALTING and self.in_flight and self.progress:
            self._pause_functions_around(now_ns)
        if self.in_flight:
            return
        if self.phase is HALTING:
            left = None if self.deadline_ns is None else max(0, self.deadline_ns - now_ns)
            self._record(HALTED, now_ns, data={"status": HALTED, "left_ns": left})
            self.commands.append(ArmDeadline(None))
            self.commands.append(Settle(HALTED))
        elif self.phase is FAILING and not self._awaits_replies():
            self._continue_undo(now_ns)

    def _pause_functions_around(self, now_ns: int) -> None:
        """Stop the functions around nested steps once nothing else is in flight: what they wait for comes only after a
        resume."""
        flying = [index for index, state in enumerate(self.states) if state in IN_FLIGHT]
        if not all(index in self.awaiting_redelivery or self._awaits_nested(index) for index in flying):
            return
        for index in flying:
            if index in self.awaiting_redelivery:
                self.awaiting_redelivery.discard(index)
                self._record_step(index, HALTED, now_ns, data={"reason": "", "lost": "its process ended"})
            else:
                self._pause_function_around(index, now_ns)

    def _awaits_nested(self, index: int) -> bool:
        """Whether a step is a function around nested steps that waits for them."""
        step = self.steps[index]
        progress = None if step.scope is None else self.progress.get(step.scope.container)
        return step.around_container is not None and progress is not None and progress.proceeding

    def _pause_function_around(self, index: int, now_ns: int) -> None:
        self._record_step(index, HALTED, now_ns, data={"reason": ""})
        self.commands.append(CancelHop(index))

    def _continue_undo(self, now_ns: int) -> None:
        """Begin the next undo, last first, or finish."""
        for index in reversed(self.completion_order):
            step = self.steps[index]
            if step.undo is None or self.states[index] not in (COMPLETED, IN_DOUBT):
                continue
            if index in self.steps_in_doubt and not step.undo.in_doubt:
                fault = Fault(
                    "bitactor.errors:UndoFailed",
                    f"nobody knows whether {step.address!r} happened, and its undo does not take doubt; look, mend by "
                    "hand, or "
                    "declare undo(in_doubt=True)",
                )
                self._record_step(index, UNDO_FAILED, now_ns, error=fault, direction=UNDO)
                continue
            self._spawn_undo(index, now_ns)
            return
        status = STUCK if self.undo_failed else CANCELLED if self.cancelling else COMPENSATED
        self._finish(status, now_ns)

    def _spawn_undo(self, index: int, now_ns: int) -> None:
        data = {"in_doubt": True} if index in self.steps_in_doubt else None
        self._record_step(index, SPAWNED, now_ns, direction=UNDO, data=data)
        self.commands.append(Dispatch(index, UNDO))

    def _undo_replied(self, event: Replied, now_ns: int) -> None:
        index, reply = event
        if (
            self.states[index] != UNDO_RUNNING
            or reply.hop != self.undo_hop(index)
            or reply.delivery != self.deliveries[index]
            or reply.epoch != self.epoch
        ):
            self._late_reply(index, reply, now_ns)
        elif reply.outcome == "ok":
            self._record_step(
                index, UNDONE, now_ns, elapsed_ns=reply.elapsed_ns, direction=UNDO, data=emits_data(reply)
            )
            self._deliver_emissions(self.undo_hop(index))
            self._continue_undo(now_ns)
        elif reply.outcome == "retry":
            self._retry_undo(index, reply, now_ns)
        else:
            fault = reply.fault or Fault("bitactor.errors:UndoFailed", reply.reason or reply.outcome)
            self._fail_undo(index, fault, now_ns, reply.elapsed_ns)

    def _retry_undo(self, index: int, reply: Reply, now_ns: int) -> None:
        undo = self.steps[index].undo
        attempt = self.undo_attempts[index]
        fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
        if undo is None or attempt > undo.retries:
            self._fail_undo(index, fault, now_ns, reply.elapsed_ns)
            return
        after_ns = reply.after_ns
        if after_ns is None:
            after_ns = DEFAULT_BACKOFF.delay_ns(attempt, jitter_fraction(self.undo_hop(index)))
        data = {"due_ns": now_ns + after_ns, "after_ns": after_ns}
        self._record_step(index, RETRIED, now_ns, elapsed_ns=reply.elapsed_ns, error=fault, direction=UNDO, data=data)
        self.commands.append(ArmRetry(index, now_ns + after_ns))

    def _undo_retry_due(self, event: RetryDue, now_ns: int) -> None:
        if self.states[event.step] == UNDO_BACKING_OFF:
            self._spawn_undo(event.step, now_ns)

    def _undo_expired(self, event: HopExpired, now_ns: int) -> None:
        index, delivery, fault = event
        if self.states[index] == UNDO_RUNNING and delivery == self.deliveries[index]:
            self._fail_undo(index, fault, now_ns)

    def _undo_lost(self, event: Lost, now_ns: int) -> None:
        index, delivery, holder = event
        if self.states[index] != UNDO_RUNNING or delivery != self.deliveries[index]:
            return
        if delivery <= self.plan.redeliveries:
            self._redeliver(index, UNDO, holder, now_ns)
        else:
            fault = self._lost_fault(index, holder)
            self._record_step(index, TOMBSTONE, now_ns, reason=POISON, direction=UNDO, data={"holder": holder})
            self._fail_undo(index, fault, now_ns)

    def _undo_unrouted(self, event: Unrouted, now_ns: int) -> None:
        index, delivery, fault = event
        if self.states[index] == UNDO_RUNNING and delivery == self.deliveries[index]:
            self._record_step(index, TOMBSTONE, now_ns, reason=UNROUTABLE, direction=UNDO)
            self._fail_undo(index, fault, now_ns)

    def _fail_undo(self, index: int, fault: Fault, now_ns: int, elapsed_ns: int | None = None) -> None:
        """Record that an undo failed, and go on with the next one."""
        self._record_step(index, UNDO_FAILED, now_ns, elapsed_ns=elapsed_ns, error=fault, direction=UNDO)
        self.commands.append(CancelHop(index))
        self._continue_undo(now_ns)

    def _undo_deadline_expired(self, event: DeadlineExpired, now_ns: int) -> None:
        """Record as failed each undo that is not done when the time for undo is over."""
        undo_until = self.stopping_since_ns + self.plan.undo_timeout_ns
        if now_ns < undo_until:
            # The transaction's own deadline, which was over in the same moment as something failed.
            self.commands.append(ArmDeadline(undo_until))
            return
        self._leave_all_in_doubt(now_ns)
        self._record(TOMBSTONE, now_ns, reason=DEADLINE_EXCEEDED, direction=UNDO)
        for index in self.completion_order[::-1]:
            state = self.states[index]
            if self.steps[index].undo is not None and state in (COMPLETED, IN_DOUBT, UNDO_RUNNING, UNDO_BACKING_OFF):
                self._record_step(index, UNDO_FAILED, now_ns, error=event.fault, direction=UNDO)
                if state == UNDO_RUNNING:
                    self.commands.append(CancelHop(index))
        self._continue_undo(now_ns)

    def _late_reply(self, index: int, reply: Reply, now_ns: int) -> None:
        """Record a reply that is not waited for any more, once; undo uses it if it has not yet passed the step."""
        run = (reply.hop, reply.delivery)
        if run not in self.unanswered_runs or (
            reply.outcome in ("cancelled", "timed_out") and not self._is_awaited(run)
        ):
            return
        happened = None
        state = self.states[index]
        if (reply.hop, reply.delivery) in self.runs_in_doubt and state not in _OUT_OF_DOUBT:
            if reply.outcome in ("fail", "retry", "halt"):
                happened = False
            elif (
                reply.outcome in ("ok", "continue")
                and state in (IN_DOUBT, UNDO_FAILED)
                and reply.hop == self.hops[index]
            ):
                happened = True
        self._record_step(
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
        """Whether undo waits for the reply of this run; then a reply that does not end the doubt counts too."""
        return self.phase is FAILING and run in self.awaited_runs

    def _replied_after_end(self, event: Replied, now_ns: int) -> None:
        self._late_reply(event.step, event.reply, now_ns)

    def _lost_fault(self, index: int, holder: str) -> Fault:
        delivery = self.deliveries[index]
        return Fault(
            "bitactor.errors:WorkerLost",
            f"{self.steps[index].address!r} lost its worker ({holder}) on delivery {delivery} of "
            f"{self.plan.redeliveries + 1}",
        )

    def _redeliver(self, index: int, direction: str, holder: str, now_ns: int) -> None:
        """Dispatch the same hop again, to another worker: same id, same key, next delivery number."""
        data: dict[str, Any] = {"delivery": self.deliveries[index] + 1, "lost": holder}
        fault = self.compensating[index] if self.states[index] == COMPENSATING else None
        if fault is not None:
            data["assess"] = list(fault)
        self._record_step(index, SPAWNED, now_ns, direction=direction, data=data)
        self.commands.append(Dispatch(index, direction, fault))

    def _deliver_emissions(self, hop: str) -> None:
        self.commands.extend(Deliver(emission) for emission in self.emissions.values() if emission.hop == hop)
