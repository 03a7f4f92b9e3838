"""The ports of hops, and the shapes that stand on both sides of them: an actor, its executor, its spawner, its permits.

An actor is given to a spawner by its executor, and asks both for things in turn; each knows the others by what is
written here.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.declare.spawners import SpawnerTraits
from bitactor.messages.signal import Fault, Reply, Signal
from bitactor.plan.arguments import BoundArguments, RawArguments, RemoteArguments
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.saga.verdict import Ask, Judgement, Judging
from mesh.hops.policies import Policies
from mesh.limits.pools import PermitSet, Pool
from mesh.limits.priority_queue import Rank
from mesh.limits.timing_wheel import TimingWheel

QUEUED: Final = 0
STARTED: Final = 1
REPLIED: Final = 2
"""State of an actor that has replied (timed out) while the user's function still runs: a zombie."""
ENDED: Final = 3

Arguments = BoundArguments | RemoteArguments | RawArguments
"""Makes the keyword arguments of a step's function, fresh at each call."""
Compensation = tuple["asyncio.Task[None]", Ask]
"""The task that asks a compensation or backoff function, and what it began with."""
Done = Callable[["Actor", Reply, BaseException | None], None]
"""Called with an actor, its reply, and the exception behind it if that was raised in this process."""


class ActorPermits(PermitSet):
    """The permits that an actor holds while its function runs, and lends while that function waits for other hops."""

    __slots__ = ("depth",)

    def __init__(self, lendable: tuple[Pool, ...], retained: tuple[Pool, ...], rank: Rank, depth: int) -> None:
        super().__init__(lendable, retained, rank)
        self.depth = depth  # how many hops wait for another above the transaction that this hop is of


FOREVER: Final = (1 << 63) - 1
"""A moment of the monotonic clock that never comes."""


class Lease(Protocol):
    """The right to start a hop's function, given from elsewhere; it may end while the hop waits here, or while this
    process sleeps."""

    def until_ns(self) -> int:
        """Until when the function may start, by the monotonic clock, as far as is known; from any thread."""


class Actor(Protocol):
    """The actor of one delivery of one signal, or of one run of its function inside policies, as its executor and its
    spawner see it.

    An actor lives on the loop's thread, except where a method says otherwise.
    """

    executor: ActorExecutor
    plan: Plan
    step: PlanStep
    signal: Signal
    callback: Callback
    """The function to call: `run` or `undo` of the step, perhaps with middleware around it."""
    arguments: Arguments
    kwargs: dict[str, Any]
    """The keyword arguments that the function is called with; set before a spawner starts the actor."""
    result: Any
    """For an undo, the token of the result that it takes back."""
    permits: ActorPermits | None
    """The permits held for this actor; None for a hop without a limit, as most are."""
    lease: Lease | None
    """The right to start that came with a signal from elsewhere; None: the hop is this node's own."""
    spawner: Spawner
    holder: str | int
    """Who runs the function, where that is another process: its pid; else empty."""
    state: int
    """The actor's state: `QUEUED | STARTED | REPLIED | ENDED`."""
    context: Context | None
    """The context that the function was given about its hop; None if it has not asked for one."""
    task: Any
    """The asyncio task that the actor's function, or its preparation, runs in; None if there is none."""
    stop_requested: bool
    """Whether this actor was asked to stop; a `CancelledError` that comes after that is ours."""
    exits: list[asyncio.Task[Any]]
    """Tasks that the actor's function made, and that exited; it has the context variables that lead here, no longer
    than they last."""
    compensating: Compensation | None
    """Set while the actor's compensation or backoff is being asked."""

    @override
    def __hash__(self) -> int: ...

    @property
    def rank(self) -> Rank:
        """The actor's order among those that wait for a thread or a process."""

    def begin(self, *, runs: bool = True, timed: bool = True) -> bool:
        """Note that the user's function starts now: its time counts from here.  False: it may not, and the spawner
        forgets the actor, which is started again if the hop is still wanted.

        `runs` is False where the attempt begins without its function, which then may.  `timed` is False where the loop
        does nothing else until the function suspends or ends; `keep_time` is called for one that suspends.
        """

    def keep_time(self) -> None:
        """Have the time of the attempt, which has started, kept from now on; twice is once."""

    def starts_until_ns(self) -> int:
        """Until when the function may start, by the monotonic clock, after `begin` too; from any thread."""

    def give_back(self) -> None:
        """Note, after `begin`, that the user's function has not started and may not any more, as if `begin` had
        answered False."""

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Take what the user's function returned (`error` is None) or raised."""

    def relay_reply(self, reply: Reply, error: BaseException | None = None) -> None:
        """Reply as a worker process has answered for the function it ran."""

    def worker_lost(self) -> None:
        """Reply that the worker process which ran the function is gone."""

    def fail(self, error: BaseException, fault: Fault | None = None) -> None:
        """End the attempt as failed with `error` for good, without asking its compensation."""

    def answer(self, judgement: Judgement) -> None:
        """End the attempt as judged."""

    def ends_ns(self) -> int | None:
        """When the attempt's time is over, by the monotonic clock; None: never."""

    def heartbeat(self, data: Any) -> None:
        """Note that the user's function goes on, with `data` as its progress; from any thread."""


class ActorExecutor(Protocol):
    """An executor as actors, spawners, and what stands between the two see it."""

    loop: asyncio.AbstractEventLoop
    monotonic_ns: Callable[[], int]
    wheel: TimingWheel
    lease_until_ns: int
    """A moment until which this node may start hops of its own transactions; `own_lease_until_ns` may know a later
    one."""
    replied_ns: int
    """When an actor replied last in the ordinary way, by the monotonic clock."""
    enforces_timeouts: bool
    """Whether this executor keeps attempts' timeouts; False in a worker process, whose parent does."""
    zombies: set[Actor]
    """Actors that have replied for a function which still runs."""
    policies: Policies | None
    start_task: Callable[[Coroutine[Any, Any, None], str, contextvars.Context], asyncio.Task[None]]
    """Makes a task of a coroutine and runs its first step before returning."""

    def call_threadsafe(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop's thread, from any thread."""

    def contextvars_for(self, actor: Actor) -> contextvars.Context:
        """The context variables a hop starts with: its own copy."""

    def own_lease_until_ns(self) -> int:
        """Until when this node may start hops of its own transactions, as far as is known; from any thread."""

    def hold(self, actor: Actor) -> None:
        """Start an actor that has not started once this node's lease on its transactions has been renewed."""

    def judge(self, actor: Actor, judging: Judging) -> None:
        """End an attempt as its judging says, after asking the step's `compensate` and `backoff` if that wants it."""

    async def resources_of(self, callback: Callback) -> dict[str, Any]:
        """The resources that a function asks for, by name.

        Raises:
            ResourceUnavailable: a resource could not be made.
        """

    def kwargs_of(self, actor: Actor, callback: Callback, resources: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of one call of a hop's function, with its resources; fresh each time."""

    def make_context(self, actor: Actor) -> Context:
        """A fresh `Context`: what a function that asks for it is told about its hop."""


class Spawner(Protocol):
    """A place where actors' functions run.  All methods are called on the loop's thread.

    For each actor started it calls `actor.begin()` when the function starts, and runs it only if that answers True;
    where time may pass after that, it looks at `actor.starts_until_ns()` once more, and calls `actor.give_back()` if
    that moment is over.  Of one that runs it calls `actor.finish(value, error)` (or
    `relay_reply`, or `worker_lost`) when it has ended, on the loop's thread, whatever the function raises: `SystemExit`
    and `KeyboardInterrupt` included.
    """

    traits: SpawnerTraits
    """What the spawner says of itself."""

    def start(self, actor: Actor) -> None:
        """Run the actor's function, now or when there is a free place.  The actor may finish before this returns."""

    def abandon(self, actor: Actor) -> None:
        """Stop the actor's function if that is possible here; forget an actor that is queued.  Nothing happens to one
        that is not here."""

    async def close(self, timeout: float) -> None:
        """Stop all functions and release threads or processes, within `timeout` seconds.  Twice is once."""
