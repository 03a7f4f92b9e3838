"""A node: one process's part of the mesh.  Makes the parts, connects them, and takes them down in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from bitactor.errors import BitActorError, ConfigurationError, DefinitionError, DuplicateName, StoreError
from bitactor.messages.duration import duration_rule, is_duration, nanoseconds
from bitactor.messages.signal import Receipt, Stimulus
from bitactor.plan.consumer import Consumer
from bitactor.plan.plan import Plan
from bitactor.ports import Clock, Ids, Sink, Store
from bitactor.workflow import Workflow
from mesh.hops.executor import Executor
from mesh.hops.exits import contain_exits
from mesh.hops.middleware import Middleware
from mesh.hops.policies import Policies
from mesh.hops.ports import Spawner
from mesh.hops.resources import ResourceManager
from mesh.limits.payload import hold_limit
from mesh.limits.pools import Pools
from mesh.limits.timing_wheel import SystemClock, TimingWheel
from mesh.runtime.emissions import Emissions
from mesh.runtime.ids import TimeOrderedIds
from mesh.runtime.intake import Intake, Workflows
from mesh.runtime.live import LiveTransaction
from mesh.runtime.names import consumer_entries
from mesh.runtime.ports import Enqueue, Network
from mesh.runtime.recovery import STORE_FILE, Ownership, Recovery
from mesh.runtime.settings import Settings
from mesh.runtime.settled import Transactions, require_loop
from mesh.runtime.supervisor import Supervisor
from mesh.runtime.watchdog import Watchdog
from mesh.sinks.otel.span_sinks import SpanSinks
from mesh.sinks.relay import SinkRelays
from mesh.spawners import ADDED
from mesh.spawners.loop import InlineSpawner, LoopSpawner
from mesh.spawners.process.spawner import ProcessSpawner
from mesh.spawners.thread import ThreadSpawner
from mesh.stores import open_store
from registry import Entry, LocalRegistry, Notice, Registry

logger = logging.getLogger("bitactor.node")

COLLAPSE_DRAIN = 1.0
"""Seconds that running transactions are given when the worker processes have collapsed."""
FLUSH_WITHIN = 5.0
"""Seconds that policies may take to flush what they hold back."""
SINKS_WITHIN = 5.0
"""Seconds that sinks may take to flush at the end; one that cannot be reached gives up sooner by itself."""
_ALONE: Final = {"transport": {}, "refused": {}, "repeated": 0, "waiting": {}}


class NodeParts(NamedTuple):
    """The parts of a node that its network uses."""

    id: str
    settings: Settings
    loop: asyncio.AbstractEventLoop
    clock: Clock
    wheel: TimingWheel
    plans: Mapping[str, Plan]
    workflows: Mapping[str, Workflow]
    executor: Executor
    intake: Intake
    transactions: Transactions
    enqueue: Enqueue
    on_receipt: Callable[[Receipt], None]
    about: Callable[[], dict[str, Any]]
    patterns: Callable[[], list[dict[str, Any]]]


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
        network: Callable[[NodeParts], Network] | None = None,
        sinks: Sequence[Sink] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        replace: Mapping[str, Any] | None = None,
        middleware: Sequence[Any] = (),
    ) -> None:
        self.settings = settings
        self.pools = Pools(settings.pools)
        self.workflows = Workflows()
        self.plans: dict[str, Plan] = {}
        self.consumers: dict[tuple[str, str], Plan] = {}
        self._declare(definitions)
        self.resources = ResourceManager(self.plans.values(), replace or {}, lambda: self.clock)
        self.policies = Policies(self.plans.values(), lambda: self.clock)
        self.middleware = Middleware(middleware)
        self._sinks = SinkRelays(sinks)
        self._clock_given = clock
        self.ids = ids or TimeOrderedIds()
        self.id = f"n{self.ids.transaction()[-12:]}"
        self._span_sinks = SpanSinks(sinks, self.id)
        self.state = "new"
        """The node's state: `new | opening | open | draining | closed`."""
        self.collapsed = ""
        """Why this node ended by itself; empty if it did not."""
        self.collapse = asyncio.Event()
        """Set when the node ends by itself."""
        self.unready: dict[str, str] = {}
        """What keeps the node from taking work, although it is open → why."""
        self._ending: asyncio.Task[None] | None = None
        self._skip_drain = asyncio.Event()
        self._released = asyncio.Event()
        self._drain_within = settings.drain
        self._started = contextlib.AsyncExitStack()  # closes the parts that have been started, the last first
        self._make_network = network
        self._network: Network | None = None
        self._transactions: Transactions | None = None

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

    @property
    def transactions(self) -> Transactions:
        """The transactions that run here or are in the store.

        Raises:
            BitActorError: the node has not been opened.
        """
        if self._transactions is None:
            raise BitActorError("open the mesh first: `async with Mesh(…)`")
        return self._transactions

    # Opening and closing

    def claim(self) -> None:
        """Be opened on this loop, and no other; `open` goes on with it.

        Raises:
            BitActorError: it is claimed, or was.
        """
        if self.state != "new":
            raise BitActorError(
                f"this mesh is {self.state}: it is open once at a time; use it where it was opened, or make another"
            )
        self.loop = asyncio.get_running_loop()
        self.state = "opening"

    async def open(self) -> None:
        """Start all parts; on failure those that were started are taken down again."""
        if self.state != "opening":
            self.claim()
        try:
            await self._start_parts()
            self._connect()
            if self._network is not None:
                await self._network.open()
            if self.state != "opening":
                raise BitActorError(f"this mesh is {self.state}; it takes no more work")
            self._started.callback(self.registry.watch(self._on_notice).cancel)
            self._started.push_async_callback(self._drain)
            self.state = "open"
            if self._network is not None:
                await self._network.announce(consumer_entries(self.consumers.values(), self.endpoint))
            elif self.settings.hosts:
                for name, value in consumer_entries(self.consumers.values(), self.endpoint).items():
                    self.registry.register(name, value)
            self.require_open()
            await self.recovery.start(polling=self.store.shared)
            self.require_open()
        except BaseException:
            await self.close(drain=0)
            raise

    async def _start_parts(self) -> None:
        """Start what needs no other node; each part says, as it starts, how it is closed."""
        settings, started = self.settings, self._started
        started.callback(hold_limit(settings.payload_limit))
        started.push_async_callback(self._sinks.close, SINKS_WITHIN)
        self._watchdog = Watchdog(self.loop, settings.blocked_after)
        started.callback(self._watchdog.stop)
        self.clock: Clock = self._clock_given or SystemClock(self.loop)
        self.store: Store = open_store(
            settings.store, durability=settings.durability, lease=settings.lease, hung_after=settings.hung_after,
            notify=self._notify,
        )  # fmt: skip
        started.callback(self.store.close)
        await self.store.open_on_loop(self.id)
        self.wheel = TimingWheel(self.clock)
        started.callback(self.wheel.close)
        started.push_async_callback(self.resources.close)
        self.processes = ProcessSpawner(settings.processes)
        self.processes.on_collapse = self._collapse
        self.processes.replaced = tuple(self.resources.replaced)
        self.threads = ThreadSpawner(settings.threads)
        spawners: dict[str, Spawner] = {
            **{name: make() for name, make in ADDED.items()},
            "inline": InlineSpawner(),
            "loop": LoopSpawner(),
            "thread": self.threads,
            "process": self.processes,
        }
        for spawner in reversed(spawners.values()):
            started.push_async_callback(spawner.close, 2.0)
        if (take := self._span_sinks.collect()) is not None:
            started.callback(self._span_sinks.close)
            self.processes.on_spans = self._span_sinks.take_all
        self.executor = Executor(self.loop, self.clock, self.wheel, spawners, traced=bool(self._span_sinks), take=take)
        self.executor.resources, self.executor.policies = self.resources, self.policies
        if self._clock_given is None:
            self.executor.lease = self.store.lease_until_ns
            self.executor.own_lease_until_ns()
        self.executor.middleware = self.middleware if len(self.middleware) else None
        started.push_async_callback(self.executor.close)
        started.callback(contain_exits(self.loop))
        self._watchdog.start()

    def _connect(self) -> None:
        """Make what runs transactions, and the network if there is one."""
        settings, started = self.settings, self._started
        on_pulses = self._sinks.offer if self._sinks else None
        self.supervisor = Supervisor(
            self.loop, self.clock, self.wheel, self.store, self.executor, self.pools, on_pulses
        )
        self.supervisor.on_takeover += self._span_sinks.recalls
        self.recovery = Recovery(
            self.loop, self.store, self.supervisor, self.id, self.plans, settings.lease, self.unready
        )
        self.supervisor.park = self.recovery.note_parked
        self.supervisor.on_settled.append(self.recovery.note_settled)
        self.ownership = Ownership(
            self.loop, self.store, self.supervisor, self.recovery, self.id, settings.lease,
            forget=lambda: self.emissions.close(), end=self._collapse if settings.when_fenced == "exit" else None,
        )  # fmt: skip
        self.store.on_fenced = self.supervisor.on_fenced = self.ownership.fenced
        transactions = Transactions(
            self.supervisor, self.plans, self.recovery.parked, settings.store, self.require_open,
            lambda: self.ownership.owner,
        )  # fmt: skip
        self.intake = Intake(
            self.supervisor, self.ids, settings, self.workflows, self.plans, self.consumers,
            load=transactions.load, require_open=self.require_open, start_task=self.executor.start_task,
            takes_signals=lambda foreign: (
                (self.state == "open" or (self.state == "draining" and not foreign)) and not self.ownership.lost
            ),
        )  # fmt: skip
        if self._make_network is None:
            self.registry: Registry = LocalRegistry(self.id)
            self.registry.start()
            started.callback(self.registry.close)
        else:
            self._network = network = self._make_network(self._parts(transactions))
            self.registry = network.registry
            # Before the executor: what is stopped here for others is not told as if it had ended.
            started.push_async_callback(network.close)
            self.supervisor.commands.router, self.supervisor.commands.revoke = network.router, network.revoke
        timeout_ns = nanoseconds(settings.delivery_timeout)
        self.emissions = Emissions(
            self.supervisor.enqueue, self.registry, self.clock, self.wheel, self._send_stimulus, timeout_ns
        )
        self.supervisor.commands.deliver = self.emissions.deliver
        self._transactions = transactions
        started.callback(transactions.close)
        started.callback(self.supervisor.close)
        started.push_async_callback(self.policies.close, FLUSH_WITHIN)
        started.push_async_callback(self.ownership.close)
        started.callback(self.intake.close)
        started.callback(self.emissions.close)

    def _parts(self, transactions: Transactions) -> NodeParts:
        return NodeParts(
            self.id, self.settings, self.loop, self.clock, self.wheel, self.plans, self.workflows, self.executor,
            self.intake, transactions, self.supervisor.enqueue, lambda receipt: self.emissions.on_receipt(receipt),
            self.about, self.policies.about,
        )  # fmt: skip

    @property
    def endpoint(self) -> str:
        """Where other nodes reach this one; empty when it is alone."""
        return self._network.endpoint if self._network is not None else ""

    def _collapse(self, why: str) -> None:
        """End the node, for its worker processes keep failing or all that ran was taken over, so that whoever started
        this process starts it afresh.

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
        if drain is not None and not is_duration(drain, zero=True):
            raise ConfigurationError(f"drain={drain!r}; give {duration_rule(zero=True)}")
        if self.state == "closed":
            return
        self.require_loop()
        if self.state == "draining":
            self._skip_drain.set()
            await self._released.wait()
            return
        self.state = "draining"
        self._drain_within = self.settings.drain if drain is None else drain
        try:
            await self._started.aclose()
        finally:
            self.state = "closed"
            self._released.set()

    async def _drain(self) -> None:
        self.policies.drain()
        if self._network is not None:
            await self._network.withdraw()
        deadline = self.loop.time() + self._drain_within
        while (
            (self.supervisor.running_count or self.emissions.delivering())
            and not self._skip_drain.is_set()
            and (left := deadline - self.loop.time()) > 0
        ):
            await self.intake.wait_for_settlement(min(left, 0.1))
        running = self.supervisor.running_count
        if running and self.store.shared:
            text = "%d transactions that run are left to whoever opens %s next, after %g s of draining"
            logger.info(text, running, self.settings.store, self._drain_within)
        elif running:
            text = "%d transactions that still ran after %g s of draining are gone: %s keeps them in this process only"
            logger.warning(text, running, self._drain_within, self.settings.store)

    def _send_stimulus(self, entry: Entry, stimulus: Stimulus, asked_ns: int = 0) -> None:
        if entry.holder == self.id:
            self.intake.receive(stimulus, self.emissions.on_receipt)
        elif self._network is not None:
            self._network.send_stimulus(entry, stimulus, asked_ns)

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
            self.emissions.disappeared(notice.entry.name, notice.entry.holder)
        if self._network is not None:
            self._network.on_notice(notice)

    def _notify(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(callback)

    def unsettled(self) -> list[LiveTransaction]:
        """The transactions that run here and have not settled."""
        running = () if self._transactions is None else self.supervisor.transactions.values()
        return [live for live in running if not live.settled]

    def delivering(self) -> bool:
        """Whether an emitted signal is being delivered to a consumer that is there."""
        return self._transactions is not None and self.emissions.delivering()

    def about(self) -> dict[str, Any]:
        """This node's state and counters, as plain data."""
        return {
            "node": self.id,
            "owner": self.ownership.owner,
            "state": self.state,
            "collapsed": self.collapsed,
            "endpoint": self.endpoint,
            "store": self.settings.store,
            "hosts": self.settings.hosts,
            "workflows": sorted(self.workflows),
            "consumers": sorted({plan.listens for plan in self.consumers.values()}),
            "healthy": self.supervisor.healthy and not self.unready and not self.ownership.lost,
            "unready": dict(self.unready),
            "fenced": self.ownership.about(),
            "running": self.supervisor.running_count,
            "max_in_flight": self.settings.max_in_flight,
            "keyed": self.supervisor.keyed,
            "timers": self.wheel.about(),
            "zombies": len(self.executor.zombies),
            "blocked": self._watchdog.about(),
            "pools": self.pools.about(),
            "turns": self.supervisor.admission.about(),
            **self.emissions.about(),
            "parked": dict(self.recovery.parked),
            "recovery": {"failures": self.recovery.failures},
            "threads": self.threads.about(),
            "processes": self.processes.statistics(),
            **(self._network.about() if self._network is not None else _ALONE),
            "resources": self.resources.about(),
            "patterns": self.policies.about(),
            "middleware_disabled": list(self.middleware.disabled),
            "sinks": self._sinks.about(),
        }

    def require_loop(self) -> None:
        """Raise `BitActorError` if the node lives on another loop than this; one that is closed lives on none."""
        if self.state not in ("new", "closed"):
            require_loop(self.loop)

    def require_open(self) -> None:
        """Raise `BitActorError` unless the node takes work."""
        if self.state == "new":
            raise BitActorError("open the mesh first: `async with Mesh(…)`")
        if self.collapsed:
            raise BitActorError(f"this mesh has ended: {self.collapsed}")
        if self.state != "open":
            raise BitActorError(f"this mesh is {self.state}; it takes no more work")
        if STORE_FILE in self.unready:
            raise StoreError(self.unready[STORE_FILE])
        self.ownership.require()
        require_loop(self.loop)
