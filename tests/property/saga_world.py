"""A world around one saga: it obeys commands as a supervisor would, lets anything happen that can, and checks what must
hold.

What happened is kept here a second time, from commands and stimuli alone, so that the saga is not its own witness.
Everything is known by its path (`orders/17/charge`): the saga uses the places of settled scopes again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from saga_model import Model

from bitactor.kinds.map_container import MapContainer
from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import RUNNING, UNDONE, Pulse
from bitactor.messages.signal import FORWARD, UNDO, Fault, Reply, Signal
from bitactor.messages.wire import decode_pulse, encode_pulse
from bitactor.plan.arguments import RawArguments
from bitactor.plan.plan import Plan, PlanStep
from bitactor.saga import (
    STEP_RULES,
    TRANSACTION_RULES,
    Accept,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelHop,
    CancelRequested,
    DeadlineExpired,
    Deliver,
    Dispatch,
    EmissionAccepted,
    EmissionUnrouted,
    Evaluate,
    Evaluated,
    GraceExpired,
    HopExpired,
    Lost,
    Recovered,
    Replied,
    ResumeRequested,
    RetryDue,
    Saga,
    SagaState,
    Settle,
    Unrouted,
    evolve,
)
from bitactor.saga.commands import AnswerProceed
from bitactor.saga.evaluate import evaluate
from bitactor.saga.events import Proceeded, SendAgainRequested, UndoRequested
from bitactor.saga.forward import returns_early
from bitactor.saga.phases import COMPENSATING, OPEN, UNDO_BACKING_OFF, UNDO_RUNNING
from bitactor.testing.hops import Hop

TRANSACTION = "0190" * 4 + "5eed5eed5eed5eed"
SETTLED = ("completed", "compensated", "cancelled", "halted", "stuck")
AFTER_THE_END = frozenset(("late", "emitted", "tombstone", "resumed"))
BOOM = Fault("builtins:ValueError", "boom")
MOODS = ("wild", "calm", "rough", "calm", "rough", "calm", "rough", "calm")
OUTCOMES: Mapping[str, Sequence[str]] = {
    "calm": ("ok",),
    "rough": ("ok", "ok", "ok", "ok", "ok", "continue", "retry", "halt"),
    "wild": ("ok", "ok", "ok", "retry", "fail", "halt", "continue", "cancelled", "timed_out", "nonsense"),
}
ENDS = frozenset(("completed", "compensated", "failed", "retried", "halted", "undone", "undo_failed"))
UNKNOWN_ENDS = frozenset(("timed_out", "tombstone"))
"""Ends after which nobody knows what happened, and another may follow that says what came of that."""
TIMEOUT = Fault("bitactor.errors:StepTimeout", "too slow")


class Delivery(NamedTuple):
    """One dispatch, as whoever runs it knows it."""

    step: int
    path: str
    direction: str
    hop: str
    number: int
    epoch: int
    asks_compensation: bool


@dataclass
class Facts:
    """What really is known about one step."""

    unknown: set[tuple[str, int]] = field(default_factory=set)
    """Runs of its function that were begun, and of which nobody has said what became of them."""
    done: bool = False
    ever_ran: bool = False
    undoable: bool = False
    undo_asked: int = 0
    undone: int = 0
    broken: int = 0


class World:
    """One transaction's environment.

    Args:
        planner: `Then`: a step's path and a number → what its reply asks for, and whether that is nonsense.
        max_places: how many places the saga may need at most; None: not checked.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        ttl: int,
        deadline_s: float | None = None,
        planner: Callable[[str, int], tuple[bytes, bool] | None] | None = None,
        max_places: int | None = None,
    ) -> None:
        self.plan = plan
        self.saga = Saga(plan, TRANSACTION)
        self.mirror = SagaState(plan, TRANSACTION)
        self.model = Model(ttl)
        self.journal: list[Pulse] = []
        self.now_ns = 1_000_000_000_000
        self.flights: dict[tuple[str, str], Delivery] = {}
        self.ended: list[Delivery] = []
        self.replies: list[tuple[int, str, Reply]] = []
        self.retries: dict[int, int] = {}
        self.decisions: list[Evaluated] = []
        self.proceeded: set[Delivery] = set()
        self.answered: set[str] = set()
        self.abandoned: set[str] = set()
        self.grace = False
        self.deadline: int | None = None
        self.emissions: list[str] = []
        self.facts: defaultdict[str, Facts] = defaultdict(Facts)
        self.settles: list[str] = []
        self.late: Counter[tuple[str, int]] = Counter()
        self.ends: dict[tuple[str, str], str] = {}
        """(path, hop) of what was spawned → the kind of the pulse that ended it; empty while it runs."""
        self.planner = planner
        self.max_places = max_places
        deadline_ns = None if deadline_s is None else self.now_ns + int(deadline_s * 1e9)
        self.feed(Accept(None, tuple(None for _ in plan.inputs), ttl, deadline_ns, {"key": "k"}))

    # Feeding

    def feed(self, stimulus: Any) -> list[Pulse]:
        """One stimulus, its pulses into the journal, its commands obeyed, everything checked."""
        was_settled, was = self.saga.state.status != "running", self.saga.state.status
        pulses, commands = self.saga.react(stimulus, self.now_ns)
        for pulse in pulses:
            self._check_pulse(pulse)
            copy = decode_pulse(encode_pulse(pulse))
            assert copy == pulse
            step = self._step_of(pulse)
            before = self.mirror.phase
            evolve(self.mirror, copy)
            self._check_phase(copy, before)
            self.journal.append(copy)
            self._note(pulse, step)
        assert self.mirror.snapshot() == self.saga.snapshot()
        settles = [command.status for command in commands if isinstance(command, Settle)]
        recovered_settled = isinstance(stimulus, Recovered) and was_settled
        assert len(settles) <= 1
        if settles:
            assert settles[0] == self.saga.state.status in SETTLED
            if not recovered_settled:
                assert not was_settled or any(pulse.kind in ("resumed", "failed") for pulse in pulses)
                self.settles.append(settles[0])
        else:
            assert was_settled or self.saga.state.status == "running", "settled without a word"
        if was_settled and not isinstance(stimulus, ResumeRequested | CancelRequested | UndoRequested):
            assert {pulse.kind for pulse in pulses} <= AFTER_THE_END
        if isinstance(stimulus, UndoRequested) and was != "completed":
            assert not pulses and not commands
        asked = [command.step for command in commands if isinstance(command, Evaluate)]
        assert len(asked) == len(set(asked)), "asked twice for one decision"
        for command in commands:
            self._obey(command)
        self._let_go()
        self._check_state()
        return pulses

    def _check_phase(self, pulse: Pulse, before: str) -> None:
        """The phase changes only as the tables say."""
        now = self.mirror.phase
        rows = [row for row in STEP_RULES if row.direction == pulse.direction] if pulse.step else TRANSACTION_RULES
        assert now == before or any(row.leads_to.get(before) == now for row in rows if row.kind == pulse.kind)

    def _obey(self, command: Any) -> None:
        saga = self.saga
        if isinstance(command, Dispatch):
            self._dispatch(command)
        elif isinstance(command, Evaluate):
            self.decisions.append(self._decided(command.step))
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
        elif isinstance(command, AnswerProceed):
            path = saga.state.steps[command.step].name
            assert self.flights[path, FORWARD] in self.proceeded, "answered what had not asked"
            self.answered.add(path)
        elif isinstance(command, Settle):
            self.retries.clear()
            self.grace = False
            self.deadline = None
        else:
            assert isinstance(command, CancelHop)
            step = saga.state.steps[command.step]
            if step.around_container is not None:
                self.abandoned.add(step.name)

    def _dispatch(self, command: Dispatch) -> None:
        saga, (index, direction, fault) = self.saga, command
        step = saga.state.steps[index]
        facts = self.facts[step.name]
        facts.undoable = step.undo is not None
        if direction == UNDO:
            delivery = Delivery(
                index,
                step.name,
                UNDO,
                saga.state.undo_hop(index),
                saga.state.deliveries[index],
                saga.state.epoch,
                False,
            )
            self._check_undo(index)
        else:
            delivery = Delivery(
                index,
                step.name,
                FORWARD,
                saga.state.hops[index],
                saga.state.deliveries[index],
                saga.state.epoch,
                fault is not None,
            )
            if not (
                step.scope is not None and saga.state.failed_scope(index) is not None
            ):  # else it is abandoned in the same breath
                self.model.check_causes(saga.state, index)
            self.answered.discard(step.name)
            self.abandoned.discard(step.name)
            if fault is None:
                facts.ever_ran = True
                facts.unknown.add((delivery.hop, delivery.number))
        key = (step.name, direction)
        if key in self.flights:
            self.ended.append(self.flights[key])
        assert delivery not in self.flights.values(), "dispatched twice"
        assert all(step.name != path for path, _ in self.flights if (path, direction) != key), "two hops of one path"
        self.flights[key] = delivery

    def _decided(self, index: int) -> Evaluated:
        """As the supervisor decides: at once, and heard when its turn comes."""
        try:
            return evaluate(self.saga.state, index)
        except Exception as error:
            return Evaluated(index, True, None, Fault("builtins:ValueError", str(error)))

    # What may happen next

    def choices(self, mood: str) -> list[Any]:
        """What may happen next, as callables: if `calm`, only what an obliging world does; if `rough`, nothing that
        ends it all; else anything."""
        found: list[Any] = []
        calm = mood == "calm"
        for delivery in list(self.flights.values()):
            found += self._choices_of(delivery, mood)
        found += [lambda n=number: self.evaluate(n) for number in range(len(self.decisions))]
        found += [lambda s=step: self.retry_due(s) for step in self.retries]
        if self.grace:
            found.append(self.grace_over)
        found += [lambda e=emit: self.emit_ends(e, calm) for emit in self.emissions]
        if calm:
            return found
        if self.saga.state.deadline_ns is not None:
            found.append(self.stale_deadline)
        found += [
            lambda d=delivery, o=outcome: self.reply(d, o)
            for delivery in self.ended[-6:]
            for outcome in ("ok", "fail", "retry")
        ]
        found += [lambda r=replayed: self.replay(*r) for replayed in self.replies[-4:]]
        found += [lambda e=emit: self.send_again(e) for emit in self.saga.state.undelivered]
        found += [self.crash, self.stop, self.nothing_due]
        if self.saga.state.status in ("halted", "stuck"):
            found += [self.resume] * 3
        if mood == "rough":
            return found
        found.append(self.cancel)
        if self.deadline is not None:
            found.append(self.deadline_over)
        if self.saga.state.status == "completed":
            found += [self.undo] * 3
        return found

    def _choices_of(self, delivery: Delivery, mood: str) -> Iterator[Any]:
        outcomes, calm = OUTCOMES[mood], mood == "calm"
        if self._waits_inside(delivery):
            if delivery.path in self.abandoned:
                outcomes = ("cancelled",)
            else:
                if delivery not in self.proceeded:
                    yield lambda: self.proceed(delivery)
                if calm and delivery.path not in self.answered:
                    outcomes = ()
        for outcome in outcomes:
            yield lambda o=outcome: self.reply(delivery, o, calm=calm)
        if not calm:
            yield lambda: self.lose(delivery)
            yield lambda: self.answer_wrongly(delivery)
        if mood == "wild":
            yield lambda: self.unroute(delivery)
            yield lambda: self.expire(delivery)

    def _waits_inside(self, delivery: Delivery) -> bool:
        step = self.saga.state.steps[delivery.step]
        return delivery.direction == FORWARD and not delivery.asks_compensation and step.around_container is not None

    def proceed(self, delivery: Delivery) -> None:
        """A function around nested steps asks for them."""
        self.proceeded.add(delivery)
        self.feed(Proceeded(delivery.step, delivery.number))

    def reply(self, delivery: Delivery, outcome: str, *, calm: bool = False) -> None:
        """A hop answers, in time or too late."""
        self.now_ns += 1_000
        emits = (("out", 1), ("out", encode_token([2]))) if outcome == "ok" and delivery.step % 3 == 0 else ()
        fault = BOOM if outcome in ("fail", "retry", "continue") and delivery.step % 2 else None
        token = self._token(delivery) if outcome in ("ok", "continue") else None
        made = Reply(TRANSACTION, delivery.hop, delivery.number, delivery.epoch, outcome, token, fault, None, emits, 5)
        nonsense = outcome == "nonsense"
        if outcome == "ok" and delivery.direction == FORWARD and self.planner is not None and not calm:
            asked = self.planner(delivery.path, len(self.journal))
            if asked is not None:
                planned, nonsense = asked
                made = made._replace(planned=planned)
        self._reply(delivery, made, nonsense)

    def _token(self, delivery: Delivery) -> Any:
        step = self.saga.state.steps[delivery.step]
        if self.saga.state.hops[delivery.step] != delivery.hop or step.kind != "batch":
            return encode_token(crc32(delivery.path.encode()) % 7)
        values = RawArguments(
            step.arguments, self.saga.state.tokens, step.address, self.saga.state.evaluated.get(step.index)
        )()
        hop = Hop(self.plan, step, self._signal(delivery, step.address), values, None, lambda: 0)
        reply = hop.run()
        assert reply.outcome == "ok", reply
        return reply.token

    def _signal(self, delivery: Delivery, address: str) -> Signal:
        return Signal(
            name=address,
            transaction=TRANSACTION,
            root=TRANSACTION,
            hop=delivery.hop,
            causes=(),
            direction=FORWARD,
            attempt=1,
            delivery=delivery.number,
            epoch=delivery.epoch,
            ttl=1,
            budget_ns=None,
            token=None,
            path=delivery.path,
        )

    def _reply(self, delivery: Delivery, reply: Reply, nonsense: bool) -> None:
        current = self.flights.get((delivery.path, delivery.direction))
        in_time = current == delivery and delivery.epoch == self.saga.state.epoch
        refused = nonsense and (reply.outcome != "ok" or self.saga.state.goes_forward(delivery.step))
        if in_time and self._waits_inside(delivery):
            refused = refused or returns_early(self.saga.state, delivery.step, reply)
        if in_time:
            del self.flights[delivery.path, delivery.direction]
            self.ended.append(delivery)
        facts = self.facts[delivery.path]
        run = (delivery.hop, delivery.number)
        if delivery.direction == FORWARD and not delivery.asks_compensation:
            if in_time:
                assert self.saga.state.states[delivery.step] == RUNNING
            if (reply.outcome in ("fail", "retry", "halt") or refused) and (in_time or not refused):
                self._learn_not_happened(delivery, in_time)
            elif reply.outcome in ("ok", "continue") and in_time:
                facts.unknown.discard(run)
        self.replies.append((delivery.step, delivery.path, reply))
        pulses = self.feed(Replied(delivery.step, reply))
        if refused and reply.outcome in ("ok", "continue") and in_time:
            assert any(pulse.kind == "failed" and pulse.step == delivery.path for pulse in pulses), "took nonsense"

    def _learn_not_happened(self, delivery: Delivery, in_time: bool) -> None:
        run = (delivery.hop, delivery.number)
        facts = self.facts[delivery.path]
        if in_time or (
            run in self.saga.state.unanswered_runs
            and self.saga.state.states[delivery.step] not in (UNDO_RUNNING, UNDO_BACKING_OFF, UNDONE)
        ):
            facts.unknown.discard(run)
            if not facts.unknown and not facts.done:
                self.model.forget(delivery.path)

    def replay(self, step: int, path: str, reply: Reply) -> None:
        """The very same reply once more."""
        late_before = self.late[reply.hop, reply.delivery]
        current = self.flights.get((path, FORWARD)) or self.flights.get((path, UNDO))
        if current is not None and (current.hop, current.number, current.epoch) == (
            reply.hop,
            reply.delivery,
            reply.epoch,
        ):
            return
        if reply.outcome in ("fail", "retry", "halt"):
            self._learn_not_happened(
                Delivery(step, path, FORWARD, reply.hop, reply.delivery, reply.epoch, False), False
            )
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
        if delivery.direction != FORWARD:
            other = (delivery.step, delivery.number)
            for end in (Lost(*other, "", hop="f" * 16), HopExpired(*other, TIMEOUT, hop="f" * 16)):
                assert self.feed(end) == []

    def lose(self, delivery: Delivery) -> None:
        """Its worker is gone."""
        self.now_ns += 1_000
        self._gone(delivery)
        self.feed(Lost(delivery.step, delivery.number, "worker 7", hop=delivery.hop))

    def expire(self, delivery: Delivery) -> None:
        """Its attempt took too long."""
        self._gone(delivery)
        self.feed(HopExpired(delivery.step, delivery.number, TIMEOUT, hop=delivery.hop))

    def unroute(self, delivery: Delivery) -> None:
        """Nobody could be found to run it, so it has not run."""
        self._gone(delivery)
        if delivery.direction == FORWARD and not delivery.asks_compensation:
            self._learn_not_happened(delivery, True)
        fault = Fault("bitactor.errors:Unroutable", "nobody")
        self.feed(Unrouted(delivery.step, delivery.number, fault, delivery.hop))

    def _gone(self, delivery: Delivery) -> None:
        self.flights.pop((delivery.path, delivery.direction), None)
        self.ended.append(delivery)

    def evaluate(self, number: int) -> None:
        """The supervisor is heard; and then once more."""
        evaluated = self.decisions.pop(number)
        self.feed(evaluated)
        if evaluated.step not in self.saga.state.being_evaluated:
            assert self.feed(evaluated) == []

    def retry_due(self, step: int) -> None:
        """A backoff is over."""
        self.now_ns = max(self.now_ns, self.retries.pop(step))
        self.feed(RetryDue(step))

    def grace_over(self) -> None:
        """Nobody waits any longer for what is in flight."""
        self.grace = False
        self.now_ns += self.plan.grace_ns
        self.feed(GraceExpired())

    def deadline_over(self) -> None:
        """The armed deadline is over."""
        assert self.deadline is not None
        self.now_ns = max(self.now_ns, self.deadline)
        self.deadline = None
        self.feed(DeadlineExpired(Fault("bitactor.errors:DeadlineExceeded", "late")))

    def stale_deadline(self) -> None:
        """The deadline of the whole was over in the same turn in which something failed."""
        if self.saga.state.phase in ("failing", "undoing"):
            before = self.saga.snapshot()
            if self.now_ns < self.saga.state.stopping_since_ns + self.plan.undo_timeout_ns:
                assert self.feed(DeadlineExpired(BOOM)) == []
                assert self.saga.snapshot() == before

    def emit_ends(self, emit: str, calm: bool) -> None:
        """An emitted signal was accepted, or found nobody."""
        self.emissions.remove(emit)
        if calm or len(self.journal) % 2:
            self.feed(EmissionAccepted(emit, ("greet",)))
        else:
            self.feed(EmissionUnrouted(emit, "nobody"))
        assert self.feed(EmissionAccepted(emit, ("greet",))) == []

    def send_again(self, emit: str) -> None:
        """Somebody wants an emitted signal that nobody took sent again; and asks once more."""
        before = (self.saga.state.status, self.saga.state.phase)
        assert [pulse.kind for pulse in self.feed(SendAgainRequested(emit))] == ["emitted"]
        assert self.feed(SendAgainRequested(emit)) == [] and emit in self.emissions
        assert (self.saga.state.status, self.saga.state.phase) == before

    def cancel(self) -> None:
        """Somebody cancels."""
        self.feed(CancelRequested(Fault("bitactor.errors:Cancelled", "please")))

    def undo(self) -> None:
        """Somebody wants a completed transaction taken back; and asks once more."""
        self.feed(UndoRequested(Fault("bitactor.errors:Cancelled", "not wanted after all")))
        assert self.saga.state.status != "completed"
        self.feed(UndoRequested(Fault("bitactor.errors:Cancelled", "once more")))

    def resume(self) -> None:
        """Somebody resumes."""
        self.now_ns += 1_000_000
        while self.decisions:
            assert self.feed(self.decisions.pop()) == [], "a decision was heard although nothing goes forward"
        self.feed(ResumeRequested(None if self.saga.state.deadline_ns is None else self.now_ns + 10**10))

    def crash(self) -> None:
        """The process dies; another folds the journal and goes on."""
        self._take_over(given_back=False)

    def stop(self) -> None:
        """The process ends in order; another folds the journal and goes on."""
        self._take_over(given_back=True)

    def _take_over(self, *, given_back: bool) -> None:
        epoch = self.saga.state.epoch + 1
        self.saga = Saga.fold(self.plan, self.journal)
        assert self.saga.snapshot() == self.mirror.snapshot()
        for step in self.plan.containers:
            assert step.container is not None
            step.container.release(TRANSACTION)
        self.ended.extend(self.flights.values())
        for kept in (self.flights, self.retries, self.decisions, self.emissions, self.answered, self.abandoned):
            kept.clear()
        self.grace, self.deadline = False, None
        self.now_ns += 1_000_000
        self.feed(Recovered("n2", epoch, given_back))

    def nothing_due(self) -> None:
        """Stimuli that mean nothing now."""
        for index in range(len(self.saga.state.steps)):
            if index not in self.retries:
                assert self.feed(RetryDue(index)) == []
            if index not in self.saga.state.being_evaluated:
                assert self.feed(Evaluated(index, True, {})) == []
                assert self.feed(Evaluated(index, False)) == []
        assert self.feed(EmissionAccepted("nobody:0", ())) == []

    # What must hold

    def _check_pulse(self, pulse: Pulse) -> None:
        assert pulse.seq == len(self.journal), "gap"
        if (
            pulse.kind == "spawned"
            and pulse.direction == FORWARD
            and pulse.data is not None
            and "delivery" in pulse.data
        ):
            earlier = [p for p in self.journal if p.kind == "spawned" and p.hop == pulse.hop]
            assert earlier and earlier[0].ttl == pulse.ttl, "redelivery spent TTL"

    def _step_of(self, pulse: Pulse) -> PlanStep | None:
        return self.mirror.steps[self.mirror.by_name[pulse.step]] if pulse.step else None

    def _note(self, pulse: Pulse, step: PlanStep | None) -> None:
        if step is None:
            return
        self._note_end(pulse)
        facts = self.facts[pulse.step]
        if pulse.direction == UNDO:
            if pulse.kind == "undone":
                facts.undone += 1
            elif pulse.kind == "undo_failed":
                facts.broken += 1
        elif pulse.kind in ("completed", "compensated") and facts.ever_ran:
            facts.done = True
            facts.unknown.clear()
        elif pulse.kind == "late":
            delivery = (pulse.data or {})["delivery"]
            self.late[pulse.hop, delivery] += 1
            assert self.late[pulse.hop, delivery] == 1, "a late reply was recorded twice"
            if (pulse.data or {})["happened"] is True:
                assert (pulse.data or {})["outcome"] in ("ok", "continue")
                facts.done = True
                facts.unknown.clear()
        self.model.note(pulse, step, in_doubt=bool(facts.unknown))
        answered = pulse.data is not None and "answered" in pulse.data
        if pulse.kind == "completed" and isinstance(step.container, MapContainer) and not answered:
            self.model.check_map(pulse, step.container.declared)

    def _note_end(self, pulse: Pulse) -> None:
        """What was spawned has one end, which another delivery of it puts off if it is only that nobody knows."""
        at = (pulse.step, pulse.hop)
        if pulse.kind == "spawned":
            assert self.ends.get(at, "") not in ENDS, "spawned after its end"
            self.ends[at] = ""
        elif at in self.ends and pulse.kind in (*ENDS, *UNKNOWN_ENDS):
            assert self.ends[at] not in ENDS, f"a second end: {self.ends[at]}, then {pulse.kind}"
            self.ends[at] = pulse.kind

    def _check_undo(self, index: int) -> None:
        step = self.saga.state.steps[index]
        facts = self.facts[step.name]
        assert step.undo is not None
        assert facts.ever_ran or facts.done, "undo of what was never run"
        assert facts.undone == 0, "undone twice"
        assert facts.done or facts.unknown, "undo of what is known not to have happened"
        assert facts.done or step.undo.in_doubt, "an undo that takes no doubt was given some"
        assert (index in self.saga.state.steps_in_doubt) == (not facts.done)
        for later in self.model.after(step.name):
            other = self.facts[later]
            assert not other.undoable or other.broken or other.undone, f"undo of {step.name} before that of {later}"
        facts.undo_asked += 1

    def _check_state(self) -> None:
        saga = self.saga
        assert saga.state.in_flight == sum(state in (RUNNING, COMPENSATING) for state in saga.state.states)
        assert saga.state.open == (bool(saga.state.emissions) or saga.state.phase not in ("halted", "ended"))
        assert saga.state.seq == len(self.journal)
        running = {
            saga.state.steps[index].name
            for index, state in enumerate(saga.state.states)
            if state in (RUNNING, COMPENSATING)
        }
        flying = {delivery.path for delivery in self.flights.values() if delivery.direction == FORWARD}
        awaiting_redelivery = {saga.state.steps[index].name for index in saga.state.awaiting_redelivery}
        assert running - awaiting_redelivery <= flying
        if self.max_places is not None:
            assert len(saga.state.steps) <= self.max_places, "places are not used again"
        if saga.state.phase in ("failing", "undoing", "new", "ended", "halted"):
            return
        for index, state in enumerate(saga.state.states):
            if state == 2 and saga.state.phase == "running":
                assert index in self.retries, "backs off without a timer"
            if state == OPEN:
                assert index in saga.state.progress

    def run(self, tape: Sequence[int], limit: int = 3_000) -> None:
        """Let `tape` choose what happens, then let an obliging world bring it to its end."""
        for number in tape:
            choices = self.choices(MOODS[number % len(MOODS)]) or self.choices("rough")
            choices[number // len(MOODS) % len(choices)]()
        self.settle(limit)

    def advance(self, tape: Sequence[int]) -> None:
        """Let `tape` choose what happens in an obliging world, as long as something does."""
        for number in tape:
            if choices := self.choices("calm"):
                choices[number % len(choices)]()

    def open_containers(self) -> list[str]:
        """The paths of containers that were spawned and have no end yet, but for those that a function's reply ends."""
        steps = [step for step in self.saga.state.steps if step is not None]  # a free place has none
        named = {step.name for step in steps if step.container is not None and step.around_container is None}
        return [path for (path, _), end in self.ends.items() if not end and path in named]

    def settle(self, limit: int = 3_000) -> None:
        """Let an obliging world bring the transaction to its end."""
        for _ in range(limit):
            if self.saga.state.status != "running" and not self.emissions:
                break
            choices = self.choices("calm")
            assert choices, f"deadlock in phase {self.saga.state.phase}, states {self.saga.state.states}"
            choices[0]()
        self.check_end()

    def _let_go(self) -> None:
        """What the saga does not wait for any more goes on as a zombie, whose answer may still come."""
        for delivery in list(self.flights.values()):
            step, state = self.saga.state.steps[delivery.step], self.saga.state.states[delivery.step]
            wanted = (RUNNING, COMPENSATING) if delivery.direction == FORWARD else (UNDO_RUNNING,)
            if step.name != delivery.path or state not in wanted:
                self._gone(delivery)

    def check_end(self) -> None:
        """What must be true once it has settled."""
        saga = self.saga
        assert saga.state.status in SETTLED, f"still {saga.state.status}"
        assert not saga.state.in_flight
        if saga.state.status != "halted":
            assert all(self.ends.values()), f"spawned, and no end: {[at for at, end in self.ends.items() if not end]}"
        if saga.state.status == "completed":
            self.model.check_completed(self.plan)
            assert not any(facts.undo_asked for facts in self.facts.values())
            assert not saga.state.progress, "an open container"
        elif saga.state.status in ("compensated", "cancelled"):
            for path, facts in self.facts.items():
                needed = facts.undoable and (facts.done or bool(facts.unknown))
                assert facts.undone == (1 if needed else 0), (path, facts)
        elif saga.state.status == "stuck":
            for path, facts in self.facts.items():
                if facts.undoable and (facts.done or facts.unknown):
                    assert facts.undone + bool(facts.broken) >= 1, (path, facts)
                else:
                    assert not facts.undone
        folded = Saga.fold(self.plan, self.journal)
        assert folded.snapshot() == saga.snapshot()
        assert [pulse.seq for pulse in self.journal] == list(range(len(self.journal)))
