"""The saga: one transaction as a sans-IO state machine.

Theory of operation.  A *stimulus* comes in (a hop replied, timed out, a cancel was asked for); out come *pulses*, facts
to be kept, and *commands*, orders to be obeyed once the pulses are kept.  `react` decides, `evolve` (see `evolve`)
changes the state, by pulses alone. Recovery is a fold followed by `Recovered`.  The machine needs no clock, no thread
and no socket: time arrives as a number.

A transaction goes through phases; `TRANSITIONS` says what each stimulus means in each of them, and `python -m
bitactor.saga` prints it.

    new ──▶ running ──▶ ended (completed)
               │  ╲
               │   ▶ halting ──▶ halted ──▶ running …
               ▼
            failing ──▶ undoing ──▶ ended (compensated, cancelled, stuck)

While *failing*, nothing new starts: hops in flight are cancelled, and each is waited for until it answers or the grace
period ends. What answered is known to have happened or not; what did not is *in doubt*.  Undo is then serial, last
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from bitactor.errors import StoreError
from bitactor.messages.pulse import (
    ACCEPTED,
    COMPLETED,
    EMITTED,
    FAILED,
    HALTED,
    RESUMED,
    RUNNING,
    STUCK,
    TOMBSTONE,
    UNROUTABLE,
    Pulse,
)
from bitactor.plan.plan import Plan
from bitactor.saga.commands import (
    ArmDeadline,
    ArmRetry,
    Command,
    Deliver,
    Settle,
)  # fmt: skip
from bitactor.saga.containers import Containers
from bitactor.saga.events import (
    EVENTS,
    Accept,
    CancelRequested,
    DeadlineExpired,
    EmissionAccepted,
    EmissionUnrouted,
    Evaluated,
    Event,
    GraceExpired,
    HopExpired,
    Lost,
    Proceeded,
    Recovered,
    Replied,
    ResumeRequested,
    RetryDue,
    UndoRequested,
    Unrouted,
)
from bitactor.saga.evolve import fold
from bitactor.saga.phases import (
    BACKING_OFF,
    ENDED,
    FAILING,
    HALTING,
    IN_FLIGHT,
    NEW,
    PHASES,
    UNDO_BACKING_OFF,
    UNDO_RUNNING,
    UNDOING,
)


class Saga(Containers):
    """One transaction.  Make one with `Saga(plan, id)` and feed it `Accept`, or with `Saga.fold` and feed it
    `Recovered`."""

    __slots__ = ()

    @classmethod
    def fold(cls, plan: Plan, pulses: Sequence[Pulse]) -> Self:
        """The saga whose state follows from a journal; equal to the live one after its last pulse.

        Raises:
            StoreError: the journal is empty, has a gap, or does not fit the plan.
        """
        if not pulses or pulses[0].kind != ACCEPTED:
            raise StoreError("a journal begins with an accepted pulse; this one is empty or has lost its beginning")
        first = pulses[0]
        data = first.data or {}
        parent, trail = data.get("parent", ""), tuple(data.get("trail") or ())
        saga = cls(plan, first.transaction, root=first.root, parent=parent, trail=trail)
        fold(saga, pulses)
        return saga

    def react(self, event: Event, now_ns: int) -> tuple[list[Pulse], list[Command]]:
        """The pulses and commands that follow from `event` at wall time `now_ns`.

        The pulses have already changed the state; the commands may be obeyed only once the pulses are kept.  A stimulus
        that means nothing in this phase (it came late, twice, or after the end) gives two empty lists.
        """
        pulses: list[Pulse] = []
        commands: list[Command] = []
        self.pulses = pulses
        self.commands = commands
        HANDLERS[self.phase, type(event)](self, event, now_ns)
        return pulses, commands

    def _resume_requested(self, event: ResumeRequested, now_ns: int) -> None:
        if self.phase is ENDED and self.status != STUCK:
            return
        self._record(RESUMED, now_ns, data={"deadline_ns": event.deadline_ns})
        if self.phase is RUNNING:
            self.commands.append(ArmDeadline(event.deadline_ns))
            self.being_evaluated = set()  # what was decided while it halted was not heard
            self._continue_after_stop(now_ns)
        else:
            self.commands.append(ArmDeadline(now_ns + self.plan.undo_timeout_ns))
            self._continue_undo(now_ns)

    def _undo_requested(self, event: UndoRequested, now_ns: int) -> None:
        """Undo a completed transaction, once."""
        if self.status != COMPLETED:
            return
        self._record(FAILED, now_ns, error=event.fault, data={"undo": True})
        self._stop(now_ns)

    def _continue_after_stop(self, now_ns: int) -> None:
        self._spawn_ready(range(len(self.states)), now_ns)
        self.pending_containers.extend(
            index for index, progress in self.progress.items() if progress.next_action is not None
        )
        self._start_pending(now_ns)
        if not self.unsettled_count and self.phase is RUNNING:
            self._finish(COMPLETED, now_ns)

    def _recovered(self, event: Recovered, now_ns: int) -> None:
        """Go on where a dead owner stopped: hops in flight are lost with its process, timers are armed again."""
        self._record(RESUMED, now_ns, data={"owner": event.owner, "epoch": event.epoch})
        self.commands.extend(Deliver(emission) for emission in self.emissions.values())
        if self.phase in (HALTED, ENDED):
            self.commands.append(Settle(self.status))
            return
        undo_until = now_ns + self.plan.undo_timeout_ns
        self.commands.append(ArmDeadline(self.deadline_ns if self.phase in (RUNNING, HALTING) else undo_until))
        was_failing = self.phase is FAILING
        if was_failing:
            self._leave_all_in_doubt(now_ns)
        order = sorted(
            range(len(self.states)),
            key=lambda index: self.steps[index] is None or self.steps[index].around_container is None,
        )
        before = tuple(self.states)
        for index in order:
            state = before[index]
            if state in IN_FLIGHT and index >= self.plan_size and self.awaits_proceed(index):
                self.awaiting_redelivery = self.awaiting_redelivery | {index}
                continue  # it is delivered again once what is around it proceeds again
            if state != self.states[index]:
                continue  # the loss of another has just changed it
            if state in IN_FLIGHT:
                self._lost(Lost(index, self.deliveries[index], "its process ended"), now_ns)
            elif state == UNDO_RUNNING:
                self._undo_lost(Lost(index, self.deliveries[index], "its process ended"), now_ns)
            elif state in (BACKING_OFF, UNDO_BACKING_OFF):
                self.commands.append(ArmRetry(index, self.due_ns[index]))
        if self.phase is RUNNING:
            self._continue_after_stop(now_ns)
        elif self.phase is UNDOING:
            if not any(state in (UNDO_RUNNING, UNDO_BACKING_OFF) for state in self.states):
                self._continue_undo(now_ns)
        elif was_failing:
            self._continue_undo(now_ns)
        else:
            self._continue_stopping(now_ns)

    def _emission_accepted(self, event: EmissionAccepted, now_ns: int) -> None:
        emission = self.emissions.get(event.emit)
        if emission is not None:
            data = {"emit": emission.id, "name": emission.name, "receivers": list(event.receivers)}
            self._record(EMITTED, now_ns, hop=emission.hop, data=data, ttl=emission.ttl)

    def _emission_unrouted(self, event: EmissionUnrouted, now_ns: int) -> None:
        emission = self.emissions.get(event.emit)
        if emission is not None:
            data = {"emit": emission.id, "name": emission.name, "why": event.reason}
            self._record(TOMBSTONE, now_ns, hop=emission.hop, reason=UNROUTABLE, data=data, ttl=emission.ttl)

    def _ignore(self, event: Any, now_ns: int) -> None:
        """Do nothing: the event came late, twice, or after the end."""


class Transition(NamedTuple):
    """One row of the table: in any of `phases`, `event` is handled by `handler`."""

    phases: tuple[str, ...]
    event: type
    handler: Any
    meaning: str


_FORWARD: Final = (RUNNING, HALTING)
_LIVE: Final = (RUNNING, HALTING, HALTED, FAILING, UNDOING, ENDED)

TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition((NEW,), Accept, Saga._accept, "record the input, start the first steps"),
    Transition((RUNNING,), Evaluated, Saga._evaluated, "spawn or skip the step, or fail if its predicate raised"),
    Transition((*_FORWARD, FAILING), Replied, Saga._replied, "settle the hop; go on, retry, fail or halt as it says"),
    Transition((UNDOING,), Replied, Saga._undo_replied, "settle the undo; go on with the one before"),
    Transition((HALTED, ENDED), Replied, Saga._replied_after_end, "record it as late, once"),
    Transition((*_FORWARD, FAILING), Lost, Saga._lost, "deliver again, or bury the hop as poison"),
    Transition((UNDOING,), Lost, Saga._undo_lost, "deliver the undo again, or give it up as poison"),
    Transition((*_FORWARD, FAILING), Unrouted, Saga._unrouted, "fail: nobody to run it"),
    Transition((UNDOING,), Unrouted, Saga._undo_unrouted, "the undo failed: nobody to run it"),
    Transition(
        (*_FORWARD, FAILING), HopExpired, Saga._hop_expired, "the attempt is in doubt; ask compensation, retry or fail"
    ),
    Transition((UNDOING,), HopExpired, Saga._undo_expired, "the undo failed"),
    Transition(_FORWARD, Proceeded, Saga._proceeded, "run the steps nested in a function, or let them go on"),
    Transition((RUNNING,), RetryDue, Saga._retry_due, "the next attempt"),
    Transition((UNDOING,), RetryDue, Saga._undo_retry_due, "the next attempt at undo"),
    Transition((FAILING,), GraceExpired, Saga._grace_expired, "what has not answered is in doubt; begin undo"),
    Transition(_FORWARD, DeadlineExpired, Saga._deadline_expired, "stop everything, then undo"),
    Transition(
        (FAILING, UNDOING),
        DeadlineExpired,
        Saga._undo_deadline_expired,
        "what is not undone by now has failed to be; end as stuck",
    ),
    Transition((*_FORWARD, HALTED), CancelRequested, Saga._cancel_requested, "stop everything, then undo"),
    Transition((ENDED,), UndoRequested, Saga._undo_requested, "take back what a completed transaction did"),
    Transition(
        (HALTED, ENDED), ResumeRequested, Saga._resume_requested, "go on: forward if halted, with undo if stuck"
    ),
    Transition(_LIVE, Recovered, Saga._recovered, "redeliver what was in flight, wait again for what was waited for"),
    Transition(_LIVE, EmissionAccepted, Saga._emission_accepted, "record it; the emitted signal is off our hands"),
    Transition(_LIVE, EmissionUnrouted, Saga._emission_unrouted, "bury the emitted signal as unroutable"),
)
"""The rows of the table; an event that is not listed for a phase is ignored in it: it came late, twice, or after the
end."""

HANDLERS: Final[Mapping[tuple[str, type], Any]] = {
    **{(phase, event): Saga._ignore for phase in PHASES for event in EVENTS},
    **{(phase, row.event): row.handler for row in TRANSITIONS for phase in row.phases},
}
