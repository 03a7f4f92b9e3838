"""The saga: one transaction as a sans-IO state machine.

Theory of operation.  A *stimulus* comes in (a hop replied, timed out, a cancel was asked for); out come *pulses*, facts
to be kept, and *commands*, orders to be obeyed once the pulses are kept.  `react` decides, `evolve` (see `evolve`)
changes the state, by pulses alone. Recovery is a fold followed by `Recovered`.  The machine needs no clock, no thread
and no socket: time arrives as a number.

A transaction goes through phases; `TRANSITIONS` says what each stimulus means in each of them.  `python -m
bitactor.saga` prints it, with the function of each row; with `--picture` it draws the phases.

While *failing*, nothing new starts: hops in flight are cancelled, and each is waited for until it answers or the grace
period ends. What answered is known to have happened or not; what did not is *in doubt*.  Undo is then serial, last
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from bitactor.errors import StoreError
from bitactor.messages.codec import pack
from bitactor.messages.duration import seconds_text
from bitactor.messages.pulse import (
    ACCEPTED,
    COMPLETED,
    DEADLINE_EXCEEDED,
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
from bitactor.messages.signal import Fault
from bitactor.plan.plan import Plan
from bitactor.saga import containers, forward, rollback
from bitactor.saga.commands import (
    ArmDeadline,
    ArmRetry,
    Command,
    Deliver,
    Settle,
)  # fmt: skip
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
    SendAgainRequested,
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
from bitactor.saga.state import SagaState
from bitactor.saga.turn import Turn


def accept(turn: Turn, event: Accept) -> None:
    state = turn.state
    data: dict[str, Any] = {"ttl": event.ttl, "deadline_ns": event.deadline_ns}
    if state.parent:
        data["parent"] = state.parent
    if state.trail:
        data["trail"] = list(state.trail)
    if event.data:
        data.update(event.data)
    state.tokens += event.inputs
    state.ttl = event.ttl
    turn.record(ACCEPTED, token_out=event.input, data=data)
    if event.deadline_ns is not None:
        turn.commands.append(ArmDeadline(event.deadline_ns))
    forward.spawn_ready(turn, state.plan.initial)


def deadline_expired(turn: Turn, event: DeadlineExpired) -> None:
    turn.record(TOMBSTONE, reason=DEADLINE_EXCEEDED)
    rollback.end_containers(turn, event.fault, turn.state.progress)
    turn.record(FAILED, error=event.fault)
    rollback.stop(turn)


def overdue(state: SagaState, now_ns: int, *, unattended: bool = False, waits: str = "") -> Fault:
    """The fault of a transaction whose time is up at its time `now_ns`, which says what it was doing; `unattended`:
    it was up before this process took the transaction over; `waits`: what it has waited for, in words."""
    undoing = state.phase in (FAILING, UNDOING)
    until_ns = state.stopping_since_ns + state.plan.undo_timeout_ns if undoing else state.deadline_ns
    late_ns = 0 if until_ns is None else max(0, now_ns - until_ns)
    clock = "wall" if state.epoch and not undoing else "monotonic"  # each owner gives undo all of its time
    lasted = seconds_text(now_ns - state.accepted_at_ns)
    if unattended:
        message = (
            f"{state.plan.workflow!r} was taken over {seconds_text(late_ns)} after its deadline, "
            f"which passed, by the wall clock, while no process ran it; that is {lasted} after it began"
        )
    else:
        message = f"{state.plan.workflow!r} was still {'undoing' if undoing else 'running'} {lasted} after it began"
        if clock == "wall":
            message += " by the wall clock, which counts from one process to the next"
    place = state.at_work_longest()
    if place is not None:
        path = f"{state.plan.workflow}/{place.path}"
        message += f", at {path!r}, attempt {place.attempt}"
    if waits:
        message += f"; {waits}"
    arguments = pack([message, late_ns / 1e9, clock, unattended])
    return Fault("bitactor.errors:DeadlineExceeded", message, "", arguments)


def cancel_requested(turn: Turn, event: CancelRequested) -> None:
    rollback.end_containers(turn, event.fault, turn.state.progress)
    turn.record(FAILED, error=event.fault, data={"cancel": True})
    rollback.stop(turn)


def resume_requested(turn: Turn, event: ResumeRequested) -> None:
    state = turn.state
    if state.phase is ENDED and state.status != STUCK:
        return
    turn.record(RESUMED, data={"deadline_ns": event.deadline_ns})
    if state.phase is RUNNING:
        turn.commands.append(ArmDeadline(event.deadline_ns))
        state.being_evaluated = set()  # what was decided while it halted was not heard
        _continue_after_stop(turn)
    else:
        turn.commands.append(ArmDeadline(turn.now_ns + state.plan.undo_timeout_ns))
        rollback.continue_undo(turn)


def undo_requested(turn: Turn, event: UndoRequested) -> None:
    """Undo a completed transaction, once."""
    if turn.state.status != COMPLETED:
        return
    turn.record(FAILED, error=event.fault, data={"undo": True})
    rollback.stop(turn)


def _continue_after_stop(turn: Turn) -> None:
    state = turn.state
    forward.spawn_ready(turn, range(len(state.states)))
    state.pending_containers.extend(
        index for index, progress in state.progress.items() if progress.next_action is not None
    )
    forward.start_pending(turn)
    if not state.unsettled_count and state.phase is RUNNING:
        turn.finish(COMPLETED)


def recovered(turn: Turn, event: Recovered) -> None:
    """Go on where a dead owner stopped: hops in flight are lost with its process, timers are armed again.  If the
    deadline has passed meanwhile, none is delivered again: what was in flight has the grace period to answer."""
    state = turn.state
    data: dict[str, Any] = {"owner": event.owner, "epoch": event.epoch}
    if event.given_back:
        data["given_back"] = True
    turn.record(RESUMED, data=data)
    turn.commands.extend(Deliver(emission) for emission in state.emissions.values())
    if state.phase in (HALTED, ENDED):
        turn.commands.append(Settle(state.status))
        return
    if state.phase in (RUNNING, HALTING) and state.deadline_ns is not None and state.deadline_ns <= turn.now_ns:
        deadline_expired(turn, DeadlineExpired(overdue(state, turn.now_ns, unattended=True)))
        return
    undo_until = turn.now_ns + state.plan.undo_timeout_ns
    turn.commands.append(ArmDeadline(state.deadline_ns if state.phase in (RUNNING, HALTING) else undo_until))
    was_failing = state.phase is FAILING
    if was_failing:
        rollback.leave_all_in_doubt(turn)
    order = sorted(
        range(len(state.states)),
        key=lambda index: state.steps[index] is None or state.steps[index].around_container is None,
    )
    before = tuple(state.states)
    holder = "its process was stopped" if event.given_back else "its process ended"
    for index in order:
        now = before[index]
        loss = Lost(index, state.deliveries[index], holder, event.given_back)
        if now in IN_FLIGHT and index >= state.plan_size and state.awaits_proceed(index):
            state.awaiting_redelivery = {**state.awaiting_redelivery, index: loss}
            continue  # it is delivered again once what is around it proceeds again
        if now != state.states[index]:
            continue  # the loss of another has just changed it
        if now in IN_FLIGHT:
            forward.lost(turn, loss)
        elif now == UNDO_RUNNING:
            rollback.undo_lost(turn, loss)
        elif now in (BACKING_OFF, UNDO_BACKING_OFF):
            turn.commands.append(ArmRetry(index, state.due_ns[index]))
    if state.phase is RUNNING:
        _continue_after_stop(turn)
    elif state.phase is UNDOING:
        if not any(now in (UNDO_RUNNING, UNDO_BACKING_OFF) for now in state.states):
            rollback.continue_undo(turn)
    elif was_failing:
        rollback.continue_undo(turn)
    else:
        rollback.continue_stopping(turn)


def emission_accepted(turn: Turn, event: EmissionAccepted) -> None:
    emission = turn.state.emissions.get(event.emit)
    if emission is not None:
        data = {"emit": emission.id, "name": emission.name, "receivers": list(event.receivers)}
        turn.record(EMITTED, hop=emission.hop, data=data, ttl=emission.ttl)


def emission_unrouted(turn: Turn, event: EmissionUnrouted) -> None:
    emission = turn.state.emissions.get(event.emit)
    if emission is not None:
        data = {"emit": emission.id, "name": emission.name, "why": event.reason}
        turn.record(TOMBSTONE, hop=emission.hop, reason=UNROUTABLE, data=data, ttl=emission.ttl)


def send_again_requested(turn: Turn, event: SendAgainRequested) -> None:
    state = turn.state
    emission = state.undelivered.get(event.emit)
    if emission is not None:
        data = {"emit": emission.id, "name": emission.name, "again": True}
        turn.record(EMITTED, hop=emission.hop, data=data, ttl=emission.ttl)
        turn.commands.append(Deliver(state.emissions[emission.id]))


def ignore(turn: Turn, event: Any) -> None:
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
    Transition((NEW,), Accept, accept, "record the input, start the first steps"),
    Transition((RUNNING,), Evaluated, containers.evaluated, "spawn or skip the step, or fail if its predicate raised"),
    Transition((*_FORWARD, FAILING), Replied, forward.replied, "settle the hop; go on, retry, fail or halt as it says"),
    Transition((UNDOING,), Replied, rollback.undo_replied, "settle the undo; go on with the one before"),
    Transition((HALTED, ENDED), Replied, rollback.replied_after_end, "record it as late, once"),
    Transition((*_FORWARD, FAILING), Lost, forward.lost, "deliver again, or bury the hop as poison"),
    Transition((UNDOING,), Lost, rollback.undo_lost, "deliver the undo again, or give it up as poison"),
    Transition((*_FORWARD, FAILING), Unrouted, forward.unrouted, "fail: nobody to run it"),
    Transition((UNDOING,), Unrouted, rollback.undo_unrouted, "the undo failed: nobody to run it"),
    Transition(
        (*_FORWARD, FAILING),
        HopExpired,
        forward.hop_expired,
        "the attempt is in doubt; ask compensation, retry or fail",
    ),
    Transition((UNDOING,), HopExpired, rollback.undo_expired, "the undo failed"),
    Transition(_FORWARD, Proceeded, containers.proceeded, "run the steps nested in a function, or let them go on"),
    Transition((RUNNING,), RetryDue, forward.retry_due, "the next attempt"),
    Transition((UNDOING,), RetryDue, rollback.undo_retry_due, "the next attempt at undo"),
    Transition((FAILING,), GraceExpired, rollback.grace_expired, "what has not answered is in doubt; begin undo"),
    Transition(_FORWARD, DeadlineExpired, deadline_expired, "stop everything, then undo"),
    Transition(
        (FAILING, UNDOING),
        DeadlineExpired,
        rollback.undo_deadline_expired,
        "what is not undone by now has failed to be; end as stuck",
    ),
    Transition((*_FORWARD, HALTED), CancelRequested, cancel_requested, "stop everything, then undo"),
    Transition((ENDED,), UndoRequested, undo_requested, "take back what a completed transaction did"),
    Transition((HALTED, ENDED), ResumeRequested, resume_requested, "go on: forward if halted, with undo if stuck"),
    Transition(_LIVE, Recovered, recovered, "redeliver what was in flight, wait again for what was waited for"),
    Transition(_LIVE, EmissionAccepted, emission_accepted, "record it; the emitted signal is off our hands"),
    Transition(_LIVE, EmissionUnrouted, emission_unrouted, "bury the emitted signal as unroutable"),
    Transition(_LIVE, SendAgainRequested, send_again_requested, "bring it to its consumers once more"),
)
"""The rows of the table; an event that is not listed for a phase is ignored in it: it came late, twice, or after the
end."""

HANDLERS: Final[Mapping[tuple[str, type], Any]] = {
    **{(phase, event): ignore for phase in PHASES for event in EVENTS},
    **{(phase, row.event): row.handler for row in TRANSITIONS for phase in row.phases},
}


class Saga:
    """One transaction: its `state`, and what events make of it.  Make one with `Saga(plan, id)` and feed it `Accept`,
    or with `Saga.fold` and feed it `Recovered`."""

    __slots__ = ("_turn", "state")

    def __init__(
        self, plan: Plan, transaction: str, *, root: str = "", parent: str = "", trail: tuple[str, ...] = ()
    ) -> None:
        self.state = SagaState(plan, transaction, root=root, parent=parent, trail=trail)
        self._turn = Turn(self.state)

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
        fold(saga.state, pulses)
        return saga

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain data, for comparing."""
        return self.state.snapshot()

    def react(self, event: Event, now_ns: int) -> tuple[list[Pulse], list[Command]]:
        """The pulses and commands that follow from `event` at `now_ns`, nanoseconds since 1970, by a clock that does
        not go back while one process runs the transaction.

        The pulses have already changed the state; the commands may be obeyed only once the pulses are kept.  A stimulus
        that means nothing in this phase (it came late, twice, or after the end) gives two empty lists.
        """
        turn = self._turn
        turn.now_ns = now_ns
        pulses: list[Pulse] = []
        commands: list[Command] = []
        turn.pulses, turn.commands = pulses, commands
        HANDLERS[self.state.phase, type(event)](turn, event)
        return pulses, commands
