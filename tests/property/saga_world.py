"""A world around one saga: it obeys commands as a supervisor would, lets anything happen that can, and checks what must hold.

What happened is kept here a second time, from commands and stimuli alone, so that the saga is not its own witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bitactor.codec import decode_pulse, encode_pulse, encode_token
from bitactor.plan import Plan
from bitactor.pulse import Pulse
from bitactor.saga import (
    Abandon,
    Accept,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelAsked,
    DeadlineOver,
    Decide,
    Decided,
    Deliver,
    Dispatch,
    EmitDied,
    EmitTaken,
    GraceOver,
    HopExpired,
    Lost,
    Recovered,
    Replied,
    ResumeAsked,
    RetryDue,
    Saga,
    SagaState,
    Settle,
    Unrouted,
)
from bitactor.saga.phases import ASSESSING, RUNNING
from bitactor.signal import FORWARD, UNDO, Fault, Reply

TRANSACTION = "0190" * 4 + "5eed5eed5eed5eed"
SETTLED = ("completed", "compensated", "cancelled", "halted", "stuck")
AFTER_THE_END = frozenset(("late", "emitted", "tombstone", "resumed"))
BOOM = Fault("builtins:ValueError", "boom")
TIMEOUT = Fault("bitactor.errors:StepTimeout", "too slow")


class Delivery(NamedTuple):
    """One dispatch, as whoever runs it knows it."""

    step: int
    direction: str
    hop: str
    number: int
    epoch: int
    assesses: bool


@dataclass
class Facts:
    """What really is known about one step."""

    unknown: set[tuple[str, int]] = field(default_factory=set)
    """Runs of its function that were begun, and of which nobody has said what became of them."""
    done: bool = False
    ever_ran: bool = False
    undo_asked: int = 0
    undone: int = 0
    broken: int = 0


class World:
    """One transaction's environment."""

    def __init__(self, plan: Plan, *, ttl: int, deadline_s: float | None = None) -> None:
        self.plan = plan
        self.saga = Saga(plan, TRANSACTION)
        self.mirror = SagaState(plan, TRANSACTION)
        self.journal: list[Pulse] = []
        self.now_ns = 1_000_000_000_000
        self.ttl = ttl
        self.flights: dict[tuple[int, str], Delivery] = {}
        self.ended: list[Delivery] = []
        self.replies: list[tuple[int, Reply]] = []
        self.retries: dict[int, int] = {}
        self.decisions: list[int] = []
        self.grace = False
        self.deadline: int | None = None
        self.emissions: list[str] = []
        self.facts = [Facts() for _ in plan.steps]
        self.finished_in: list[int] = []
        self.undone_in: list[int] = []
        self.settles: list[str] = []
        self.late: Counter[tuple[str, int]] = Counter()
        deadline_ns = None if deadline_s is None else self.now_ns + int(deadline_s * 1e9)
        self.feed(Accept(None, tuple(None for _ in plan.inputs), ttl, deadline_ns, {"key": "k"}))

    # Feeding

    def feed(self, stimulus: Any) -> list[Pulse]:
        """One stimulus, its pulses into the journal, its commands obeyed, everything checked."""
        was_settled = self.saga.status != "running"
        before = list(self.saga.states)
        pulses, commands = self.saga.react(stimulus, self.now_ns)
        for pulse in pulses:
            self._check_pulse(pulse)
            copy = decode_pulse(encode_pulse(pulse))
            assert copy == pulse
            self.mirror.evolve(copy)
            self.journal.append(copy)
            self._note(pulse)
        assert self.mirror.snapshot() == self.saga.snapshot()
        settles = [command.status for command in commands if isinstance(command, Settle)]
        recovered_settled = isinstance(stimulus, Recovered) and was_settled
        assert len(settles) <= 1
        if settles:
            assert settles[0] == self.saga.status in SETTLED
            if not recovered_settled:
                assert not was_settled or any(pulse.kind in ("resumed", "failed") for pulse in pulses)
                self.settles.append(settles[0])
        else:
            assert was_settled or self.saga.status == "running", "settled without a word"
        if was_settled and not isinstance(stimulus, ResumeAsked | CancelAsked):
            assert {pulse.kind for pulse in pulses} <= AFTER_THE_END
        for command in commands:
            self._obey(command, before)
        self._let_go()
        self._check_state()
        return pulses

    def _obey(self, command: Any, before: Sequence[int]) -> None:
        saga = self.saga
        if isinstance(command, Dispatch):
            step, direction, fault = command
            if direction == UNDO:
                delivery = Delivery(step, UNDO, saga.undo_hop(step), saga.deliveries[step], saga.epoch, False)
                self._check_undo(step)
            else:
                delivery = Delivery(step, FORWARD, saga.hops[step], saga.deliveries[step], saga.epoch, fault is not None)
                self._check_causes(step)
                if fault is None:
                    self.facts[step].ever_ran = True
                    self.facts[step].unknown.add((delivery.hop, delivery.number))
            if (step, direction) in self.flights:
                self.ended.append(self.flights[step, direction])
            assert delivery not in self.flights.values(), "dispatched twice"
            self.flights[step, direction] = delivery
        elif isinstance(command, Decide):
            if command.step not in self.decisions:
                self.decisions.append(command.step)
        elif isinstance(command, ArmRetry):
            assert command.due_ns >= 0
            self.retries[command.step] = command.due_ns
        elif isinstance(command, ArmGrace):
            self.grace = True
        elif isinstance(command, ArmDeadline):
            self.deadline = command.due_ns
        elif isinstance(command, Deliver):
            if command.emission.id not in self.emissions:
                self.emissions.append(command.emission.id)
        elif isinstance(command, Settle):
            self.retries.clear()
            self.grace = False
            self.deadline = None
        else:
            assert isinstance(command, Abandon)

    # What may happen next

    def choices(self, *, calm: bool) -> list[Any]:
        """Everything that may happen next, as callables; if `calm`, only what an obliging world does."""
        found: list[Any] = []
        for delivery in list(self.flights.values()):
            outcomes = (
                ("ok",) if calm else ("ok", "ok", "ok", "retry", "fail", "halt", "continue", "cancelled", "timed_out", "nonsense")
            )
            found += [lambda d=delivery, o=outcome: self.reply(d, o) for outcome in outcomes]
            if not calm:
                found.append(lambda d=delivery: self.lose(d))
                found.append(lambda d=delivery: self.unroute(d))
                found.append(lambda d=delivery: self.expire(d))
                found.append(lambda d=delivery: self.answer_wrongly(d))
        found += [lambda s=step: self.decide(s, calm) for step in self.decisions]
        found += [lambda s=step: self.retry_due(s) for step in self.retries]
        if self.grace:
            found.append(self.grace_over)
        found += [lambda e=emit: self.emit_ends(e, calm) for emit in self.emissions]
        if calm:
            return found
        if self.deadline is not None:
            found.append(self.deadline_over)
        if self.saga.deadline_ns is not None:
            found.append(self.stale_deadline)
        found += [
            lambda d=delivery, o=outcome: self.reply(d, o) for delivery in self.ended[-6:] for outcome in ("ok", "fail", "retry")
        ]
        found += [lambda r=replayed: self.replay(*r) for replayed in self.replies[-4:]]
        found += [self.crash, self.cancel, self.nothing_due]
        if self.saga.status in ("halted", "stuck"):
            found += [self.resume] * 3
        return found

    def reply(self, delivery: Delivery, outcome: str) -> None:
        """A hop answers, in time or too late."""
        self.now_ns += 1_000
        emits = (("out", 1), ("out", encode_token([2]))) if outcome == "ok" and delivery.step % 3 == 0 else ()
        fault = BOOM if outcome in ("fail", "retry", "continue") and delivery.step % 2 else None
        token = encode_token({"step": delivery.step, "n": delivery.number}) if outcome in ("ok", "continue") else None
        made = Reply(TRANSACTION, delivery.hop, delivery.number, delivery.epoch, outcome, token, fault, None, emits, 5)
        self._reply(delivery, made)

    def _reply(self, delivery: Delivery, reply: Reply) -> None:
        current = self.flights.get((delivery.step, delivery.direction))
        in_time = current == delivery and delivery.epoch == self.saga.epoch
        if in_time:
            del self.flights[delivery.step, delivery.direction]
            self.ended.append(delivery)
        facts = self.facts[delivery.step]
        run = (delivery.hop, delivery.number)
        if delivery.direction == FORWARD and not delivery.assesses:
            states = (RUNNING,) if in_time else ()
            if in_time:
                assert self.saga.states[delivery.step] in states
            if reply.outcome in ("fail", "retry", "halt", "nonsense") and (in_time or reply.outcome != "nonsense"):
                self._learn_not_happened(delivery, in_time)
            elif reply.outcome in ("ok", "continue") and in_time:
                facts.unknown.discard(run)
        self.replies.append((delivery.step, reply))
        self.feed(Replied(delivery.step, reply))

    def _learn_not_happened(self, delivery: Delivery, in_time: bool) -> None:
        run = (delivery.hop, delivery.number)
        facts = self.facts[delivery.step]
        if in_time or (run in self.saga.outstanding and self.saga.states[delivery.step] not in (8, 9, 10)):
            facts.unknown.discard(run)

    def replay(self, step: int, reply: Reply) -> None:
        """The very same reply once more."""
        late_before = self.late[reply.hop, reply.delivery]
        current = self.flights.get((step, FORWARD)) or self.flights.get((step, UNDO))
        if current is not None and (current.hop, current.number, current.epoch) == (
            reply.hop,
            reply.delivery,
            reply.epoch,
        ):
            return
        if reply.outcome in ("fail", "retry", "halt"):
            self._learn_not_happened(Delivery(step, FORWARD, reply.hop, reply.delivery, reply.epoch, False), False)
        pulses = self.feed(Replied(step, reply))
        assert len([pulse for pulse in pulses if pulse.kind == "late"]) <= 1 - min(late_before, 1)

    def answer_wrongly(self, delivery: Delivery) -> None:
        """Replies that are not taken: of another delivery, another epoch, another hop."""
        for wrong in (
            delivery._replace(number=delivery.number + 7),
            delivery._replace(epoch=delivery.epoch + 1),
            delivery._replace(hop="f" * 16),
        ):
            reply = Reply(TRANSACTION, wrong.hop, wrong.number, wrong.epoch, "ok", 1)
            assert self.feed(Replied(delivery.step, reply)) == []

    def lose(self, delivery: Delivery) -> None:
        """Its worker is gone."""
        self.now_ns += 1_000
        self._gone(delivery)
        self.feed(Lost(delivery.step, delivery.number, "worker 7"))

    def expire(self, delivery: Delivery) -> None:
        """Its attempt took too long."""
        self._gone(delivery)
        self.feed(HopExpired(delivery.step, delivery.number, TIMEOUT))

    def unroute(self, delivery: Delivery) -> None:
        """Nobody could be found to run it, so it has not run."""
        self._gone(delivery)
        if delivery.direction == FORWARD and not delivery.assesses:
            self.facts[delivery.step].unknown.discard((delivery.hop, delivery.number))
        self.feed(Unrouted(delivery.step, delivery.number, Fault("bitactor.errors:Unroutable", "nobody")))

    def _gone(self, delivery: Delivery) -> None:
        self.flights.pop((delivery.step, delivery.direction), None)
        self.ended.append(delivery)

    def decide(self, step: int, calm: bool) -> None:
        """The supervisor has evaluated predicate and transforms."""
        self.decisions.remove(step)
        verdict = 0 if calm else (step + len(self.journal)) % 5
        if verdict == 1:
            self.feed(Decided(step, False))
        elif verdict == 2:
            self.feed(Decided(step, True, None, BOOM))
        else:
            self.feed(Decided(step, True, {"x": encode_token([step]), "y": step}))

    def retry_due(self, step: int) -> None:
        """A backoff is over."""
        self.now_ns = max(self.now_ns, self.retries.pop(step))
        self.feed(RetryDue(step))

    def grace_over(self) -> None:
        """Nobody waits any longer for what is in flight."""
        self.grace = False
        self.now_ns += self.plan.grace_ns
        self.feed(GraceOver())

    def deadline_over(self) -> None:
        """The armed deadline is over."""
        assert self.deadline is not None
        self.now_ns = max(self.now_ns, self.deadline)
        self.deadline = None
        self.feed(DeadlineOver(Fault("bitactor.errors:DeadlineExceeded", "late")))

    def stale_deadline(self) -> None:
        """The deadline of the whole was over in the same turn in which something failed."""
        if self.saga.phase in ("failing", "undoing"):
            before = self.saga.snapshot()
            if self.now_ns < self.saga.stopping_since_ns + self.plan.undo_timeout_ns:
                assert self.feed(DeadlineOver(BOOM)) == []
                assert self.saga.snapshot() == before

    def emit_ends(self, emit: str, calm: bool) -> None:
        """An emitted signal was accepted, or found nobody."""
        self.emissions.remove(emit)
        if calm or len(self.journal) % 2:
            self.feed(EmitTaken(emit, ("greet",)))
        else:
            self.feed(EmitDied(emit, "nobody"))
        assert self.feed(EmitTaken(emit, ("greet",))) == []

    def cancel(self) -> None:
        """Somebody cancels."""
        self.feed(CancelAsked(Fault("bitactor.errors:Cancelled", "please")))

    def resume(self) -> None:
        """Somebody resumes."""
        self.now_ns += 1_000_000
        self.feed(ResumeAsked(None if self.saga.deadline_ns is None else self.now_ns + 10**10))

    def crash(self) -> None:
        """The process dies; another folds the journal and goes on."""
        epoch = self.saga.epoch + 1
        self.saga = Saga.fold(self.plan, self.journal)
        assert self.saga.snapshot() == self.mirror.snapshot()
        self.ended.extend(self.flights.values())
        self.flights.clear()
        self.retries.clear()
        self.decisions.clear()
        self.emissions.clear()
        self.grace, self.deadline = False, None
        self.now_ns += 1_000_000
        self.feed(Recovered("n2", epoch))

    def nothing_due(self) -> None:
        """Stimuli that mean nothing now."""
        for index in range(len(self.plan.steps)):
            if index not in self.retries:
                assert self.feed(RetryDue(index)) == []
        assert self.feed(EmitTaken("nobody:0", ())) == []

    # What must hold

    def _check_pulse(self, pulse: Pulse) -> None:
        assert pulse.seq == len(self.journal), "gap"
        if pulse.kind == "spawned" and pulse.direction == FORWARD and pulse.data is not None and "delivery" in pulse.data:
            earlier = [p for p in self.journal if p.kind == "spawned" and p.hop == pulse.hop]
            assert earlier and earlier[0].ttl == pulse.ttl, "redelivery spent TTL"

    def _note(self, pulse: Pulse) -> None:
        if not pulse.step:
            return
        index = self.plan.by_name[pulse.step]
        facts = self.facts[index]
        if pulse.direction == UNDO:
            if pulse.kind == "undone":
                facts.undone += 1
                self.undone_in.append(index)
            elif pulse.kind == "undo_failed":
                facts.broken += 1
        elif pulse.kind in ("completed", "compensated"):
            facts.done = True
            facts.unknown.clear()
            self.finished_in.append(index)
        elif pulse.kind == "late":
            delivery = (pulse.data or {})["delivery"]
            self.late[pulse.hop, delivery] += 1
            assert self.late[pulse.hop, delivery] == 1, "a late reply was recorded twice"
            if (pulse.data or {})["happened"] is True:
                assert (pulse.data or {})["outcome"] in ("ok", "continue")
                facts.done = True
                facts.unknown.clear()

    def _check_causes(self, index: int) -> None:
        step, saga = self.plan.steps[index], self.saga
        assert all(self._settled(other) for other in step.dependencies), "dispatched before its causes"
        least = min((saga.ttls[other] for other in step.dependencies), default=self.ttl)
        assert least > 0
        assert saga.ttls[index] == least - 1

    def _settled(self, index: int) -> bool:
        kinds = {p.kind for p in self.journal if p.step == self.plan.steps[index].name}
        return bool(kinds & {"completed", "compensated", "skipped"})

    def _check_undo(self, index: int) -> None:
        facts, step = self.facts[index], self.plan.steps[index]
        assert step.undo is not None
        assert facts.ever_ran or facts.done, "undo of what was never run"
        assert facts.undone == 0, "undone twice"
        assert facts.done or facts.unknown, "undo of what is known not to have happened"
        assert facts.done or step.undo.in_doubt, "an undo that takes no doubt was given some"
        assert (index in self.saga.doubts) == (not facts.done)
        order = self.saga.order
        for later in order[order.index(index) + 1 :]:
            state = self.facts[later]
            assert self.plan.steps[later].undo is None or state.broken or state.undone, "undo out of order"
        facts.undo_asked += 1

    def _check_state(self) -> None:
        saga = self.saga
        assert saga.in_flight == sum(state in (RUNNING, ASSESSING) for state in saga.states)
        assert saga.open == (bool(saga.emissions) or saga.phase not in ("halted", "ended"))
        assert saga.seq == len(self.journal)
        running = {index for index, state in enumerate(saga.states) if state in (RUNNING, ASSESSING)}
        assert running == {delivery.step for delivery in self.flights.values() if delivery.direction == FORWARD} & running
        if saga.phase in ("failing", "undoing", "new", "ended", "halted"):
            return
        for index, state in enumerate(saga.states):
            if state == 2 and saga.phase == "running":
                assert index in self.retries, "backs off without a timer"

    def run(self, tape: Sequence[int], limit: int = 400) -> None:
        """Let `tape` choose what happens, then let an obliging world bring it to its end."""
        for number in tape:
            choices = (self.choices(calm=True) if number % 2 else []) or self.choices(calm=False)
            choices[number // 2 % len(choices)]()
        for _ in range(limit):
            if self.saga.status != "running" and not self.emissions:
                break
            choices = self.choices(calm=True)
            assert choices, f"deadlock in phase {self.saga.phase}, states {self.saga.states}"
            choices[0]()
        self.check_end()

    def _let_go(self) -> None:
        """What the saga does not wait for any more goes on as a zombie, whose answer may still come."""
        for key, delivery in list(self.flights.items()):
            if (delivery.direction == FORWARD and self.saga.states[delivery.step] not in (RUNNING, ASSESSING)) or (
                delivery.direction == UNDO and self.saga.states[delivery.step] != 8
            ):
                self._gone(self.flights[key])

    def check_end(self) -> None:
        """What must be true once it has settled."""
        saga = self.saga
        assert saga.status in SETTLED
        names = [step.name for step in self.plan.steps]
        assert not saga.in_flight
        if saga.status == "completed":
            assert all(self._settled(index) for index in range(len(names)))
            assert not any(facts.undo_asked for facts in self.facts)
        elif saga.status in ("compensated", "cancelled"):
            for step, facts in zip(self.plan.steps, self.facts, strict=True):
                needed = step.undo is not None and (facts.done or bool(facts.unknown))
                assert facts.undone == (1 if needed else 0), (step.name, facts)
        elif saga.status == "stuck":
            for step, facts in zip(self.plan.steps, self.facts, strict=True):
                if step.undo is not None and (facts.done or facts.unknown):
                    assert facts.undone + bool(facts.broken) >= 1, (step.name, facts)
                else:
                    assert not facts.undone
        folded = Saga.fold(self.plan, self.journal)
        assert folded.snapshot() == saga.snapshot()
        assert [pulse.seq for pulse in self.journal] == list(range(len(self.journal)))
