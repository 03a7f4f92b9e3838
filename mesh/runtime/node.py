"""A node: one process's part of the mesh.  Makes the parts, connects them, and takes them down in the right order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from bitactor.consumer import Consumer
from bitactor.errors import (
    BitActorError,
    DefinitionError,
    DuplicateName,
    InvalidInput,
    StoreError,
    UnknownTransaction,
    Unroutable,
)
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault, Stimulus
from bitactor.plan.plan import Plan
from bitactor.ports import Clock, Ids, Sink, Store, TransactionRow
from bitactor.saga import CancelRequested, ResumeRequested, Saga, UndoRequested
from bitactor.workflow import Workflow
from mesh.hops.executor import Executor
from mesh.hops.middleware import Middleware
from mesh.hops.policies import Policies
from mesh.hops.ports import Spawner
from mesh.hops.resources import ResourceManager
from mesh.limits.pools import Pools
from mesh.limits.timing_wheel import SystemClock, TimingWheel
from mesh.runtime.emissions import Emissions
from mesh.runtime.ids import TimeOrderedIds
from mesh.runtime.intake import Intake
from mesh.runtime.live import LiveTransaction
from mesh.runtime.names import consumer_name
from mesh.runtime.ports import Network
from mesh.runtime.recovery import Recovery, shape_changed
from mesh.runtime.settings import Settings
from mesh.runtime.supervisor import Supervisor
from mesh.runtime.watchdog import Blockages, Watchdog
from mesh.sinks import OtelSink, SinkRelay
from mesh.spawners import ADDED
from mesh.spawners.loop import InlineSpawner, LoopSpawner
from mesh.spawners.process.spawner import ProcessSpawner
from mesh.spawners.thread import ThreadSpawner
from mesh.stores import open_store
from registry import Entry, LocalRegistry, Notice, Registry

logger = logging.getLogger("bitactor.node")

T = TypeVar("T")
COLLAPSE_DRAIN = 1.0
"""Seconds that running transactions are given when the worker processes have collapsed."""
FLUSH_WITHIN = 5.0
"""Seconds that policies may take to flush what they hold back."""
SINKS_WITHIN = 5.0
"""Seconds that sinks may take to flush at the end; one that cannot be reached gives up sooner by itself."""


class Node:
    """One process's part of the mesh; lives on one event loop.

    Args:
        network: makes the network that connects the node to others, when the node opens; None: it is alone.
    """

    def __init__(
        self,
        definitions: Iterable[Workflow | Consumer],
        settings: Settings,
        *,
        network: Callable[[Node], Network] | None = None,
        sinks: Sequence[Sink] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        replace: Mapping[str, Any] | None = None,
        middleware: Sequence[Any] = (),
    ) -> None:
        self.settings = settings
        self.pools = Pools(settings.pools)
        self.workflows: dict[str, Workflow] = {}
        self.plans: dict[str, Plan] = {}
        self.consumers: dict[tuple[str, str], Plan] = {}
        self._declare(definitions)
        self.resources = ResourceManager(self.plans.values(), replace or {}, lambda: self.clock)
        self.policies = Policies(self.plans.values(), lambda: self.clock)
        self.middleware = Middleware(middleware)
        self._sinks = [(sink, SinkRelay(sink)) for sink in sinks]
        self._traced = any(isinstance(sink, OtelSink) for sink in sinks)
        self._clock_given = clock
        self.ids = ids or TimeOrderedIds()
        self.id = f"n{self.ids.transaction()[-12:]}"
        self.state = "new"
        """The node's state: `new | open | draining | closed`."""
        self.collapsed = ""
        """Why this node ended by itself; empty if it did not."""
        self.collapse = asyncio.Event()
        """Set when the node ends by itself."""
        self._ending: asyncio.Task[None] | None = None
        self._skip_drain = asyncio.Event()
        self._released = asyncio.Event()
        self._make_network = network
        self._network: Network | None = None
        self._watchdog: Watchdog | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def _declare(self, definitions: Iterable[Workflow | Consumer]) -> None:
        for definition in definitions:
            if not isinstance(definition, Workflow | Consumer):
                raise DefinitionError(f"Mesh takes workflows and consumers, not {definition!r}")
            plan = definition.check()
            self.pools.declare(plan)
            if plan.workflow in self.plans:
                raise DuplicateName(f"two definitions are called {plan.workflow!r}; names are unique in a mesh")
            self.plans[plan.workflow] = plan
            if isinstance(definition, Workflow):
                self.workflows[definition.name] = definition
            else:
                if (plan.listens, plan.group) in self.consumers:
                    raise DuplicateName(
                        f"two consumers of {plan.listens!r} are in group {plan.group!r}; give one of them group=…"
                    )
                self.consumers[plan.listens, plan.group] = plan

    # Opening and closing

    async def open(self) -> None:
        """Start all parts; on failure those that were started are taken down again."""
        if self.state != "new":
            raise BitActorError(f"this mesh is {self.state}; make a new one")
        self.state = "open"
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.clock: Clock = self._clock_given or SystemClock(self.loop)
        self.wheel = TimingWheel(self.clock)
        self.store: Store = open_store(
            self.settings.store, durability=self.settings.durability, lease=self.settings.lease, notify=self._notify
        )
        try:
            self.store.open(self.id)
            self._create_parts()
            if self.settings.blocked_after:
                self._watchdog = Watchdog(self.loop, self.settings.blocked_after)
                self._watchdog.start()
            await self._join_registry()
            self.recovery.start(polling=self.store.shared)
        except BaseException:
            await self.close(drain=0)
            raise

    def _create_parts(self) -> None:
        settings = self.settings
        self.processes = ProcessSpawner(settings.processes)
        self.processes.on_collapse = self._collapse
        self.processes.replaced = tuple(self.resources.replaced)
        self.threads = ThreadSpawner(settings.threads)
        self.spawners: dict[str, Spawner] = {
            **{name: make() for name, make in ADDED.items()},
            "inline": InlineSpawner(),
            "loop": LoopSpawner(),
            "thread": self.threads,
            "process": self.processes,
        }
        self.executor = Executor(self.loop, self.clock, self.wheel, self.spawners, traced=self._traced)
        self.executor.resources, self.executor.policies = self.resources, self.policies
        self.executor.middleware = self.middleware if len(self.middleware) else None
        on_pulses = self._offer_to_sinks if self._sinks else None
        self.supervisor = Supervisor(
            self.loop,
            self.clock,
            self.wheel,
            self.store,
            self.executor,
            on_pulses=on_pulses,
            pools=self.pools,
        )
        self.intake = Intake(
            self.supervisor,
            self.ids,
            settings,
            self.workflows,
            self.plans,
            self.consumers,
            load=self.load,
            require_open=self.require_open,
            takes_signals=lambda foreign: self.state == "open" or (self.state == "draining" and not foreign),
        )
        self.recovery = Recovery(self.loop, self.store, self.supervisor, self.id, self.plans, settings.lease)

    async def _join_registry(self) -> None:
        """Join the registry, or make a local one, and register what this node does."""
        if self._make_network is not None:
            self._network = self._make_network(self)
            self.registry: Registry = await self._network.open()
        else:
            self.registry = LocalRegistry(self.id)
            self.registry.start()
        self.emissions = Emissions(self.supervisor, self.registry, self.clock, self.wheel, self._send_stimulus)
        self.supervisor.emissions = self.emissions
        self._watch = self.registry.watch(self._on_notice)
        if self._network is not None:
            await self._network.announce()
        elif self.settings.hosts:
            for name, value in self.consumer_entries().items():
                self.registry.register(name, value)

    def consumer_entries(self) -> dict[str, dict[str, Any]]:
        """Registrations of our consumers: name → value."""
        entries: dict[str, dict[str, Any]] = {}
        for plan in self.consumers.values():
            entry = entries.setdefault(consumer_name(plan.listens), {"groups": [], "endpoint": self.endpoint})
            entry["groups"].append([plan.group, plan.broadcast])
        return entries

    @property
    def endpoint(self) -> str:
        """Where other nodes reach this one; empty when it is alone."""
        return self._network.endpoint if self._network is not None else ""

    def _collapse(self, why: str) -> None:
        """End the node, for its worker processes keep failing, so that whoever started this process starts it afresh.

        What runs stays in the journal.
        """
        if self.collapsed or self.state != "open":
            return
        self.collapsed = why
        self.supervisor.healthy = False
        self.processes.freeze()
        logger.critical("this node ends: %s", why)
        self.collapse.set()
        self._ending = self.loop.create_task(self.close(min(self.settings.drain, COLLAPSE_DRAIN)), name="collapse")

    async def close(self, drain: float | None = None) -> None:
        """Stop taking work, wait for what runs, hand the rest to the journal, release everything.

        Called again while that goes on, it stops the waiting and returns when everything is released; later calls do
        nothing.
        """
        if self.state == "new":
            self.state = "closed"
        if self.state == "closed":
            return
        if self.state == "draining":
            self._skip_drain.set()
            await self._released.wait()
            return
        self.state = "draining"
        try:
            if hasattr(self, "supervisor"):
                await self._drain(self.settings.drain if drain is None else drain)
        finally:
            try:
                await self._release()
            finally:
                self.state = "closed"
                self._released.set()

    async def _drain(self, seconds: float) -> None:
        self.policies.drain()
        if self._network is not None:
            await self._network.withdraw()
        deadline = self.loop.time() + seconds
        while self._busy() and not self._skip_drain.is_set() and (left := deadline - self.loop.time()) > 0:
            await self.intake.wait_for_settlement(min(left, 0.1))
        if self.supervisor.running_count:
            logger.warning(
                "%d transactions were still running after %g s of draining", self.supervisor.running_count, seconds
            )

    def _busy(self) -> bool:
        return self.supervisor.running_count > 0 or (hasattr(self, "emissions") and self.emissions.delivering())

    async def _release(self) -> None:
        if hasattr(self, "emissions"):
            self._watch.cancel()
            self.emissions.close()
        if hasattr(self, "recovery"):
            self.recovery.stop()
        if hasattr(self, "supervisor"):
            await self.policies.close(FLUSH_WITHIN)
            self.supervisor.close()
        if self._network is not None:
            await self._network.close()
        elif hasattr(self, "registry"):
            self.registry.close()
        if hasattr(self, "executor"):
            await (
                self.executor.close()
            )  # after the network: what is stopped here for others is not told as if it had ended
        for spawner in getattr(self, "spawners", {}).values():
            await spawner.close(2.0)
        await self.resources.close()
        if hasattr(self, "wheel"):
            self.wheel.close()
        self.store.close()
        for task in list(self._tasks):
            task.cancel()
        if self._watchdog is not None:
            self._watchdog.stop()
        await asyncio.gather(*(asyncio.to_thread(relay.close, SINKS_WITHIN) for _, relay in self._sinks))

    def _send_stimulus(self, entry: Entry, stimulus: Stimulus) -> None:
        if entry.holder == self.id:
            self.intake.receive(stimulus, self.emissions.on_receipt)
        elif self._network is not None:
            self._network.send_stimulus(entry, stimulus)

    def _on_notice(self, notice: Notice) -> None:
        """Take a notice that a name appeared or disappeared; called on the registry's thread."""
        try:
            self.loop.call_soon_threadsafe(self._apply_notice, notice)
        except RuntimeError:
            return  # the loop is closed

    def _apply_notice(self, notice: Notice) -> None:
        if self.state == "closed":
            return
        if notice.kind == "appeared":
            self.emissions.appeared(notice.entry.name)
        elif notice.kind == "disappeared":
            self.emissions.disappeared(notice.entry.holder)
        if self._network is not None:
            self._network.on_notice(notice)

    # Transactions

    def load(self, transaction: str) -> LiveTransaction:
        """A transaction of ours, or, read only, one from the store.

        Raises:
            UnknownTransaction: there is none, or its workflow is not declared here.
            StoreError: its pulses make no sense, or not to the workflow as it is declared here.
        """
        live = self.supervisor.transactions.get(transaction)
        if live is not None:
            return live
        pulses = self.store.pulses(transaction)
        if not pulses:
            raise UnknownTransaction(f"no transaction {transaction!r} in {self.settings.store}")
        plan = self.plans.get(pulses[0].workflow)
        if plan is None:
            raise UnknownTransaction(
                f"transaction {transaction} is of workflow {pulses[0].workflow!r}, which is not declared here"
            )
        try:
            data = pulses[0].data or {}
            return LiveTransaction(Saga.fold(plan, pulses), data.get("key", ""), data)
        except (StoreError, LookupError) as error:
            if pulses[0].digest == plan.digest:
                raise
            raise StoreError(
                f"transaction {transaction} cannot be read here: {shape_changed(plan.workflow)}"
            ) from error

    def rows(self, *, status: str | None, workflow: str | None, limit: int, before: str | None) -> list[TransactionRow]:
        """The store's rows of transactions; see `Mesh.transactions`."""
        if self.state == "new":
            self.require_open()
        return self.store.list(status=status, workflow=workflow, limit=limit, before=before)

    def cancel(self, live: LiveTransaction, fault: Fault) -> LiveTransaction:
        """Enqueue a cancellation; returns the live transaction that goes on.

        Raises:
            Unroutable: another process runs it, or only another release can undo it.
        """
        if live.settled and live.state.status == "halted":
            live = self._reopen(live, ("halted",), "a halted one can be cancelled")
        if self.supervisor.transactions.get(live.state.transaction) is live:
            self.supervisor.enqueue(live, CancelRequested(fault))
        elif not live.settled:
            raise Unroutable(
                f"transaction {live.state.transaction} is run by another process; cancel it there, or with `bitactor "
                "cancel`"
            )
        return live

    def resume(self, live: LiveTransaction) -> LiveTransaction:
        """Let a halted or stuck transaction go on; its deadline has stood still meanwhile.  Returns the live
        transaction.

        Raises:
            InvalidInput: the transaction is neither halted nor stuck.
            Unroutable: it began in another shape of its workflow, so only the release that declares that one can carry
                it on.
        """
        live = self._reopen(live, ("halted", "stuck"), "a halted or stuck one can be resumed")
        halted = next(
            (pulse for pulse in reversed(self.store.pulses(live.state.transaction)) if pulse.kind == "halted"), None
        )
        left = (halted.data or {}).get("left_ns") if halted is not None else None
        self.supervisor.enqueue(live, ResumeRequested(None if left is None else self.clock.wall_ns() + left))
        return live

    def undo(self, live: LiveTransaction, fault: Fault) -> LiveTransaction:
        """Take back what a completed transaction did.  Returns the live transaction.

        Raises:
            InvalidInput: the transaction did not complete, or was undone already.
            Unroutable: it began in another shape of its workflow, so only the release that declares that one can undo
                it.
        """
        live = self._reopen(live, ("completed",), "a completed one can be undone, and only once")
        self.supervisor.enqueue(live, UndoRequested(fault))
        return live

    def _reopen(self, live: LiveTransaction, statuses: Sequence[str], only: str) -> LiveTransaction:
        """Take up a transaction that has settled.  The transaction may have gone on since `live` was made, through
        another handle or in another process."""
        self.require_open()
        transaction = live.state.transaction
        found = self.supervisor.transactions.get(transaction)
        if found is not None:
            live = found
        else:
            pulses = self.store.pulses(transaction)
            if pulses and pulses[0].digest != live.plan.digest:
                raise Unroutable(f"transaction {transaction} cannot go on here: {shape_changed(live.plan.workflow)}")
            if len(pulses) != live.state.seq:
                live = self.load(transaction)
        if not live.settled or live.state.status not in statuses:
            now = live.state.status if live.settled else "running"
            raise InvalidInput(f"transaction {transaction} is {now}; only {only}")
        self.supervisor.reopen(live)
        return live

    # Threads

    def blocking(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
        """Await `call(*arguments, **options)` on the mesh's loop, from another thread.

        The coroutine is made on the loop's thread, where no Ctrl-C can come between making and starting it.

        Raises:
            BitActorError: called on the loop's own thread, where waiting would be a deadlock; or the mesh is closed.
        """
        if self.state == "closed" or self.loop.is_closed():
            raise BitActorError(self._closed())
        if threading.get_ident() == self.thread:
            raise BitActorError(
                "a blocking call on the mesh's own loop would wait for itself for ever; await the async one instead"
            )
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def start() -> None:
            task = self.loop.create_task(call(*arguments, **options))
            task.add_done_callback(lambda _: _transfer_result(future, task))
            future.add_done_callback(lambda _: self._cancel_threadsafe(task))

        try:
            self.loop.call_soon_threadsafe(start)
            while not concurrent.futures.wait([future], timeout=1.0).done:
                if self.loop.is_closed():
                    raise BitActorError("this mesh was closed meanwhile")
            return future.result()
        except concurrent.futures.CancelledError:
            raise BitActorError("this mesh was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def _cancel_threadsafe(self, task: asyncio.Task[Any]) -> None:
        """Cancel the task of a caller that waits no more; without effect on a task that has ended."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
            self.loop.call_soon_threadsafe(task.cancel)

    def _notify(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(callback)

    def _offer_to_sinks(self, pulses: Sequence[Pulse]) -> None:
        for _, relay in self._sinks:
            relay.offer(pulses)

    def add_task(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it is done, and cancel it when the node closes."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def about(self) -> dict[str, Any]:
        """This node's state and counters, as plain data."""
        return {
            "node": self.id,
            "state": self.state,
            "collapsed": self.collapsed,
            "endpoint": self.endpoint,
            "store": self.settings.store,
            "hosts": self.settings.hosts,
            "workflows": sorted(self.workflows),
            "consumers": sorted({plan.listens for plan in self.consumers.values()}),
            "running": self.supervisor.running_count,
            "keyed": self.supervisor.keyed,
            "timers": self.wheel.about(),
            "zombies": len(self.executor.zombies),
            "blocked": (Blockages(0, 0.0) if self._watchdog is None else self._watchdog.about())._asdict(),
            "pools": self.pools.about(),
            "turns": self.supervisor.admission.about(),
            "undelivered": len(self.emissions),
            "deliveries": self.emissions.deliveries,
            "parked": dict(self.recovery.parked),
            "threads": self.threads.about(),
            "processes": self.processes.statistics(),
            **(self._network.about() if self._network is not None else {"transport": {}, "refused": {}, "repeated": 0}),
            "resources": self.resources.about(),
            "patterns": self.policies.about(),
            "middleware_disabled": list(self.middleware.disabled),
            "sinks": [_about_sink(sink, relay) for sink, relay in self._sinks],
        }

    def require_open(self) -> None:
        """Raise `BitActorError` unless the node takes work."""
        if self.state == "new":
            raise BitActorError("open the mesh first: `async with Mesh(…)`")
        if self.collapsed:
            raise BitActorError(self._closed())
        if self.state != "open":
            raise BitActorError(f"this mesh is {self.state}; it takes no more work")

    def _closed(self) -> str:
        return f"this mesh has ended: {self.collapsed}" if self.collapsed else "this mesh is closed"


def _about_sink(sink: Sink, relay: SinkRelay) -> dict[str, Any]:
    """The relay's counters for a sink, and the sink's own statistics if it has any."""
    about: dict[str, Any] = {"name": type(sink).__name__, **relay.statistics()._asdict()}
    statistics = getattr(sink, "statistics", None)
    own: Any = statistics() if callable(statistics) else None
    if hasattr(own, "_asdict"):
        about["own"] = own._asdict()
    return about


def _transfer_result(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    """Give the task's result or exception to the thread that waits for it, unless it has given up."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())
