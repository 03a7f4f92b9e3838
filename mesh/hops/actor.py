"""The BitActor: a pykka actor that runs one hop and replies once.

A `pykka.Actor` whose inbox, loop and registration are ours: it lives on the node's event loop, takes its one signal
when it is made, runs the user's function where its spawner says, replies, and is forgotten.  The stock `ThreadingActor`
costs 200 to 500 µs to start and stop, and pykka's class-level registry is a list scan; this one costs two.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial
from typing import Any, Final, NoReturn

import pykka
from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.errors import BitActorError, Cancelled, StepTimeout
from bitactor.messages.codec import encode_token
from bitactor.messages.faults import fault_of
from bitactor.messages.outcome import Outcome
from bitactor.messages.signal import Fault, Reply, Signal
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.saga.verdict import VERDICTS, Judgement, judge, judge_failure, unanswered, unsent
from mesh.hops.exits import unawaited_exit
from mesh.hops.ports import (
    ENDED,
    QUEUED,
    REPLIED,
    STARTED,
    ActorExecutor,
    ActorPermits,
    Arguments,
    Compensation,
    Done,
    Lease,
    Spawner,
)
from mesh.limits.priority_queue import Rank, rank_of

_NO_VALUE: Final = object()
"""In place of a token: the value is a verdict or cannot be encoded, and is to be judged."""


class BitActor(pykka.Actor):
    """The actor of one delivery of one signal: the `Actor` port on a pykka actor.

    `done(actor, reply, error)` is called on the loop's thread, once; a second time only if the user's function ends
    after the actor had to answer for it, with what it did in the end.
    """

    __slots__ = (
        "arguments", "callback", "context", "done", "executor", "exits", "holder", "kwargs", "lease", "permits", "plan",
        "result", "signal", "spawner", "started_ns", "state", "step", "task", "timer_tick",
    )  # fmt: skip

    stop_requested: bool = False
    compensating: Compensation | None = None
    progress: Any = None
    """The data of the function's latest heartbeat."""
    renewed_ns: int | None = None
    """When the latest heartbeat that renewed the timeout came, by the monotonic clock."""

    def __init__(
        self,
        executor: ActorExecutor,
        plan: Plan,
        step: PlanStep,
        signal: Signal,
        callback: Callback,
        arguments: Arguments,
        spawner: Spawner,
        done: Done,
        result: Any = None,
        permits: ActorPermits | None = None,
        lease: Lease | None = None,
    ) -> None:
        # pykka's own __init__ is left out on purpose: a uuid, a queue and an event would cost 40 µs.
        self.executor = executor
        self.plan = plan
        self.step = step
        self.signal = signal
        self.callback = callback
        self.arguments = arguments
        self.spawner = spawner
        self.done = done
        self.result = result
        self.permits = permits
        self.lease = lease
        self.holder: str | int = ""
        self.exits: list[asyncio.Task[Any]] = []
        self.kwargs: dict[str, Any]
        self.state = QUEUED
        self.started_ns = 0
        self.timer_tick: int | None = None
        self.context: Context | None = None
        self.task: Any = None

    # Living

    def begin(self, *, runs: bool = True, timed: bool = True) -> bool:
        """Note that the user's function starts now, and arm its timeout; False: it may not start, and is given back.

        `runs` is False where the attempt begins without its function, which then may.  `timed` is False where the loop
        does nothing else until the function ends or, and then `keep_time` is called, suspends.
        """
        executor = self.executor
        now = executor.monotonic_ns()
        if (now >= executor.lease_until_ns or self.lease is not None) and runs and now >= self.starts_until_ns():
            self.give_back()
            return False
        self.state = STARTED
        self.started_ns = now
        if timed:
            self.keep_time()
        return True

    def keep_time(self) -> None:
        """Arm the timeout of the attempt, which has started, unless it is armed."""
        budget = self.signal.budget_ns
        if budget is not None and self.timer_tick is None and self.state == STARTED:
            self.timer_tick = self.executor.wheel.arm(self, self.started_ns + budget)

    def _disarm(self) -> None:
        if self.timer_tick is not None:
            self.executor.wheel.disarm(self, self.timer_tick)
            self.timer_tick = None

    def starts_until_ns(self) -> int:
        """Until when the function may start, as the lease has it and, once it has begun, its time; from any thread."""
        lease = self.lease
        until_ns = self.executor.own_lease_until_ns() if lease is None else lease.until_ns()
        if self.state == QUEUED:
            return until_ns
        if self.state != STARTED or self.stop_requested:
            return 0
        ends_ns = self.ends_ns()
        return until_ns if ends_ns is None else min(until_ns, ends_ns)

    def give_back(self) -> None:
        """Note that the function has not started and may not now: it is held until our own lease is renewed, or whoever
        sent the hop is asked whether it is still wanted."""
        self._disarm()
        if self.state == REPLIED or self.stop_requested:
            error = Cancelled(f"{self.signal.name!r} was stopped before it had started")
            self._reply("fail", error=error, fault=fault_of(error))
        elif self.lease is not None:
            self._reply("busy", after_ns=self.executor.monotonic_ns())
        elif self.state != ENDED:
            self.state, self.started_ns = QUEUED, 0
            self.executor.hold(self)

    def heartbeat(self, data: Any) -> None:
        """Note that the user's function goes on, with `data` as its progress, and renew its timeout; from any thread.

        Raises:
            BitActorError: another process keeps the timeout (a worker's parent, another node).
        """
        if self.signal.reply_to or not self.executor.enforces_timeouts:
            raise BitActorError(
                f"{self.signal.name!r} cannot send heartbeats from a worker process or for another node; raise its "
                "timeout instead"
            )
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for us any more
            self.executor.call_threadsafe(partial(self._beat, data))

    def _beat(self, data: Any) -> None:
        if self.state != STARTED:
            return
        self.progress = data
        timeout_ns = self.step.timeout_ns
        if self.timer_tick is not None and timeout_ns is not None and timeout_ns == self.signal.budget_ns:
            self.renewed_ns = now = self.executor.monotonic_ns()
            self.executor.wheel.disarm(self, self.timer_tick)
            self.timer_tick = self.executor.wheel.arm(self, now + timeout_ns)
            if self.context is not None:
                self.context.deadline_ns = self.ends_ns()

    def ends_ns(self) -> int | None:
        """When the attempt's time is over, by the monotonic clock, if it starts now or has started; None: never.

        If less time is left to its transaction than the step may take, a heartbeat does not put that off.
        """
        budget = self.signal.budget_ns
        if budget is None:
            return None
        if self.renewed_ns is not None:
            return self.renewed_ns + budget
        return budget + (self.executor.monotonic_ns() if self.state == QUEUED else self.started_ns)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Reply as `value` or `error` says; on the loop's thread."""
        if error is None and (self.exits or self.context is not None):
            error = unawaited_exit(self.exits)
            error = unsent(self.context, value) if error is None else error
        if error is None:
            try:
                token = _NO_VALUE if type(value) in VERDICTS else encode_token(value)
            except BaseException:  # of the user's object
                token = _NO_VALUE
            if token is not _NO_VALUE:
                self._reply_ok(token)
                return
        if self.stop_requested and issubclass(type(error), asyncio.CancelledError):
            self._reply("cancelled", error=error)
            return
        late = self.state == REPLIED
        if error is None or issubclass(type(error), Outcome):
            judging = judge(self.step, self.signal, value if error is None else error, late=late)
        else:
            judging = judge_failure(self.step, self.signal, error, late=late)
        self.executor.judge(self, judging)

    def expire(self) -> None:
        """Reply `timed_out`, for the attempt's time is over, and ask the function to stop if that is possible."""
        if self.state != STARTED:
            return
        seconds = (self.signal.budget_ns or 0) / 1e9
        if self.compensating is not None:
            self._end_compensation(f"took longer than what was left of {seconds:g} s")
            return
        error = StepTimeout(f"{self.signal.name!r}, attempt {self.signal.attempt}, took longer than {seconds:g} s")
        self.timer_tick = None
        self._become_zombie()
        signal, elapsed_ns = self.signal, self.executor.monotonic_ns() - self.started_ns
        reply = Reply(
            signal.transaction, signal.hop, signal.delivery, signal.epoch, "timed_out", None, fault_of(error),
            elapsed_ns=elapsed_ns,
        )  # fmt: skip
        self.done(self, reply, error)
        self._stop_once()

    def abandon(self) -> None:
        """Ask the hop to stop if that is possible; one that has not started replies `fail` at once."""
        if self.state == QUEUED:
            self.spawner.abandon(self)
            error = Cancelled(f"{self.signal.name!r} was stopped before it had started")
            self._reply("fail", error=error, fault=fault_of(error))
        elif self.compensating is not None:
            self._end_compensation("was cancelled")
        elif self.state != ENDED:
            self._stop_once()

    def fence(self) -> None:
        """Stop waiting for the function: what it still answers is late, and its permits are free for others."""
        if self.state == STARTED and self.compensating is None:
            self._disarm()
            self._become_zombie()
            self.spawner.abandon(self)
        else:
            self.abandon()

    def _become_zombie(self) -> None:
        self.state = REPLIED
        self.executor.zombies.add(self)

    def _stop_once(self) -> None:
        """Ask the spawner once: a second cancellation would interrupt the user's cleaning up after the first."""
        if not self.stop_requested:
            self.stop_requested = True
            self.spawner.abandon(self)

    def _end_compensation(self, why: str) -> None:
        """Reply `fail` without the compensation's answer (`why`: what became of it); the step is known to have
        failed."""
        assert self.compensating is not None
        task, ask = self.compensating
        task.cancel()
        self.fail(ask.error, unanswered(ask, why))

    def worker_lost(self) -> None:
        self._reply("lost")

    def relay_reply(self, reply: Reply, error: BaseException | None = None) -> None:
        self._reply(
            reply.outcome, reply.token, error=error, fault=reply.fault, after_ns=reply.after_ns, reason=reply.reason,
            emits=reply.emits, planned=reply.planned,
        )  # fmt: skip

    def fail(self, error: BaseException, fault: Fault | None = None) -> None:
        self._reply("fail", error=error, fault=fault or fault_of(error))

    def answer(self, judgement: Judgement) -> None:
        outcome, token, error, fault, after_ns, reason, planned, _ = judgement
        self._reply(outcome, token, error=error, fault=fault, after_ns=after_ns, reason=reason, planned=planned)

    def _reply_ok(self, token: Any) -> None:
        """Reply `ok`: `_reply` for the ordinary case."""
        if self.state != STARTED:
            self._reply("ok", token)
            return
        executor = self.executor
        self.state = ENDED
        if self.timer_tick is not None:
            self._disarm()
        executor.replied_ns = now = executor.monotonic_ns()
        signal = self.signal
        reply: Reply = tuple.__new__(
            Reply,
            (
                signal.transaction, signal.hop, signal.delivery, signal.epoch, "ok", token, None, None,
                self.context.end() if self.context is not None else (), now - self.started_ns, "", None, 0,
            ),
        )  # fmt: skip
        self.done(self, reply, None)

    def _reply(
        self,
        outcome: str,
        token: Any = None,
        *,
        error: BaseException | None = None,
        fault: Fault | None = None,
        after_ns: int | None = None,
        reason: str = "",
        emits: tuple[tuple[str, Any], ...] = (),
        planned: bytes | None = None,
    ) -> None:
        if self.state == ENDED:
            return
        self._disarm()
        if self.state == REPLIED:
            self.executor.zombies.discard(self)
        self.state = ENDED
        if self.compensating is not None:
            self.compensating = None
        context = self.context
        if context is not None and not emits and outcome in ("ok", "continue"):
            emits = context.end()
        signal = self.signal
        self.done(
            self,
            Reply(
                signal.transaction, signal.hop, signal.delivery, signal.epoch, outcome, token, fault, after_ns, emits,
                self.executor.monotonic_ns() - self.started_ns if self.started_ns else 0, reason, planned,
            ),
            error,
        )  # fmt: skip

    @property
    def rank(self) -> Rank:
        if self.permits is not None:
            return self.permits.rank
        return rank_of(self.signal.direction, self.step.priority)

    # Being a pykka actor to whoever looks

    @property
    @override
    def actor_urn(self) -> str:  # type: ignore[override]
        """The actor's name, `urn:bitactor:<transaction>:<hop>:<delivery>`."""
        return f"urn:bitactor:{self.signal.transaction}:{self.signal.hop}:{self.signal.delivery}"

    @property
    @override
    def actor_ref(self) -> BitActorRef:
        """A pykka reference to this actor, made when asked for."""
        return BitActorRef(self)

    @property
    @override
    def actor_inbox(self) -> NoReturn:  # type: ignore[override]
        """A BitActor has no inbox: its one signal is given to it when it is made."""
        raise AttributeError("a BitActor has no inbox; it takes one signal, when it is spawned")

    @override
    def on_receive(self, message: Any) -> Any:
        """Start the actor where its step says; the one message it takes is its signal."""
        if message is not self.signal:
            raise BitActorError(
                "a BitActor takes one signal in its life; emit a signal, or stimulate a workflow, to start more work"
            )
        self.spawner.start(self)

    @override
    def _start_actor_loop(self) -> None:
        self.on_receive(self.signal)

    @override
    def _stop(self) -> None:
        self.abandon()

    @override
    def stop(self) -> None:
        self.executor.call_threadsafe(self.abandon)

    @staticmethod
    @override
    def _create_actor_inbox() -> NoReturn:
        raise BitActorError("a BitActor has no inbox; it takes one signal, when it is spawned")

    @staticmethod
    @override
    def _create_future() -> pykka.Future[Any]:
        return pykka.ThreadingFuture()


class BitActorRef(pykka.ActorRef[BitActor]):
    """A reference to a hop's actor: it can be looked at and stopped, but takes no messages."""

    def __init__(self, actor: BitActor) -> None:
        # A strong reference: pykka's is weak and relies on its registry to keep the actor.
        self._actor = actor
        self.actor_class = BitActor
        self.actor_urn = actor.actor_urn
        self.actor_stopped = _StoppedFlag(actor)

    @override
    def is_alive(self) -> bool:
        """Whether the user's function may still be running."""
        return self._actor.state != ENDED

    @override
    def tell(self, message: Any) -> NoReturn:
        """Refused: a hop takes one signal in its life."""
        if not self.is_alive():
            raise pykka.ActorDeadError(f"{self} has ended")
        raise BitActorError(
            f"{self} takes one signal in its life; emit a signal, or stimulate a workflow, to start more work"
        )

    @override
    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> NoReturn:
        """Refused, as `tell` is."""
        self.tell(message)

    @override
    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Ask the hop to stop; True if it was alive.  Never waits: what became of it is in the transaction's pulses."""
        alive = self.is_alive()
        self._actor.stop()
        if block:
            return alive
        future: pykka.Future[bool] = pykka.ThreadingFuture()
        future.set(alive)
        return future


class _StoppedFlag(threading.Event):
    """pykka's stopped flag, read from the actor's state."""

    def __init__(self, actor: BitActor) -> None:
        super().__init__()
        self._actor = actor

    @override
    def is_set(self) -> bool:
        return self._actor.state == ENDED
