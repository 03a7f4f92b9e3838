"""Preparation of a hop before its function runs: making its resources, and running an attempt inside its policies, with
the runs of the function that they ask for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from typing_extensions import override

from bitactor.declare.policy import Call
from bitactor.declare.spawners import SpawnerTraits
from bitactor.errors import Cancelled, WorkerLost
from bitactor.messages.signal import UNDO, Fault
from bitactor.messages.values import shown
from bitactor.saga.verdict import unsent
from mesh.hops.actor import BitActor
from mesh.hops.exits import unawaited_exit
from mesh.hops.lifecycle import cancel_all
from mesh.hops.ports import ENDED, QUEUED, REPLIED, STARTED, Actor, ActorExecutor, Spawner


class Preparation(Spawner):
    """A spawner that prepares hops and passes each on to the real one.

    Waiting for resources does not count towards the step's timeout.
    """

    traits = SpawnerTraits(on_loop=True)

    def __init__(self, executor: ActorExecutor) -> None:
        self._executor = executor
        self._tasks: dict[Actor, asyncio.Task[None]] = {}
        self._chains: dict[Actor, PolicyChain] = {}

    @override
    def start(self, actor: Actor) -> None:
        """Prepare the actor, which is queued, in a task; then its own spawner has it."""
        spawner, actor.spawner = actor.spawner, self
        executor = self._executor
        if actor.step.policies and actor.signal.direction != UNDO and executor.policies is not None:
            chain = self._chains[actor] = PolicyChain(executor, actor, spawner)
            work = chain.execute()
        else:
            work = self._provide_resources(actor, spawner)
        task = executor.start_task(work, f"prepare {actor.signal.name}", executor.contextvars_for(actor))
        if task.done():
            self._forget(actor)
            return
        actor.task = task
        self._tasks[actor] = task
        task.add_done_callback(lambda _: self._forget(actor))

    @override
    def abandon(self, actor: Actor) -> None:
        """Cancels the wait for resources; a policy chain that runs is asked to stop."""
        task, chain = self._tasks.get(actor), self._chains.get(actor)
        first = chain is None or not chain.stop_requested
        if chain is not None:
            chain.stop()
        if task is not None and first:
            task.cancel()

    @override
    async def close(self, timeout: float) -> None:
        """Cancels the preparations and policy chains that run, and waits for them."""
        tasks = list(self._tasks.values())
        for actor in list(self._tasks):
            actor.stop_requested = True
            if actor in self._chains:
                self._chains[actor].stop()
        await cancel_all(tasks, timeout)

    def runs(self, actor: Actor) -> list[Actor]:
        """The runs of a hop's function inside its policies that have not ended."""
        chain = self._chains.get(actor)
        return [] if chain is None else list(chain.runs)

    async def _provide_resources(self, actor: Actor, spawner: Spawner) -> None:
        executor, callback = self._executor, actor.callback
        try:
            resources = await executor.resources_of(callback)
        except BaseException as error:
            if actor.state == QUEUED:
                actor.begin(runs=False)
                actor.finish(None, error)
            return
        if actor.state != QUEUED:
            return
        try:
            actor.kwargs = executor.kwargs_of(actor, callback, resources)
        except BaseException as error:  # a user's model may raise anything
            actor.fail(error)
        else:
            actor.task = None
            executor.loop.call_soon(start_queued, actor, spawner)

    def _forget(self, actor: Actor) -> None:
        self._tasks.pop(actor, None)
        self._chains.pop(actor, None)


class PolicyChain:
    """Runs one attempt inside its policies, the outermost first.

    Time that passes before the function first starts is no time of the step: the step's timeout counts from that start,
    over all runs and over what policies take between and after them.  When it is over the attempt is, as without
    policies: they are cancelled, and the hop is in doubt.

    Whoever is cancelled inside `proceed()` waits until the function has ended, as it would where it awaited the
    function itself, and gets the value if it ends with one after all; a thread cannot be cancelled, and is waited for.
    Cancelled a second time, or when the outermost policy has ended, nobody waits: a coroutine is cancelled, a thread
    fenced.  Verdicts (`Retry`, `Fail`, `Halt`, `Then`) pass through as the function gave them, returned or raised.
    What a run emitted is sent if that run and the attempt ended well.
    """

    def __init__(self, executor: ActorExecutor, actor: Actor, spawner: Spawner) -> None:
        self.actor = actor
        self.stop_requested = False  # whether the attempt was asked to stop; no run begins after that
        self.started = 0  # runs whose function has been started
        self.in_doubt: set[FunctionRun] = set()  # runs that have happened, or may have
        # The value of a run that ended well after it was asked to stop, as a 1-tuple
        self.value_after_stop: tuple[Any] | None = None
        self.emitted: list[tuple[str, Any]] = []
        # Runs that have not ended, oldest first (a dictionary as an ordered set)
        self.runs: dict[FunctionRun, None] = {}
        self._executor = executor
        self._spawner = spawner
        self._ended = False

    async def execute(self) -> None:
        """Run the whole attempt and finish its actor."""
        actor, policies = self.actor, self._executor.policies
        assert policies is not None
        try:
            call = self._make_call()
        except BaseException as unfit:  # a user's model may raise anything
            actor.fail(unfit)
            return
        value: Any = None
        error: BaseException | None = None
        try:
            value = await policies.run(actor.step.policies, call, self._proceed)
        except BaseException as raised:
            if type(raised) is GeneratorExit and not self._executor.loop.is_running():
                raise  # the loop was closed around us; there is nobody left to tell
            error = raised
        self._ended = True
        for run in list(self.runs):
            run.fence()
        self._end(value, error)

    def stop(self) -> None:
        """Stop the runs: the attempt's actor was asked to stop, or has replied (then they are fenced)."""
        self.stop_requested = True
        for run in list(self.runs):
            if self.actor.state == REPLIED:
                run.fence()
            elif run.state == QUEUED:
                run.abandon()  # now: nobody may say of what is about to begin that it never did

    def _make_call(self) -> Call:
        actor = self.actor
        signal, step = actor.signal, actor.step
        path = signal.path or signal.name.removeprefix(f"{actor.plan.workflow}/")
        arguments: Mapping[str, Any] = actor.arguments()
        if step.has_beside:
            arguments = {name: arguments[name] for name in step.run.takes}
        if step.takes_signal is not None:
            arguments = {step.takes_signal: signal._replace(token=arguments["signal"])}
        due_ns = None  # before the function first starts, only the transaction's deadline counts
        if signal.budget_ns is not None and signal.budget_ns != step.timeout_ns:
            due_ns = self._executor.monotonic_ns() + signal.budget_ns

        def deadline() -> int | None:
            return due_ns if actor.state == QUEUED else actor.ends_ns()

        return Call(
            actor.plan.workflow, path, signal.transaction, signal.attempt, MappingProxyType(arguments), deadline
        )

    async def _proceed(self) -> Any:
        """Run the function once, for the innermost policy; returns its value or raises its exception."""
        executor, callback = self._executor, self.actor.callback
        resources = {} if self._ended or self.stop_requested else await executor.resources_of(callback)
        if self._ended or self.stop_requested:  # perhaps meanwhile, if the policy has left us behind
            raise asyncio.CancelledError("the attempt is over")
        run = FunctionRun(self, self._spawner)
        run.kwargs = executor.kwargs_of(run, callback, resources)
        self.runs[run] = None
        executor.loop.call_soon(start_queued, run, self._spawner)
        stopped = False
        while True:
            try:
                return await asyncio.shield(run.ended)
            except asyncio.CancelledError:
                if run.ended.cancelled():
                    raise
                if run.ended.done():  # in the very turn in which we were cancelled: it has ended as it has
                    value = run.ended.result()
                    self.value_after_stop = (value,)
                    return value
                if stopped:
                    run.fence()
                    raise
                stopped = True
                run.abandon()
            except GeneratorExit:
                run.fence()
                raise

    def _end(self, value: Any, error: BaseException | None) -> None:
        """Finish the actor with what the outermost policy returned or raised."""
        actor = self.actor
        if actor.state == ENDED:
            return
        if actor.state == QUEUED:
            actor.begin(runs=False)
        if self.stop_requested and issubclass(type(error), asyncio.CancelledError):
            if self.value_after_stop is not None:
                value, error = self.value_after_stop[0], None
            elif not self.in_doubt:
                stopped = Cancelled(
                    f"{actor.signal.name!r} was stopped while none of its runs was under way, and all had failed"
                )
                actor.fail(stopped)
                return
        if error is None and self.emitted:
            actor.context = self._executor.make_context(actor)
            actor.context.adopt(self.emitted)
        actor.finish(value, error)


class FunctionRun(BitActor):
    """One run of a hop's function inside its policies, which decide what its outcome means."""

    __slots__ = ("chain", "ended")

    def __init__(self, chain: PolicyChain, spawner: Spawner) -> None:
        outer = chain.actor
        super().__init__(
            outer.executor,
            outer.plan,
            outer.step,
            outer.signal,
            outer.callback,
            outer.arguments,
            spawner,
            lambda actor, reply, error: None,  # a run answers to its policies, by `ended`
            permits=outer.permits,
            lease=outer.lease,
        )
        self.chain = chain
        self.ended: asyncio.Future[Any] = outer.executor.loop.create_future()
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())

    @override
    def begin(self, *, runs: bool = True, timed: bool = True) -> bool:
        """Start this run, and the hop's time if it is the first run."""
        executor = self.executor
        now = executor.monotonic_ns()
        if (now >= executor.lease_until_ns or self.lease is not None) and now >= self.starts_until_ns():
            self.give_back()
            return False
        self.state = STARTED
        self.started_ns = now
        self.chain.started += 1
        if self.chain.actor.state == QUEUED:
            self.chain.actor.begin(runs=False)
        return True

    @override
    def keep_time(self) -> None:
        """Nothing: the hop's actor keeps the time of all runs."""

    @override
    def give_back(self) -> None:
        """A run of a hop from elsewhere takes its whole attempt with it: that has not started, or is lost."""
        chain, stopped = self.chain, self.state == REPLIED or self.stop_requested
        if self.lease is None and not stopped:
            super().give_back()
            return
        if self.state != QUEUED:
            chain.started -= 1
        chain.in_doubt.discard(self)
        self._mark_ended()
        self.ended.cancel()
        if stopped:
            return
        chain.stop_requested = True
        if chain.started:
            chain.actor.worker_lost()
        else:
            chain.actor.give_back()

    @override
    def ends_ns(self) -> int | None:
        """The end of the whole attempt, which all its runs share."""
        return self.chain.actor.ends_ns()

    @override
    def heartbeat(self, data: Any) -> None:
        """Passed on to the hop's actor; this run's context gets the renewed deadline."""
        if self.state == STARTED:
            self.chain.actor.heartbeat(data)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.executor.call_threadsafe(self._refresh_deadline)

    def _refresh_deadline(self) -> None:
        """Show the function the attempt's deadline, which a heartbeat may have put off."""
        if self.context is not None:
            self.context.deadline_ns = self.ends_ns()

    @override
    def finish(self, value: Any, error: BaseException | None) -> None:
        """Hand the function's value or exception to the policy that awaits this run."""
        if self.state == ENDED:
            return
        chain = self.chain
        self._mark_ended()
        if self.exits and error is None:
            error = unawaited_exit(self.exits)
        if error is None:
            error = unsent(self.context, value)
        if error is None:
            if self.context is not None:
                chain.emitted.extend(self.context.end())
            chain.in_doubt.add(self)  # and whether that is all there is to it only its policies know
            if self.stop_requested:
                chain.value_after_stop = (value,)
            if not self.ended.done():
                self.ended.set_result(value)
            return
        if self.stop_requested and issubclass(type(error), asyncio.CancelledError):
            chain.in_doubt.add(self)
        else:
            chain.in_doubt.discard(self)
        if not self.ended.done():
            self.ended.set_exception(
                RuntimeError(f"it raised {shown(error)}") if issubclass(type(error), StopIteration) else error
            )

    @override
    def fail(self, error: BaseException, fault: Fault | None = None) -> None:
        """Raise `error` in the policy that awaits this run, which the spawner could not start."""
        self.finish(None, error)

    @override
    def worker_lost(self) -> None:
        """Raise `WorkerLost` in the policy that awaits this run; it stays in doubt."""
        self.finish(None, WorkerLost(f"the process that ran {self.signal.name!r} is gone"))
        self.chain.in_doubt.add(self)

    @override
    def abandon(self) -> None:
        """Ask this run to stop; a run that has started ends later, in a thread when its function returns."""
        if self.state == QUEUED:
            self.spawner.abandon(self)
            self._mark_ended()
            self.ended.cancel()
        elif self.state != ENDED:
            self._stop_once()

    @override
    def fence(self) -> None:
        """Stop waiting for this run; its thread is free for others."""
        if self.state == STARTED:
            self.chain.in_doubt.add(self)
            self.stop_requested = True
            self._become_zombie()
            self.spawner.abandon(self)
        else:
            self.abandon()

    def _mark_ended(self) -> None:
        if self.state == REPLIED:
            self.executor.zombies.discard(self)
        self.state = ENDED
        self.chain.runs.pop(self, None)


def start_queued(actor: Actor, spawner: Spawner) -> None:
    """Start an actor that is still queued; called outside of any task, where a task of its own can be begun at once."""
    if actor.state != QUEUED:
        return
    actor.spawner = spawner
    try:
        spawner.start(actor)
    except BaseException as error:
        actor.fail(error)
