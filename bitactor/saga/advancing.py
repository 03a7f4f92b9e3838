"""The way forward: what a settled hop makes ready, and what can go wrong with one in flight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from bitactor.codec import Packed, decode_token, token_bytes
from bitactor.errors import DefinitionError, ProtocolError, StepTimeout, WorkerLost
from bitactor.ids import join_hop_id
from bitactor.kinds.port import Answered, Broken, Close, Consult
from bitactor.policy import DEFAULT_BACKOFF, Backoff
from bitactor.pulse import (
    ACCEPTED,
    COMPENSATED,
    COMPLETED,
    DEADLINE_EXCEEDED,
    FAILED,
    HALTED,
    LATE,
    POISON,
    REJECTED,
    RETRIED,
    SKIPPED,
    SPAWNED,
    TIMED_OUT,
    TOMBSTONE,
    TTL_EXPIRED,
    UNROUTABLE,
    Pulse,
)  # fmt: skip
from bitactor.saga.commands import (
    Abandon,
    Answer,
    ArmDeadline,
    ArmRetry,
    Decide,
    Dispatch,
)  # fmt: skip
from bitactor.saga.growing import opening_data
from bitactor.saga.phases import (
    ACTIVE,
    BACKING_OFF,
    FAILING,
    HALTING,
    IN_FLIGHT,
    OPENED,
    RUNNING,
    UNDOING,
    WAITING,
)  # fmt: skip
from bitactor.saga.resolving import resolve
from bitactor.saga.stimuli import (
    Accept,
    CancelAsked,
    DeadlineOver,
    Decided,
    HopExpired,
    Lost,
    Proceeded,
    Replied,
    RetryDue,
    Unrouted,
)  # fmt: skip
from bitactor.saga.telling import emits_data, own_fraction
from bitactor.saga.undoing import Undoing
from bitactor.signal import FORWARD, Fault, Reply

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the two pulses and one command of an ordinary hop."""


class Advancing(Undoing):
    """Going forward, and failing."""

    __slots__ = ()

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
        if index not in self.asked:
            return
        self.asked.discard(index)
        if self.states[index] == OPENED:
            self._consulted(stimulus, now_ns)
            return
        if self.states[index] != WAITING or self.missing[index] or index in self.decided:
            return
        if stimulus.fault is not None:
            self._fail(index, stimulus.fault, now_ns)
        elif not stimulus.run:
            self._tell_step(index, SKIPPED, now_ns)
            self._advance(index, now_ns)
        elif stimulus.answer is not None:
            self._tell_step(index, COMPLETED, now_ns, token_out=stimulus.answer[0], data={"answered": True})
            self._advance(index, now_ns)
        else:
            arguments = {name: bytes(token_bytes(token)) for name, token in (stimulus.arguments or {}).items()}
            if stimulus.opening is not None:
                data = {"decided": arguments, "opening": opening_data(stimulus.opening)}
                self._tell_step(index, SPAWNED, now_ns, data=data)
                self._attend(now_ns)
            else:
                self._spawn(index, now_ns, {"decided": arguments})

    def _consulted(self, stimulus: Decided, now_ns: int) -> None:
        """What user code says to a container whose round is over."""
        index = stimulus.step
        progress = self.progress[index]
        if type(progress.pending) is not Consult:
            return
        if stimulus.fault is not None:
            self._fail(index, stimulus.fault, now_ns)
        elif stimulus.answer is not None:
            self._close(index, stimulus.answer[0], now_ns)
            self._advance(index, now_ns)
        else:
            self._tell_step(index, SPAWNED, now_ns, data={"opening": opening_data(stimulus.opening or ())})
            self._attend(now_ns)

    def _close(self, index: int, token: Any, now_ns: int) -> None:
        self._tell_step(index, COMPLETED, now_ns, elapsed_ns=now_ns - self.spawned_at_ns[index], token_out=token)

    def _attend(self, now_ns: int) -> None:
        """Start what was planned in this turn, and see to containers whose scopes are settled; or leave it for when we
        are resumed."""
        fresh, attention = self.fresh, self.attention
        while self.phase is ACTIVE and (fresh or attention):
            if fresh:
                ready = fresh[:]
                fresh.clear()
                self._spawn_ready(ready, now_ns)
            else:
                self._see_to(attention.pop(0), now_ns)
        fresh.clear()
        attention.clear()

    def _see_to(self, index: int, now_ns: int) -> None:
        progress = self.progress.get(index)
        pending = None if progress is None else progress.pending
        if pending is None:
            return  # seen to already
        if type(pending) is Close:
            self._close(index, pending.token, now_ns)
            self._spawn_ready(self.steps[index].dependents, now_ns)
        elif type(pending) is Broken:
            self._fail(index, pending.fault, now_ns)
        elif type(pending) is Answered:
            self._answer(index)
        else:
            self._ask(index)

    def _ask(self, index: int) -> None:
        """Have it decided on, once: user code is called for that."""
        if index not in self.asked:
            self.asked = self.asked or set()
            self.asked.add(index)
            self.commands.append(Decide(index))

    def _answer(self, index: int) -> None:
        """Tell the function around nested steps what they came to, if it waits."""
        around = self._function_around(index)
        if around is not None and self.states[around] == RUNNING and self.progress[index].proceeding:
            self.commands.append(Answer(around, self.progress[index].held[0]))

    def _function_around(self, container: int) -> int | None:
        return next(
            (
                index
                for index in range(self.grown, len(self.states))
                if self.states[index] in IN_FLIGHT
                and self.steps[index].surrounding is not None
                and (scope := self.steps[index].scope) is not None
                and scope.container == container
            ),
            None,
        )

    def _proceeded(self, stimulus: Proceeded, now_ns: int) -> None:
        """The function around nested steps has called `proceed()`: run them, or, if it was interrupted before, let them
        go on."""
        index, delivery = stimulus
        step = self.steps[index]
        if (
            self.states[index] != RUNNING
            or delivery != self.deliveries[index]
            or step.scope is None
            or step.surrounding is None
        ):
            return
        if not self.takes_more(index):
            self.commands.append(Abandon(index))
            return
        if self.phase is HALTING:
            self._pause_around(index, now_ns)
            self._continue_stopping(now_ns)
            return
        container = step.scope.container
        progress = self.progress[container]
        if not progress.proceeding:
            self._tell_step(
                container, SPAWNED, now_ns, data={"opening": opening_data(step.surrounding.nested(progress))}
            )
            for other in [other for other in self.stranded if not self.held_back(other)]:
                self.stranded.discard(other)
                if self.states[other] in IN_FLIGHT:
                    self._lost(Lost(other, self.deliveries[other], "its process ended"), now_ns)
            self._attend(now_ns)
            self._spawn_ready(range(self.grown, len(self.states)), now_ns)
        if progress.pending is not None:
            self._see_to(container, now_ns)

    def _replied(self, stimulus: Replied, now_ns: int) -> None:
        index, reply = stimulus
        if (
            self.states[index] in IN_FLIGHT
            and reply.hop == self.hops[index]
            and reply.delivery == self.deliveries[index]
            and reply.epoch == self.epoch
        ):
            if index >= self.grown and self.steps[index].surrounding is not None and self.returns_early(index, reply):
                address = self.steps[index].address
                text = f"{address!r} answered before the steps it is around were done; let it `await proceed()`"
                self._fail(index, Fault("bitactor.errors:InvalidOutcome", text), now_ns, elapsed_ns=reply.elapsed_ns)
            elif reply.outcome == "ok" and not reply.emits and reply.planned is None:
                self._complete(index, reply, now_ns)
            elif reply.outcome == "ok":
                self._complete_with_more(index, reply, now_ns)
            else:
                _OUTCOMES.get(reply.outcome, Advancing._reply_failed)(self, index, reply, now_ns)
        else:
            self._late_reply(index, reply, now_ns)

    def returns_early(self, index: int, reply: Reply) -> bool:
        """Whether a function around nested steps answers while some of them are begun and not done."""
        scope = self.steps[index].scope
        if reply.outcome not in ("ok", "continue") or scope is None or not self.takes_more(index):
            return False
        return self.progress[scope.container].open > 1

    def _complete(self, index: int, reply: Reply, now_ns: int) -> None:
        """The ordinary end of an ordinary hop; what `_tell_step` would do, without the questions it asks."""
        step = self.steps[index]
        pulse: Pulse = _new(
            Pulse,
            (
                self.transaction, self.root, self.plan.workflow, self.seq, reply.hop, (), COMPLETED, step.name,
                step.spawn, FORWARD, self.attempts[index], self.ttls[index], now_ns, reply.elapsed_ns, None,
                reply.token, None, None, self.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        self._completed(pulse, index)
        self.seq += 1
        if self.phase is ACTIVE:
            if step.dependents:
                self._spawn_ready(step.dependents, now_ns)
            if index >= self.grown:
                self._attend(now_ns)
            if not self.unsettled and self.phase is ACTIVE:
                self._finish("completed", now_ns)
        else:
            self._continue_stopping(now_ns)

    def _complete_with_more(self, index: int, reply: Reply, now_ns: int) -> None:
        """It has emitted signals, or planned steps."""
        data = emits_data(reply)
        if reply.planned is not None and self.takes_more(index):
            try:
                planned = decode_token(Packed(reply.planned))
                resolve(self, index, planned)
            except (DefinitionError, ProtocolError, LookupError, TypeError, ValueError, AttributeError) as error:
                self._fail(
                    index, Fault("bitactor.errors:InvalidOutcome", str(error)), now_ns, elapsed_ns=reply.elapsed_ns
                )
                return
            data = {**(data or {}), "planned": planned}
        hop = self.hops[index]
        self._tell_step(index, COMPLETED, now_ns, elapsed_ns=reply.elapsed_ns, token_out=reply.token, data=data)
        self._deliver_emissions(hop)
        self._advance(index, now_ns)

    def _continued(self, index: int, reply: Reply, now_ns: int) -> None:
        self._tell_step(
            index,
            COMPENSATED,
            now_ns,
            elapsed_ns=reply.elapsed_ns,
            token_out=reply.token,
            error=reply.fault,
            data=emits_data(reply),
        )
        self._deliver_emissions(reply.hop)
        self._advance(index, now_ns)

    def _advance(self, index: int, now_ns: int) -> None:
        """Something is settled: start what waited for it, or see whether that was all."""
        if self.phase is not ACTIVE:
            self._continue_stopping(now_ns)
            return
        dependents = self.steps[index].dependents
        if dependents:
            self._spawn_ready(dependents, now_ns)
        if self.fresh or self.attention:
            self._attend(now_ns)
        if not self.unsettled and self.phase is ACTIVE:
            self._finish("completed", now_ns)

    def _spawn_ready(self, candidates: Iterable[int], now_ns: int) -> None:
        missing, states = self.missing, self.states
        for index in candidates:
            if not missing[index] and states[index] == WAITING and self.phase is ACTIVE:
                if index >= self.grown and self.held_back(index):
                    continue
                if self.steps[index].decides and index not in self.decided:
                    self._ask(index)
                else:
                    self._spawn(index, now_ns)

    def _spawn(self, index: int, now_ns: int, data: Mapping[str, Any] | None = None) -> None:
        """The first attempt, or another one; the one place where TTL falls."""
        step = self.steps[index]
        ttl = self.ttl_of_causes(step)
        if ttl <= 0:
            self._expire(index, now_ns)
            return
        if self.plan.max_hops is not None and self.hops_spent >= self.plan.max_hops:
            self._refuse_more_hops(index, now_ns)
            return
        attempt = self.attempts[index] + 1
        hop = join_hop_id(self.salt, step.forward_code if attempt == 1 else step.code(FORWARD, attempt))
        pulse: Pulse = _new(
            Pulse,
            (
                self.transaction, self.root, self.plan.workflow, self.seq, hop, self.causes_of(step), SPAWNED,
                step.name, step.spawn, FORWARD, attempt, ttl - 1, now_ns, None, step.token_in, None, None, data,
                self.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        self._spawned(pulse, index)
        self.seq += 1
        self.commands.append(_new(Dispatch, (index, FORWARD, None)))

    def _expire(self, index: int, now_ns: int) -> None:
        step = self.steps[index]
        chain = [*self.trail, *self.chain_to(index)]
        before = f" after {' → '.join(chain[:-1])}" if len(chain) > 1 else ""
        fault = Fault(
            "bitactor.errors:TtlExpired",
            f"no hops left for {step.address!r}{before}; this transaction began with {self.ttl}",
        )
        self._tell_step(index, TOMBSTONE, now_ns, reason=TTL_EXPIRED, data={"chain": chain, "ttl": self.ttl})
        self._fail(index, fault, now_ns)

    def _refuse_more_hops(self, index: int, now_ns: int) -> None:
        address, allowed = self.steps[index].address, self.plan.max_hops
        hop, workflow = self.hops_spent + 1, self.plan.workflow
        message = f"{address!r} would be hop {hop} of {workflow!r}, which may take {allowed} (max_hops)"
        self._tell_step(index, TOMBSTONE, now_ns, reason=REJECTED)
        self._fail(index, Fault("bitactor.errors:TooManyHops", message), now_ns)

    def _fail(
        self, index: int, fault: Fault, now_ns: int, *, elapsed_ns: int | None = None, in_doubt: bool = False
    ) -> None:
        """A step failed for good: stop everything else, then undo; unless it is not required, then go on without it."""
        if not self.steps[index].required and self.phase in (ACTIVE, HALTING):
            tolerated = {"in_doubt": True, "tolerated": True} if in_doubt else {"tolerated": True}
            self._tell_step(index, FAILED, now_ns, elapsed_ns=elapsed_ns, error=fault, data=tolerated)
            self._advance(index, now_ns)
            return
        if self.phase in (ACTIVE, HALTING) and (scope := self.catching(index)) is not None:
            caught = {"in_doubt": True, "caught": True} if in_doubt else {"caught": True}
            flying = [other for other in self.within(scope) if self.states[other] in IN_FLIGHT and other != index]
            self._tell_step(index, FAILED, now_ns, elapsed_ns=elapsed_ns, error=fault, data=caught)
            self.commands.extend(Abandon(other) for other in flying)
            self._advance(index, now_ns)
            return
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
            address = self.steps[index].address
            fault = Fault("bitactor.errors:InvalidOutcome", f"{address!r} was answered with {reply.outcome!r}")
        self._fail(index, fault, now_ns, elapsed_ns=reply.elapsed_ns)

    def _reply_cancelled(self, index: int, reply: Reply, now_ns: int) -> None:
        fault = reply.fault or Fault("bitactor.errors:Cancelled", "cancelled before it had answered")
        self._fail(index, fault, now_ns, elapsed_ns=reply.elapsed_ns, in_doubt=True)

    def _reply_retry(self, index: int, reply: Reply, now_ns: int) -> None:
        fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
        self._try_again(index, fault, reply.after_ns, reply.elapsed_ns, now_ns)

    def _try_again(self, index: int, fault: Fault, after_ns: int | None, elapsed_ns: int | None, now_ns: int) -> None:
        step = self.steps[index]
        failures = self.failures[index] + 1
        if (
            self.phase not in (ACTIVE, HALTING)
            or failures > step.retries
            or (index >= self.grown and self.fails(index))
        ):
            self._fail(index, fault, now_ns, elapsed_ns=elapsed_ns)
            return
        if after_ns is None:
            backoff = step.backoff if isinstance(step.backoff, Backoff) else DEFAULT_BACKOFF
            after_ns = backoff.delay_ns(failures, own_fraction(self.hops[index]))
        due_ns = now_ns + after_ns
        data = {"due_ns": due_ns, "after_ns": after_ns}
        self._tell_step(index, RETRIED, now_ns, elapsed_ns=elapsed_ns, error=fault, data=data)
        self.commands.append(ArmRetry(index, due_ns))
        self._continue_stopping(now_ns)

    def _reply_halt(self, index: int, reply: Reply, now_ns: int) -> None:
        if not self.takes_more(index):
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
        assess = self.takes_more(index) and self.states[index] == RUNNING and self.steps[index].assesses
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
        if delivery <= self.plan.redeliveries and self.takes_more(index):
            self._redeliver(index, FORWARD, holder, now_ns)
            return
        assess = self.takes_more(index) and self.states[index] == RUNNING and self.steps[index].compensate is not None
        fault = self._lost_fault(index, holder)
        self._tell_step(index, TOMBSTONE, now_ns, reason=POISON, data={"holder": holder, "fault": list(fault)})
        self._after_doubt(index, fault, now_ns, assess=assess, retry=False)

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
        step = self.steps[index]
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


_OWN_ERRORS: Final[Mapping[str, type[BaseException]]] = {
    "bitactor.errors:StepTimeout": StepTimeout,
    "bitactor.errors:WorkerLost": WorkerLost,
}

_OUTCOMES: Final = {
    "continue": Advancing._continued,
    "retry": Advancing._reply_retry,
    "fail": Advancing._reply_failed,
    "halt": Advancing._reply_halt,
    "timed_out": Advancing._reply_timed_out,
    "cancelled": Advancing._reply_cancelled,
}
