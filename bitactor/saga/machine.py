"""The saga: one transaction as a sans-IO state machine.

Theory of operation.  A *stimulus* comes in (a hop replied, timed out, a cancel was asked for); out come *pulses*, facts to be kept,
and *commands*, orders to be obeyed once the pulses are kept.  `react` decides, `evolve` (see `state`) changes the state, by pulses alone.
Recovery is a fold followed by `Recovered`.  The machine needs no clock, no thread and no socket: time arrives as a number.

A transaction goes through phases; `TRANSITIONS` says what each stimulus means in each of them, and `python -m bitactor.saga` prints it.

    new ──▶ running ──▶ ended (completed)
               │  ╲
               │   ▶ halting ──▶ halted ──▶ running …
               ▼
            failing ──▶ undoing ──▶ ended (compensated, cancelled, stuck)

While *failing*, nothing new starts: hops in flight are cancelled, and each is waited for until it answers or the grace period ends.
What answered is known to have happened or not; what did not is *in doubt*.  Undo is then serial, last first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from bitactor.codec import token_bytes
from bitactor.errors import StepTimeout, WorkerLost
from bitactor.ids import join_hop_id
from bitactor.plan import Plan
from bitactor.policy import DEFAULT_BACKOFF, Backoff
from bitactor.pulse import (
    ACCEPTED,
    COMPENSATED,
    COMPLETED,
    DEADLINE_EXCEEDED,
    EMITTED,
    FAILED,
    FINISHED,
    HALTED,
    LATE,
    POISON,
    RESUMED,
    RETRIED,
    SKIPPED,
    SPAWNED,
    TIMED_OUT,
    TOMBSTONE,
    TTL_EXPIRED,
    UNDO_FAILED,
    UNDONE,
    UNROUTABLE,
    Pulse,
)  # fmt: skip
from bitactor.saga.commands import (
    Abandon,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    Command,
    Decide,
    Deliver,
    Dispatch,
    Settle,
)  # fmt: skip
from bitactor.saga.state import (
    ACTIVE,
    ASSESSING,
    BACKING_OFF,
    DONE,
    ENDED,
    FAILING,
    HALTING,
    IN_DOUBT,
    IN_FLIGHT,
    NEW,
    PHASES,
    RUNNING,
    SUSPENDED,
    TAKEN_BACK,
    UNDO_BACKING_OFF,
    UNDO_BROKEN,
    UNDO_RUNNING,
    UNDOING,
    WAITING,
    SagaState,
)  # fmt: skip
from bitactor.saga.stimuli import (
    STIMULI,
    Accept,
    CancelAsked,
    DeadlineOver,
    Decided,
    EmitDied,
    EmitTaken,
    GraceOver,
    HopExpired,
    Lost,
    Recovered,
    Replied,
    ResumeAsked,
    RetryDue,
    Stimulus,
    Unrouted,
)  # fmt: skip
from bitactor.signal import FORWARD, UNDO, Fault, Reply

_PAST_DOUBT: Final = frozenset((DONE, UNDO_RUNNING, UNDO_BACKING_OFF, TAKEN_BACK))
"""States in which a late word about the step's own run changes nothing any more."""

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the two pulses and one command of an ordinary hop."""


class Saga(SagaState):
    """One transaction.  Make one with `Saga(plan, id)` and feed it `Accept`, or with `Saga.fold` and feed it `Recovered`."""

    __slots__ = ("commands", "pulses")

    def __init__(self, plan: Plan, transaction: str, **given: Any) -> None:
        super().__init__(plan, transaction, **given)
        self.pulses: list[Pulse] = []
        self.commands: list[Command] = []

    def react(self, stimulus: Stimulus, now_ns: int) -> tuple[list[Pulse], list[Command]]:
        """What follows from `stimulus` at wall time `now_ns`.

        The pulses have already changed the state; the commands may be obeyed only once the pulses are kept.  A stimulus that means
        nothing in this phase (it came late, twice, or after the end) gives two empty lists.
        """
        pulses: list[Pulse] = []
        commands: list[Command] = []
        self.pulses = pulses
        self.commands = commands
        HANDLERS[self.phase, type(stimulus)](self, stimulus, now_ns)
        return pulses, commands

    # Going forward

    def _accept(self, stimulus: Accept, now_ns: int) -> None:
        data: dict[str, Any] = {"ttl": stimulus.ttl, "deadline_ns": stimulus.deadline_ns}
        if self.parent:
            data["parent"] = self.parent
        if self.trail:
            data["trail"] = list(self.trail)
        if stimulus.data:
            data.update(stimulus.data)
        self.tokens += stimulus.inputs
        self.ttl = stimulus.ttl
        self._tell(ACCEPTED, now_ns, token_out=stimulus.input, data=data)
        if stimulus.deadline_ns is not None:
            self.commands.append(ArmDeadline(stimulus.deadline_ns))
        self._spawn_ready(self.plan.initial, now_ns)

    def _decided(self, stimulus: Decided, now_ns: int) -> None:
        index = stimulus.step
        if self.states[index] != WAITING or self.missing[index] or index in self.decided:
            return
        if stimulus.fault is not None:
            self._fail(index, stimulus.fault, now_ns)
        elif not stimulus.run:
            self._tell_step(index, SKIPPED, now_ns)
            self._advance(index, now_ns)
        else:
            arguments = {name: bytes(token_bytes(token)) for name, token in (stimulus.arguments or {}).items()}
            self._spawn(index, now_ns, {"decided": arguments})

    def _replied(self, stimulus: Replied, now_ns: int) -> None:
        index, reply = stimulus
        if (
            self.states[index] in IN_FLIGHT
            and reply.hop == self.hops[index]
            and reply.delivery == self.deliveries[index]
            and reply.epoch == self.epoch
        ):
            if reply.outcome == "ok" and not reply.emits:
                self._complete(index, reply, now_ns)
            elif reply.outcome == "ok":
                self._complete_with_emits(index, reply, now_ns)
            else:
                _OUTCOMES.get(reply.outcome, Saga._reply_failed)(self, index, reply, now_ns)
        else:
            self._late_reply(index, reply, now_ns)

    def _complete(self, index: int, reply: Reply, now_ns: int) -> None:
        """The ordinary end of an ordinary hop; what `_tell_step` would do, without the questions it asks."""
        step = self.plan.steps[index]
        pulse: Pulse = _new(
            Pulse,
            (
                self.transaction, self.root, self.plan.workflow, self.seq, reply.hop, (), COMPLETED, step.name, step.spawn, FORWARD,
                self.attempts[index], self.ttls[index], now_ns, reply.elapsed_ns, None, reply.token, None, None, self.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        self._completed(pulse, index)
        self.seq += 1
        if self.phase is ACTIVE:
            if step.dependents:
                self._spawn_ready(step.dependents, now_ns)
            if not self.unsettled and self.phase is ACTIVE:
                self._finish("completed", now_ns)
        else:
            self._continue_stopping(now_ns)

    def _complete_with_emits(self, index: int, reply: Reply, now_ns: int) -> None:
        self._tell_step(index, COMPLETED, now_ns, elapsed_ns=reply.elapsed_ns, token_out=reply.token, data=_emits(reply))
        self._deliver_emissions(self.hops[index])
        self._advance(index, now_ns)

    def _continued(self, index: int, reply: Reply, now_ns: int) -> None:
        self._tell_step(
            index, COMPENSATED, now_ns, elapsed_ns=reply.elapsed_ns, token_out=reply.token, error=reply.fault, data=_emits(reply)
        )
        self._deliver_emissions(self.hops[index])
        self._advance(index, now_ns)

    def _advance(self, index: int, now_ns: int) -> None:
        """Something is settled: start what waited for it, or see whether that was all."""
        if self.phase is not ACTIVE:
            self._continue_stopping(now_ns)
            return
        dependents = self.plan.steps[index].dependents
        if dependents:
            self._spawn_ready(dependents, now_ns)
        if not self.unsettled and self.phase is ACTIVE:
            self._finish("completed", now_ns)

    def _spawn_ready(self, candidates: Iterable[int], now_ns: int) -> None:
        missing, states = self.missing, self.states
        for index in candidates:
            if not missing[index] and states[index] == WAITING and self.phase is ACTIVE:
                if self.plan.steps[index].decides and index not in self.decided:
                    self.commands.append(Decide(index))
                else:
                    self._spawn(index, now_ns)

    def _spawn(self, index: int, now_ns: int, data: Mapping[str, Any] | None = None) -> None:
        """The first attempt, or another one; the one place where TTL falls."""
        step = self.plan.steps[index]
        ttl = self.ttl_of_causes(step)
        if ttl <= 0:
            self._expire(index, now_ns)
            return
        attempt = self.attempts[index] + 1
        hop = join_hop_id(self.salt, step.forward_code if attempt == 1 else step.code(FORWARD, attempt))
        pulse: Pulse = _new(
            Pulse,
            (
                self.transaction, self.root, self.plan.workflow, self.seq, hop, self.causes_of(step), SPAWNED, step.name, step.spawn,
                FORWARD, attempt, ttl - 1, now_ns, None, step.token_in, None, None, data, self.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        self._spawned(pulse, index)
        self.seq += 1
        self.commands.append(_new(Dispatch, (index, FORWARD, None)))

    def _expire(self, index: int, now_ns: int) -> None:
        step = self.plan.steps[index]
        chain = [*self.trail, *self.chain_to(index)]
        before = f" after {' → '.join(chain[:-1])}" if len(chain) > 1 else ""
        fault = Fault(
            "bitactor.errors:TtlExpired", f"no hops left for {step.address!r}{before}; this transaction began with {self.ttl}"
        )
        self._tell_step(index, TOMBSTONE, now_ns, reason=TTL_EXPIRED, data={"chain": chain, "ttl": self.ttl})
        self._fail(index, fault, now_ns)

    # What can go wrong

    def _fail(self, index: int, fault: Fault, now_ns: int, *, elapsed_ns: int | None = None, in_doubt: bool = False) -> None:
        """A step failed for good: stop everything else, then undo."""
        beginning = self.phase not in (FAILING, UNDOING)
        data = {"in_doubt": True} if in_doubt else None
        self._tell_step(index, FAILED, now_ns, elapsed_ns=elapsed_ns, error=fault, data=data)
        if beginning:
            self._stop(now_ns)
        else:
            self._continue_stopping(now_ns)

    def _reply_failed(self, index: int, reply: Reply, now_ns: int) -> None:
        fault = reply.fault or Fault("bitactor.outcome:Fail", reply.reason)
        if reply.outcome != "fail":
            address = self.plan.steps[index].address
            fault = Fault("bitactor.errors:InvalidOutcome", f"{address!r} was answered with {reply.outcome!r}")
        self._fail(index, fault, now_ns, elapsed_ns=reply.elapsed_ns)

    def _reply_cancelled(self, index: int, reply: Reply, now_ns: int) -> None:
        fault = reply.fault or Fault("bitactor.errors:Cancelled", "cancelled before it had answered")
        self._fail(index, fault, now_ns, elapsed_ns=reply.elapsed_ns, in_doubt=True)

    def _reply_retry(self, index: int, reply: Reply, now_ns: int) -> None:
        fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
        self._try_again(index, fault, reply.after_ns, reply.elapsed_ns, now_ns)

    def _try_again(self, index: int, fault: Fault, after_ns: int | None, elapsed_ns: int | None, now_ns: int) -> None:
        step = self.plan.steps[index]
        failures = self.failures[index] + 1
        if self.phase not in (ACTIVE, HALTING) or failures > step.retries:
            self._fail(index, fault, now_ns, elapsed_ns=elapsed_ns)
            return
        if after_ns is None:
            backoff = step.backoff if isinstance(step.backoff, Backoff) else DEFAULT_BACKOFF
            after_ns = backoff.delay_ns(failures, _fraction(self.hops[index]))
        due_ns = now_ns + after_ns
        data = {"due_ns": due_ns, "after_ns": after_ns}
        self._tell_step(index, RETRIED, now_ns, elapsed_ns=elapsed_ns, error=fault, data=data)
        self.commands.append(ArmRetry(index, due_ns))
        self._continue_stopping(now_ns)

    def _reply_halt(self, index: int, reply: Reply, now_ns: int) -> None:
        if self.phase is FAILING:
            self._fail(index, Fault("bitactor.outcome:Halt", reply.reason), now_ns, elapsed_ns=reply.elapsed_ns)
            return
        self._tell_step(index, HALTED, now_ns, elapsed_ns=reply.elapsed_ns, data={"reason": reply.reason})
        self._continue_stopping(now_ns)

    def _reply_timed_out(self, index: int, reply: Reply, now_ns: int) -> None:
        fault = reply.fault or Fault("bitactor.errors:StepTimeout", "timed out where it ran")
        self._time_out(index, fault, reply.elapsed_ns, now_ns)

    def _hop_expired(self, stimulus: HopExpired, now_ns: int) -> None:
        index, delivery, fault = stimulus
        if self.states[index] in IN_FLIGHT and delivery == self.deliveries[index]:
            self._time_out(index, fault, now_ns - self.spawned_at_ns[index], now_ns)

    def _time_out(self, index: int, fault: Fault, elapsed_ns: int | None, now_ns: int) -> None:
        assess = self.phase is not FAILING and self.states[index] == RUNNING and self.plan.steps[index].assesses
        self._tell_step(index, TIMED_OUT, now_ns, elapsed_ns=elapsed_ns, error=fault)
        self._after_doubt(index, fault, now_ns, assess=assess, retry=self._worth_another_try(index, fault))

    def _lost(self, stimulus: Lost, now_ns: int) -> None:
        index, delivery, holder = stimulus
        if self.states[index] not in IN_FLIGHT or delivery != self.deliveries[index]:
            if self._is_awaited((self.hops[index], delivery)):
                data = {"delivery": delivery, "outcome": "lost", "happened": None}
                self._tell_step(index, LATE, now_ns, data=data)
                self._continue_stopping(now_ns)
            return
        if delivery <= self.plan.redeliveries and self.phase is not FAILING:
            self._redeliver(index, FORWARD, holder, now_ns)
            return
        assess = self.phase is not FAILING and self.states[index] == RUNNING and self.plan.steps[index].compensate is not None
        fault = self._lost_fault(index, holder)
        self._tell_step(index, TOMBSTONE, now_ns, reason=POISON, data={"holder": holder, "fault": list(fault)})
        self._after_doubt(index, fault, now_ns, assess=assess, retry=False)

    def _lost_fault(self, index: int, holder: str) -> Fault:
        delivery = self.deliveries[index]
        return Fault(
            "bitactor.errors:WorkerLost",
            f"{self.plan.steps[index].address!r} lost its worker ({holder}) on delivery {delivery} of {self.plan.redeliveries + 1}",
        )

    def _redeliver(self, index: int, direction: str, holder: str, now_ns: int) -> None:
        """The same hop once more, to somebody else: same id, same key, next delivery number."""
        data: dict[str, Any] = {"delivery": self.deliveries[index] + 1, "lost": holder}
        fault = self.assessed[index] if self.states[index] == ASSESSING else None
        if fault is not None:
            data["assess"] = list(fault)
        self._tell_step(index, SPAWNED, now_ns, direction=direction, data=data)
        self.commands.append(Dispatch(index, direction, fault))

    def _after_doubt(self, index: int, fault: Fault, now_ns: int, *, assess: bool, retry: bool) -> None:
        """An attempt ended without anybody knowing what it did: ask its compensation, try again, or fail."""
        self.commands.append(Abandon(index))
        if self.phase is FAILING:
            self._continue_stopping(now_ns)
        elif assess:
            data = {"assess": list(fault), "delivery": self.deliveries[index] + 1}
            self._tell_step(index, SPAWNED, now_ns, data=data)
            self.commands.append(Dispatch(index, FORWARD, fault))
        elif retry:
            self._try_again(index, fault, None, None, now_ns)
        else:
            self._fail(index, fault, now_ns, in_doubt=True)

    def _worth_another_try(self, index: int, fault: Fault) -> bool:
        step = self.plan.steps[index]
        kind = _OWN_ERRORS.get(fault.type)
        return self.failures[index] < step.retries and kind is not None and issubclass(kind, step.retry_on)

    def _unrouted(self, stimulus: Unrouted, now_ns: int) -> None:
        index, delivery, fault = stimulus
        if self.states[index] in IN_FLIGHT and delivery == self.deliveries[index]:
            self._tell_step(index, TOMBSTONE, now_ns, reason=UNROUTABLE, data={"fault": list(fault)})
            self._fail(index, fault, now_ns)

    def _retry_due(self, stimulus: RetryDue, now_ns: int) -> None:
        if self.states[stimulus.step] == BACKING_OFF:
            self._spawn(stimulus.step, now_ns)

    def _deadline_over(self, stimulus: DeadlineOver, now_ns: int) -> None:
        self._tell(TOMBSTONE, now_ns, reason=DEADLINE_EXCEEDED)
        self._tell(FAILED, now_ns, error=stimulus.fault)
        self._stop(now_ns)

    def _cancel_asked(self, stimulus: CancelAsked, now_ns: int) -> None:
        self._tell(FAILED, now_ns, error=stimulus.fault, data={"cancel": True})
        self._stop(now_ns)

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
            elif reply.outcome in ("ok", "continue") and state in (IN_DOUBT, UNDO_BROKEN) and reply.hop == self.hops[index]:
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

    # Stopping and undoing

    def _stop(self, now_ns: int) -> None:
        """Something failed: cancel what is in flight, and undo once it has answered or the grace period is over."""
        self.commands.append(ArmDeadline(now_ns + self.plan.grace_ns + self.plan.undo_timeout_ns))
        if not self._awaits_answers():
            self._continue_undo(now_ns)
            return
        self.commands.extend(Abandon(index) for index, state in enumerate(self.states) if state in IN_FLIGHT)
        self.commands.append(ArmGrace(self.plan.grace_ns))

    def _awaits_answers(self) -> bool:
        """Whether something is in flight, or has timed out but may still answer, and that would change what is undone."""
        return self.in_flight > 0 or any(self.plan.steps[index].undo is not None for index in self.awaited.values())

    def _grace_over(self, stimulus: GraceOver, now_ns: int) -> None:
        self._leave_all_in_doubt(now_ns)
        self._continue_undo(now_ns)

    def _leave_all_in_doubt(self, now_ns: int) -> None:
        for index, state in enumerate(self.states):
            if state in IN_FLIGHT:
                address = self.plan.steps[index].address
                fault = Fault("bitactor.errors:StepTimeout", f"{address!r} did not answer before undo had to begin")
                self._tell_step(index, TIMED_OUT, now_ns, elapsed_ns=now_ns - self.spawned_at_ns[index], error=fault)
                self.commands.append(Abandon(index))

    def _continue_stopping(self, now_ns: int) -> None:
        """Once nothing is in flight any more: halted, or on to undo."""
        if self.in_flight:
            return
        if self.phase is HALTING:
            left = None if self.deadline_ns is None else max(0, self.deadline_ns - now_ns)
            self._tell(HALTED, now_ns, data={"status": "halted", "left_ns": left})
            self.commands.append(ArmDeadline(None))
            self.commands.append(Settle("halted"))
        elif self.phase is FAILING and not self._awaits_answers():
            self._continue_undo(now_ns)

    def _continue_undo(self, now_ns: int) -> None:
        """The next undo, last first; or the end."""
        for index in reversed(self.order):
            step = self.plan.steps[index]
            if step.undo is None or self.states[index] not in (DONE, IN_DOUBT):
                continue
            if index in self.doubts and not step.undo.in_doubt:
                fault = Fault(
                    "bitactor.errors:UndoFailed",
                    f"nobody knows whether {step.address!r} happened, and its undo does not take doubt; look, mend by hand, or "
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
            self._tell_step(index, UNDONE, now_ns, elapsed_ns=reply.elapsed_ns, direction=UNDO, data=_emits(reply))
            self._deliver_emissions(self.undo_hop(index))
            self._continue_undo(now_ns)
        elif reply.outcome == "retry":
            self._retry_undo(index, reply, now_ns)
        else:
            fault = reply.fault or Fault("bitactor.errors:UndoFailed", reply.reason or reply.outcome)
            self._break_undo(index, fault, now_ns, reply.elapsed_ns)

    def _retry_undo(self, index: int, reply: Reply, now_ns: int) -> None:
        undo = self.plan.steps[index].undo
        attempt = self.undo_attempts[index]
        fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
        if undo is None or attempt > undo.retries:
            self._break_undo(index, fault, now_ns, reply.elapsed_ns)
            return
        after_ns = reply.after_ns
        if after_ns is None:
            after_ns = DEFAULT_BACKOFF.delay_ns(attempt, _fraction(self.undo_hop(index)))
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
            if self.plan.steps[index].undo is not None and state in (DONE, IN_DOUBT, UNDO_RUNNING, UNDO_BACKING_OFF):
                self._tell_step(index, UNDO_FAILED, now_ns, error=stimulus.fault, direction=UNDO)
                if state == UNDO_RUNNING:
                    self.commands.append(Abandon(index))
        self._continue_undo(now_ns)

    def _finish(self, status: str, now_ns: int) -> None:
        error = self.errors[0][1] if status != "completed" and self.errors else None
        self._tell(FINISHED, now_ns, error=error, data={"status": status}, elapsed_ns=now_ns - self.accepted_at_ns)
        self.commands.append(Settle(status))

    # Going on

    def _resume_asked(self, stimulus: ResumeAsked, now_ns: int) -> None:
        if self.phase is ENDED and self.status != "stuck":
            return
        self._tell(RESUMED, now_ns, data={"deadline_ns": stimulus.deadline_ns})
        if self.phase is ACTIVE:
            self.commands.append(ArmDeadline(stimulus.deadline_ns))
            self._go_on(now_ns)
        else:
            self.commands.append(ArmDeadline(now_ns + self.plan.undo_timeout_ns))
            self._continue_undo(now_ns)

    def _go_on(self, now_ns: int) -> None:
        self._spawn_ready(range(len(self.states)), now_ns)
        if not self.unsettled and self.phase is ACTIVE:
            self._finish("completed", now_ns)

    def _recovered(self, stimulus: Recovered, now_ns: int) -> None:
        """Take up what a dead owner left: what was in flight is lost with it, what waits is waited for again."""
        self._tell(RESUMED, now_ns, data={"owner": stimulus.owner, "epoch": stimulus.epoch})
        self.commands.extend(Deliver(emission) for emission in self.emissions.values())
        if self.phase in (SUSPENDED, ENDED):
            self.commands.append(Settle(self.status))
            return
        undo_until = now_ns + self.plan.undo_timeout_ns
        self.commands.append(ArmDeadline(self.deadline_ns if self.phase in (ACTIVE, HALTING) else undo_until))
        was_failing = self.phase is FAILING
        if was_failing:
            self._leave_all_in_doubt(now_ns)
        for index, state in enumerate(tuple(self.states)):
            if state != self.states[index]:
                continue  # the loss of another has just changed it
            if state in IN_FLIGHT:
                self._lost(Lost(index, self.deliveries[index], "its process ended"), now_ns)
            elif state == UNDO_RUNNING:
                self._undo_lost(Lost(index, self.deliveries[index], "its process ended"), now_ns)
            elif state in (BACKING_OFF, UNDO_BACKING_OFF):
                self.commands.append(ArmRetry(index, self.due_ns[index]))
        if self.phase is ACTIVE:
            self._go_on(now_ns)
        elif self.phase is UNDOING:
            if not any(state in (UNDO_RUNNING, UNDO_BACKING_OFF) for state in self.states):
                self._continue_undo(now_ns)
        elif was_failing:
            self._continue_undo(now_ns)
        else:
            self._continue_stopping(now_ns)

    # Emitted signals

    def _deliver_emissions(self, hop: str) -> None:
        self.commands.extend(Deliver(emission) for emission in self.emissions.values() if emission.hop == hop)

    def _emit_taken(self, stimulus: EmitTaken, now_ns: int) -> None:
        emission = self.emissions.get(stimulus.emit)
        if emission is not None:
            data = {"emit": emission.id, "name": emission.name, "receivers": list(stimulus.receivers)}
            self._tell(EMITTED, now_ns, hop=emission.hop, data=data, ttl=emission.ttl)

    def _emit_died(self, stimulus: EmitDied, now_ns: int) -> None:
        emission = self.emissions.get(stimulus.emit)
        if emission is not None:
            data = {"emit": emission.id, "name": emission.name, "why": stimulus.reason}
            self._tell(TOMBSTONE, now_ns, hop=emission.hop, reason=UNROUTABLE, data=data, ttl=emission.ttl)

    def _ignore(self, stimulus: Any, now_ns: int) -> None:
        """It came late, twice, or after the end."""

    # Telling

    def _tell(
        self,
        kind: str,
        now_ns: int,
        *,
        hop: str | None = None,
        error: Fault | None = None,
        reason: str | None = None,
        data: Mapping[str, Any] | None = None,
        token_out: Any = None,
        direction: str = FORWARD,
        elapsed_ns: int | None = None,
        ttl: int | None = None,
    ) -> None:
        """A pulse of the transaction itself."""
        if error is not None:
            data = {**(data or {}), "fault": list(error)}
            reason = error.summary()
        pulse = Pulse(
            self.transaction, self.root, self.plan.workflow, self.seq, hop or self.span_id, (), kind, "", "", direction, 1,
            self.ttl if ttl is None else ttl, now_ns, elapsed_ns, None, token_out, reason, data, self.digest,
        )  # fmt: skip
        self.pulses.append(pulse)
        self.evolve(pulse)

    def _tell_step(
        self,
        index: int,
        kind: str,
        now_ns: int,
        *,
        hop: str | None = None,
        elapsed_ns: int | None = None,
        token_out: Any = None,
        error: Fault | None = None,
        reason: str | None = None,
        direction: str = FORWARD,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """A pulse of one step."""
        step = self.plan.steps[index]
        if error is not None:
            data = {**(data or {}), "fault": list(error)}
            reason = error.summary()
        causes: tuple[str, ...] = ()
        ttl = self.ttls[index]
        if direction == UNDO:
            attempt, hop, causes = self._undo_identity(index, kind, data)
        else:
            attempt = self.attempts[index] or 1
            hop = hop or self.hops[index]
            if not hop:
                hop = join_hop_id(self.salt, step.code(FORWARD, attempt))
                causes = self.causes_of(step)
                ttl = self.ttl_of_causes(step)
            elif kind == SPAWNED:
                causes = self.causes[index]
        pulse: Pulse = _new(
            Pulse,
            (
                self.transaction, self.root, self.plan.workflow, self.seq, hop, causes, kind, step.name, step.spawn, direction,
                attempt, ttl, now_ns, elapsed_ns, None, token_out, reason, data, self.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        if kind is COMPLETED:
            self._completed(pulse, index)
            self.seq += 1
        else:
            self.evolve(pulse)

    def _undo_identity(self, index: int, kind: str, data: Mapping[str, Any] | None) -> tuple[int, str, tuple[str, ...]]:
        """Attempt, hop id and causes of a pulse about an undo; a fresh spawn begins the next attempt."""
        attempt = self.undo_attempts[index]
        if kind == SPAWNED and not (data and "delivery" in data):
            attempt += 1
        hop = join_hop_id(self.salt, self.plan.steps[index].code(UNDO, max(1, attempt)))
        return max(1, attempt), hop, (self.hops[index],) if kind == SPAWNED else ()


def _emits(reply: Reply) -> dict[str, Any] | None:
    if not reply.emits:
        return None
    return {"emits": [[name, bytes(token_bytes(token))] for name, token in reply.emits]}


def _fraction(hop: str) -> float:
    """A number in 0 … 1 that is this hop's own: jitter without randomness, so that a replay waits as long."""
    return int(hop[:8], 16) / 0xFFFFFFFF


_OWN_ERRORS: Final[Mapping[str, type[BaseException]]] = {
    "bitactor.errors:StepTimeout": StepTimeout,
    "bitactor.errors:WorkerLost": WorkerLost,
}

_OUTCOMES: Final = {
    "continue": Saga._continued,
    "retry": Saga._reply_retry,
    "fail": Saga._reply_failed,
    "halt": Saga._reply_halt,
    "timed_out": Saga._reply_timed_out,
    "cancelled": Saga._reply_cancelled,
}


class Transition(NamedTuple):
    """One row of the table: in any of `phases`, `stimulus` is handled by `handler`."""

    phases: tuple[str, ...]
    stimulus: type
    handler: Any
    meaning: str


_FORWARD: Final = (ACTIVE, HALTING)
_LIVE: Final = (ACTIVE, HALTING, SUSPENDED, FAILING, UNDOING, ENDED)

TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition((NEW,), Accept, Saga._accept, "record the input, start the first steps"),
    Transition((ACTIVE,), Decided, Saga._decided, "spawn or skip the step, or fail if its predicate raised"),
    Transition((*_FORWARD, FAILING), Replied, Saga._replied, "settle the hop; go on, retry, fail or halt as it says"),
    Transition((UNDOING,), Replied, Saga._undo_replied, "settle the undo; go on with the one before"),
    Transition((SUSPENDED, ENDED), Replied, Saga._replied_in_the_end, "record it as late, once"),
    Transition((*_FORWARD, FAILING), Lost, Saga._lost, "deliver again, or bury the hop as poison"),
    Transition((UNDOING,), Lost, Saga._undo_lost, "deliver the undo again, or give it up as poison"),
    Transition((*_FORWARD, FAILING), Unrouted, Saga._unrouted, "fail: nobody to run it"),
    Transition((UNDOING,), Unrouted, Saga._undo_unrouted, "the undo failed: nobody to run it"),
    Transition((*_FORWARD, FAILING), HopExpired, Saga._hop_expired, "the attempt is in doubt; ask compensation, retry or fail"),
    Transition((UNDOING,), HopExpired, Saga._undo_expired, "the undo failed"),
    Transition((ACTIVE,), RetryDue, Saga._retry_due, "the next attempt"),
    Transition((UNDOING,), RetryDue, Saga._undo_retry_due, "the next attempt at undo"),
    Transition((FAILING,), GraceOver, Saga._grace_over, "what has not answered is in doubt; begin undo"),
    Transition(_FORWARD, DeadlineOver, Saga._deadline_over, "stop everything, then undo"),
    Transition((FAILING, UNDOING), DeadlineOver, Saga._undo_time_over, "what is not undone by now has failed to be; end as stuck"),
    Transition((*_FORWARD, SUSPENDED), CancelAsked, Saga._cancel_asked, "stop everything, then undo"),
    Transition((SUSPENDED, ENDED), ResumeAsked, Saga._resume_asked, "go on: forward if halted, with undo if stuck"),
    Transition(_LIVE, Recovered, Saga._recovered, "redeliver what was in flight, wait again for what was waited for"),
    Transition(_LIVE, EmitTaken, Saga._emit_taken, "record it; the emitted signal is off our hands"),
    Transition(_LIVE, EmitDied, Saga._emit_died, "bury the emitted signal as unroutable"),
)
"""Whatever is not listed means nothing in that phase and is ignored: it came late, twice, or after the end."""

HANDLERS: Final[Mapping[tuple[str, type], Any]] = {
    **{(phase, stimulus): Saga._ignore for phase in PHASES for stimulus in STIMULI},
    **{(phase, row.stimulus): row.handler for row in TRANSITIONS for phase in row.phases},
}
