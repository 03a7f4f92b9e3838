"""An executor runs hops: it makes an actor of a signal, gives it to the spawner that fits, and asks compensation when
it fails.

The supervisor's own process, a node that runs steps for others, and a worker process all execute hops in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import CoroutineType, MappingProxyType
from typing import Any, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.declare.spawners import spawn_beside
from bitactor.errors import Cancelled
from bitactor.messages.codec import decode_token
from bitactor.messages.faults import error_of, fault_of
from bitactor.messages.signal import UNDO, Reply, Signal
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.ports import Clock
from bitactor.saga.verdict import Ask, Judgement, Judging, judge_failure, unsent
from mesh.hops.actor import BitActor
from mesh.hops.exits import CODE_OF, unawaited_exit
from mesh.hops.lifecycle import cancel_all, without_stop_iteration
from mesh.hops.middleware import CallEvent, Middleware
from mesh.hops.policies import Policies
from mesh.hops.ports import ENDED, FOREVER, Actor, ActorExecutor, ActorPermits, Arguments, Done, Lease, Spawner
from mesh.hops.prepare import Preparation, start_queued
from mesh.hops.resources import ResourceManager, ResourceView
from mesh.limits.pools import LENDER, PermitLender
from mesh.limits.timing_wheel import Timer, TimingWheel
from mesh.sinks.otel.context import hop_context_in
from mesh.sinks.otel.own_spans import Take, context_of

logger = logging.getLogger("bitactor.host")

LOOK_AGAIN_NS: Final = 10_000_000
"""Nanoseconds between looks whether our lease has been renewed, while something waits for that."""

_EMPTY: Mapping[str, Any] = MappingProxyType({})
_SAY_CODE_OF = CODE_OF.set


class EagerTaskStarter:
    """Starts tasks on one loop, whose first step runs at once.  Must be called from a loop callback, not from inside a
    task.

    Most hops never suspend, or suspend late; waiting a turn of the loop to begin costs more than the rest of the hop.
    Yet the user's code must see what it sees in any task, from its first line on: `current_task()`, `timeout()`,
    `TaskGroup`, context variables, cancellation.  So it is a real task.  Python 3.12 starts tasks
    eagerly on request; before, a task asks its loop's `call_soon` to run its first step, and this class catches that
    one call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._attributes = loop.__dict__
        self._intercepted: list[Callable[[], None]] = []
        self.start: Callable[[Coroutine[Any, Any, None], str, contextvars.Context], asyncio.Task[None]]
        # Makes a task of a coroutine and runs its first step before returning
        self.start = self._start_natively if sys.version_info >= (3, 12) else self._start_intercepted

    def _start_natively(
        self, coroutine: Coroutine[Any, Any, None], name: str, context: contextvars.Context
    ) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=self._loop, name=name, context=context, eager_start=True)  # type: ignore[call-arg, unused-ignore]

    def _start_intercepted(
        self, coroutine: Coroutine[Any, Any, None], name: str, context: contextvars.Context
    ) -> asyncio.Task[None]:
        attributes = self._attributes
        attributes["call_soon"] = self._intercept
        try:
            task = asyncio.Task(coroutine, loop=self._loop, name=name, context=context)
        finally:
            del attributes["call_soon"]
        context.run(self._intercepted.pop())
        return task

    def _intercept(self, callback: Callable[[], None], *, context: contextvars.Context | None = None) -> None:
        self._intercepted.append(callback)


class Executor(ActorExecutor):
    """Runs hops on one event loop.

    Args:
        loop: the loop whose thread owns everything here.
        clock: time.
        wheel: where attempts' timeouts are armed.
        spawners: name of a spawner → who runs such hops.
        traced: whether somebody collects spans, so that users' are made children of their hops.
        take: where spans go that users make in hops, if that is not for a tracer provider of theirs to say.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        wheel: TimingWheel,
        spawners: Mapping[str, Spawner],
        *,
        traced: bool = False,
        take: Take | None = None,
    ) -> None:
        self.loop = loop
        self.monotonic_ns: Callable[[], int] = clock.monotonic_ns
        self.wheel = wheel
        self.spawners = spawners
        self.start_task = EagerTaskStarter(loop).start
        self.traced = traced
        self.trace_context = context_of(take)  # what hops' contexts are made of, so that users' spans are taken
        self.zombies: set[Actor] = set()  # actors that have replied for a function which still runs
        self.compensations: set[asyncio.Task[None]] = set()
        self._copy_context = contextvars.copy_context().copy
        self.resources: ResourceManager | None = None
        self.policies: Policies | None = None
        self.middleware: Middleware | None = None
        self.preparation = Preparation(self)
        # Whether this executor keeps attempts' timeouts; False in a worker process, whose parent does
        self.enforces_timeouts = True
        self.replied_ns = 0
        self.lease_until_ns = FOREVER
        # Until when this node's lease on its transactions has been renewed, by the monotonic clock; None: for ever
        self.lease: Callable[[], int | None] = lambda: None
        self._held: list[Callable[[], None]] = []

    def launch(
        self,
        plan: Plan,
        step: PlanStep,
        signal: Signal,
        arguments: Arguments,
        result: Any,
        done: Done,
        permits: ActorPermits | None = None,
        lease: Lease | None = None,
    ) -> BitActor:
        """Spawn an actor for `signal`; `arguments` makes the step's, fresh at each call, `result` (a token) is what an
        undo takes back.

        `permits` are held by the actor meanwhile, and may be lent.  `lease` is the right to start that came with the
        signal, if it is from elsewhere.  `done` may be called before this returns.
        """
        undoing = signal.direction == UNDO
        callback = step.undo if undoing and step.undo is not None else step.run
        spawner = self.spawners[spawn_beside(step.spawn, callback.is_async) if undoing else step.spawn]
        if self.middleware is not None and signal.fault is None:
            callback, done = self._with_middleware(plan, callback, signal, done, spawner, arguments)
        actor = BitActor(self, plan, step, signal, callback, arguments, spawner, done, result, permits, lease)
        if signal.fault is not None:
            if not actor.begin(runs=lease is not None):
                return actor
            error = error_of(signal.fault, plan.errors)
            self.judge(actor, judge_failure(step, signal, error, signal.fault))
            return actor
        resources: Mapping[str, Any] = _EMPTY
        if (callback.resources or (step.policies and not undoing)) and spawner.traits.carries_objects:
            ready = self._ready_resources(callback) if undoing or not step.policies else None
            if ready is None:
                self.preparation.start(actor)
                return actor
            resources = ready
        try:
            actor.kwargs = kwargs = arguments()
            if callback.injected or callback is not step.run or step.takes_signal is not None or step.has_beside:
                actor.kwargs = self._kwargs(actor, callback, kwargs, result, resources=resources)
        except BaseException as error:  # a user's model may raise anything
            actor.fail(error)
            return actor
        spawner.start(actor)
        return actor

    @override
    def own_lease_until_ns(self) -> int:
        until_ns = self.lease()
        self.lease_until_ns = FOREVER if until_ns is None else until_ns
        return self.lease_until_ns

    @override
    def hold(self, actor: Actor) -> None:
        self.when_leased(partial(start_queued, actor, actor.spawner))

    def when_leased(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop once this node's lease on its transactions holds again; never, if another process
        has them by then."""
        self._held.append(callback)
        if len(self._held) == 1:
            self._look_again()

    def _look_again(self) -> None:
        Timer(self.wheel, self.monotonic_ns() + LOOK_AGAIN_NS, self._go_on)

    def _go_on(self) -> None:
        if self.monotonic_ns() >= self.own_lease_until_ns():
            self._look_again()
            return
        held, self._held = self._held, []
        for callback in held:
            callback()

    @override
    async def resources_of(self, callback: Callback) -> dict[str, Any]:
        if not callback.resources or self.resources is None:
            return {}
        ready = self._ready_resources(callback)
        return await self.resources.get_many(callback.resources) if ready is None else ready

    def _ready_resources(self, callback: Callback) -> dict[str, Any] | None:
        return self.resources.get_ready(callback.resources) if self.resources is not None else {}

    @override
    def kwargs_of(self, actor: Actor, callback: Callback, resources: Mapping[str, Any]) -> dict[str, Any]:
        return self._kwargs(actor, callback, actor.arguments(), actor.result, resources=resources)

    def _with_middleware(
        self,
        plan: Plan,
        callback: Callback,
        signal: Signal,
        done: Done,
        spawner: Spawner,
        arguments: Arguments,
    ) -> tuple[Callback, Done]:
        """The callback with middleware around it and `done`; for another process, `done` is wrapped instead."""
        assert self.middleware is not None
        role = "undo" if signal.direction == UNDO else "run"
        path = signal.path or signal.name.removeprefix(f"{plan.workflow}/")
        if spawner.traits.carries_objects:
            return self.middleware.wrap(callback, role, plan.workflow, signal, path), done
        middleware, began = self.middleware, self.monotonic_ns()
        shown: Mapping[str, Any] = _EMPTY
        with contextlib.suppress(BaseException):  # those that do not fit are the hop's own failure
            values = arguments()
            shown = MappingProxyType({name: values[name] for name in callback.takes})
        pending = [
            middleware.before(
                CallEvent(role, plan.workflow, path, signal.transaction, signal.hop, signal.attempt, shown)
            )
        ]

        def ended(actor: Actor, reply: Reply, error: BaseException | None) -> None:
            if pending:  # a late reply comes after another one
                raised = error or (error_of(reply.fault, plan.errors) if reply.fault is not None else None)
                if reply.outcome == "busy":
                    raised = Cancelled(f"{signal.name!r} was given back before it had started")
                value = decode_token(reply.token) if reply.outcome == "ok" else None
                middleware.after(
                    pending.pop()._replace(value=value, error=raised, elapsed_ns=self.monotonic_ns() - began)
                )
            done(actor, reply, error)

        return callback, ended

    @override
    def call_threadsafe(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(callback)

    @override
    def contextvars_for(self, actor: Actor) -> contextvars.Context:
        """A copy of the executor's context variables, with the hop's span current when somebody traces."""
        context = self._copy_context()
        context.run(_SAY_CODE_OF, (actor.signal, actor.exits))
        if self.traced or trace._TRACER_PROVIDER is not None:
            context.run(context_api.attach, hop_context_in(self.trace_context, actor.signal.root, actor.signal.hop))
        if actor.permits is not None:
            lender = PermitLender(self.loop, actor.permits.depth)
            lender.add(actor.permits)
            context.run(LENDER.set, lender)
        return context

    @override
    def judge(self, actor: Actor, judging: Judging) -> None:
        """End an attempt as its judging says, after asking the step's `compensate` and `backoff` if that wants it."""
        try:
            ask = next(judging)
        except StopIteration as judged:
            actor.answer(judged.value)
            return
        actor.keep_time()
        name = f"assess {actor.signal.name}"
        task = self.loop.create_task(self._judge(actor, judging, ask), name=name, context=self.contextvars_for(actor))
        actor.compensating = (task, ask)
        self.compensations.add(task)
        task.add_done_callback(self.compensations.discard)

    async def close(self) -> None:
        """Cancel the compensations and backoffs that are being asked."""
        await self.preparation.close(1.0)
        await cancel_all(list(self.compensations), 1.0)

    async def _judge(self, actor: Actor, judging: Judging, ask: Ask) -> None:
        while True:
            try:
                answer = await self._call_failure_callback(actor, ask)
                if (exited := unawaited_exit(actor.exits)) is not None:
                    raise exited
                proceed = partial(judging.send, answer)
            except BaseException as raised:
                if actor.state == ENDED:
                    return  # nobody waits for this answer any longer
                proceed = partial(judging.throw, raised)
            try:
                ask = proceed()
            except StopIteration as judged:
                judgement: Judgement = judged.value
                break
        if judgement.broken is not None:
            raised_text, handled = fault_of(judgement.broken).summary(), ask.fault.summary()
            logger.warning("%s of %s raised %s while handling %s", ask.what, actor.signal.name, raised_text, handled)
        actor.answer(judgement)

    async def _call_failure_callback(self, actor: Actor, ask: Ask) -> Any:
        callback = ask.callback
        traits = self.spawners[actor.step.spawn].traits
        resources = await self.resources_of(callback) if traits.carries_objects else {}
        kwargs = self._kwargs(actor, callback, actor.arguments(), None, ask, resources=resources)
        if self.middleware is not None:
            role = "compensate" if callback is actor.step.compensate else "backoff"
            path = actor.signal.path or actor.signal.name.removeprefix(f"{actor.plan.workflow}/")
            callback = self.middleware.wrap(callback, role, actor.plan.workflow, actor.signal, path)
        if callback.is_async:
            answer = await callback.function(**kwargs)
        elif not traits.interruptible:
            answer = callback.function(**kwargs)
        else:
            answer = await asyncio.to_thread(
                without_stop_iteration, "compensate or backoff", callback.function, **kwargs
            )
        if type(answer) is CoroutineType:  # passed on by a decorator
            answer = await answer
        left = unsent(actor.context, answer, compensating=True)
        if left is not None:
            raise left
        return answer

    def _kwargs(
        self,
        actor: Actor,
        callback: Callback,
        values: dict[str, Any],
        result: Any,
        ask: Ask | None = None,
        resources: Mapping[str, Any] = _EMPTY,
    ) -> dict[str, Any]:
        step = actor.step
        running = callback is step.run or (callback is actor.callback and actor.signal.direction != UNDO)
        if step.takes_signal is not None:
            kwargs: dict[str, Any] = (
                {step.takes_signal: actor.signal._replace(token=values["signal"])} if running else {}
            )
        else:
            kwargs = values if running and not step.has_beside else {name: values[name] for name in callback.takes}
        for name, what in callback.injected.items():
            if what == "ctx":
                if actor.context is None:
                    actor.context = self.make_context(actor)
                kwargs[name] = actor.context
            elif what == "result":
                kwargs[name] = callback.result_of(result)
            elif what == "error":
                kwargs[name] = None if ask is None else ask.error
            elif what.startswith("resource:"):
                kwargs[name] = resources.get(what.removeprefix("resource:"))
            else:
                kwargs[name] = actor.signal.attempt if ask is None else ask.attempt
        return kwargs

    @override
    def make_context(self, actor: Actor) -> Context:
        view = ResourceView(self.resources, actor.plan.resources, self.loop)
        return Context(
            actor.signal,
            actor.plan.workflow,
            actor.step.spawn,
            actor.ends_ns(),
            self.monotonic_ns,
            view,
            actor.heartbeat,
        )
