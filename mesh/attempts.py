"""One attempt of a step inside its policies, and the runs of the step's function that they ask for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bitactor.errors import Cancelled, WorkerLost
from bitactor.patterns.port import Call
from bitactor.signal import Fault, Reply
from mesh.actor import ENDED, QUEUED, REPLIED, STARTED, BitActor
from mesh.faults import fault_of

if TYPE_CHECKING:
    from mesh.host import Host
    from mesh.spawners.port import Spawner


class Onion:
    """One attempt inside its policies, the outermost first.

    Time that passes before the function first starts is no time of the step: the step's timeout counts from that start,
    over all runs and over what policies take between and after them.  When it is over the attempt is, as without
    policies: they are cancelled, and the hop is in doubt.

    Whoever is cancelled inside `proceed()` waits until the function has ended, as it would where it awaited the
    function itself, and gets the value if it ends with one after all; a thread cannot be cancelled, and is waited for.
    Cancelled a second time, or when the outermost policy has ended, nobody
    waits: a coroutine is cancelled, a thread fenced.  Verdicts (`Retry`, `Fail`, `Halt`, `Then`) pass through as the
    function gave them, returned or raised.  What a run emitted is sent if that run and the attempt ended well.
    """

    def __init__(self, host: Host, actor: BitActor, spawner: Spawner) -> None:
        self.actor = actor
        self.stopped = False
        """Whether the attempt was asked to stop; no run begins then."""
        self.unclear: set[Attempt] = set()
        """Runs that have happened, or may have."""
        self.rescued: tuple[Any] | None = None
        """What a run came to that was asked to stop."""
        self.emitted: list[tuple[str, Any]] = []
        self.runs: dict[Attempt, None] = {}
        """Those that have not ended."""
        self._host = host
        self._spawner = spawner
        self._over = False

    async def drive(self) -> None:
        """The whole attempt."""
        actor, policies = self.actor, self._host.policies
        assert policies is not None
        try:
            call = self._call()
        except Exception as unfit:  # a user's model may raise anything
            actor.judge(None, unfit, fault_of(unfit))
            return
        value: Any = None
        error: BaseException | None = None
        try:
            value = await policies.run(actor.step.policies, call, self._proceed)
        except BaseException as raised:
            if isinstance(raised, GeneratorExit) and not self._host.loop.is_running():
                raise  # the loop was closed around us; there is nobody left to tell
            error = raised
        self._over = True
        for attempt in list(self.runs):
            attempt.fence()
        self._end(value, error)

    def stop(self) -> None:
        """Its actor was asked to stop, or has had to answer."""
        self.stopped = True
        for attempt in list(self.runs):
            if self.actor.state == REPLIED:
                attempt.fence()
            elif attempt.state == QUEUED:
                attempt.abandon()  # now: nobody may say of what is about to begin that it never did

    def _call(self) -> Call:
        actor = self.actor
        signal, step = actor.signal, actor.step
        path = signal.path or signal.name.removeprefix(f"{actor.plan.workflow}/")
        arguments: Mapping[str, Any] = actor.arguments()
        if step.takes_signal is not None:
            arguments = {step.takes_signal: signal._replace(token=arguments["signal"])}
        due_ns = None  # before the function first starts, only the transaction's deadline counts
        if signal.budget_ns is not None and signal.budget_ns != step.timeout_ns:
            due_ns = self._host.monotonic_ns() + signal.budget_ns

        def deadline() -> int | None:
            return due_ns if actor.state == QUEUED else actor.ends_ns()

        return Call(
            actor.plan.workflow, path, signal.transaction, signal.attempt, MappingProxyType(arguments), deadline
        )

    async def _proceed(self) -> Any:
        """One run of the function."""
        host, callback = self._host, self.actor.callback
        resources = {} if self._over or self.stopped else await host.provide(callback)
        if self._over or self.stopped:  # perhaps meanwhile, if the policy has left us behind
            raise asyncio.CancelledError("the attempt is over")
        attempt = Attempt(self, self._spawner)
        attempt.kwargs = host.kwargs_of(attempt, callback, resources)
        self.runs[attempt] = None
        host.loop.call_soon(hand_over, attempt, self._spawner)
        stopped = False
        while True:
            try:
                return await asyncio.shield(attempt.ended)
            except asyncio.CancelledError:
                if attempt.ended.cancelled():
                    raise
                if attempt.ended.done():  # in the very turn in which we were cancelled: it has ended as it has
                    value = attempt.ended.result()
                    self.rescued = (value,)
                    return value
                if stopped:
                    attempt.fence()
                    raise
                stopped = True
                attempt.abandon()
            except GeneratorExit:
                attempt.fence()
                raise

    def _end(self, value: Any, error: BaseException | None) -> None:
        """The outermost policy has ended: what it came to is what the attempt came to."""
        actor = self.actor
        if actor.state == ENDED:
            return
        if actor.state == QUEUED:
            actor.begin()
        if self.stopped and isinstance(error, asyncio.CancelledError):
            if self.rescued is not None:
                value, error = self.rescued[0], None
            elif not self.unclear:
                stopped = Cancelled(
                    f"{actor.signal.name!r} was stopped while none of its runs was under way, and all had failed"
                )
                actor.judge(None, stopped, fault_of(stopped))
                return
        if error is None and self.emitted:
            actor.context = self._host.context_of(actor)
            actor.context.adopt(self.emitted)
        actor.settle(value, error)


class Attempt(BitActor):
    """One run of a hop's function inside its policies: what becomes of it is theirs to judge."""

    __slots__ = ("ended", "onion")

    def __init__(self, onion: Onion, spawner: Spawner) -> None:
        outer = onion.actor
        super().__init__(
            outer.host, outer.plan, outer.step, outer.signal, outer.callback, outer.arguments, spawner, _nobody
        )
        self.onion = onion
        if outer.place is not None:
            self.place = outer.place
        self.ended: asyncio.Future[Any] = outer.host.loop.create_future()
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())

    def begin(self) -> None:
        """The function starts; so does the time of the hop, if this is the first run."""
        self.state = STARTED
        self.started_ns = self.host.monotonic_ns()
        if self.onion.actor.state == QUEUED:
            self.onion.actor.begin()

    def ends_ns(self) -> int | None:
        """See `BitActor`."""
        return self.onion.actor.ends_ns()

    def heartbeat(self, data: Any) -> None:
        """See `BitActor`."""
        if self.state == STARTED:
            self.onion.actor.heartbeat(data)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.host.call_threadsafe(self._follow)

    def _follow(self) -> None:
        """The end of the attempt may have been put off."""
        if self.context is not None:
            self.context.deadline_ns = self.ends_ns()

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The function returned or raised."""
        if self.state == ENDED:
            return
        onion = self.onion
        self._rest()
        if error is None:
            if self.context is not None:
                onion.emitted.extend(self.context.emitted())
            onion.unclear.add(self)  # and whether that is all there is to it only its policies know
            if self.stopping:
                onion.rescued = (value,)
            if not self.ended.done():
                self.ended.set_result(value)
            return
        if self.stopping and isinstance(error, asyncio.CancelledError):
            onion.unclear.add(self)
        else:
            onion.unclear.discard(self)
        if not self.ended.done():
            self.ended.set_exception(
                RuntimeError(f"it raised {error!r}") if isinstance(error, StopIteration) else error
            )

    def judge(self, verdict: Any, error: BaseException, fault: Fault) -> None:
        """It could not be handed over."""
        self.settle(None, error)

    def lose(self) -> None:
        """See `BitActor`."""
        self.settle(None, WorkerLost(f"the process that ran {self.signal.name!r} is gone"))
        self.onion.unclear.add(self)

    def abandon(self) -> None:
        """Ask it to stop: what is cancelled is still to end, and so is what runs in a thread."""
        if self.state == QUEUED:
            self.spawner.abandon(self)
            self._rest()
            self.ended.cancel()
        elif self.state != ENDED:
            self._stop_once()

    def fence(self) -> None:
        """Nobody waits for it any more, and its place is free for others."""
        if self.state == STARTED:
            self.onion.unclear.add(self)
            self.stopping = True
            self._become_zombie()
            self.spawner.abandon(self)
        else:
            self.abandon()

    def _rest(self) -> None:
        if self.state == REPLIED:
            self.host.zombies.discard(self)
        self.state = ENDED
        self.onion.runs.pop(self, None)


def hand_over(actor: BitActor, spawner: Spawner) -> None:
    """Outside of any task, where a task of its own can be begun at once."""
    if actor.state != QUEUED:
        return
    actor.spawner = spawner
    try:
        spawner.start(actor)
    except Exception as error:
        actor.judge(None, error, fault_of(error))


def _nobody(actor: BitActor, reply: Reply, error: BaseException | None) -> None:
    """A run answers to its policies."""
