"""`Mesh`, the face of BitActor: what its users make and call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Never, Self, Unpack

from typing_extensions import TypeVar, override

from bitactor.declare.stimulus import StimulusKeywords, StimulusOptions, refuse_unknown
from bitactor.errors import BitActorError, ConfigurationError, InvalidInput
from bitactor.export.dead_letters import DeadLetter
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import mapping_of, shown
from bitactor.plan.consumer import Consumer
from bitactor.ports import Clock, Ids, Sink, TransactionRow
from bitactor.workflow import Workflow
from mesh.network.links import Links
from mesh.runtime.ids import known_as
from mesh.runtime.names import name_of
from mesh.runtime.node import Node
from mesh.runtime.settings import Settings, settings
from mesh.sinks import OtelSink, open_sink
from mesh.transaction.again import send_again
from mesh.transaction.bridge import Bridge, LoopThread
from mesh.transaction.mirror import BlockingTransaction, blocking, like
from mesh.transaction.transaction import Transaction

R = TypeVar("R", default=Any)


class MeshFacts:
    """What a mesh says of itself without being asked on its loop."""

    def _look(self) -> Node:
        raise NotImplementedError

    @property
    def state(self) -> str:
        """How far the mesh is in its life: `new | opening | open | draining | closed`."""
        return self._look().state

    @property
    def settings(self) -> Settings:
        """The options it was made with, completed from the environment and the defaults."""
        return self._look().settings

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it lives on; None before it is opened."""
        return getattr(self._look(), "loop", None)

    @property
    def workflows(self) -> Mapping[str, Workflow]:
        """Name → workflow, of those declared here; `workflows[name]` raises `UnknownWorkflow`."""
        return self._look().workflows


class Mesh(MeshFacts):
    """Runs workflows and consumers: in this process alone, or, with a registry, together with others.

        async with Mesh(signup, greet, store="sqlite:///pulses.db") as mesh:
            transaction = await mesh.stimulate("users.signup", {"name": "Ada", "email": "ada@example.org"})
            await transaction.result(timeout=5)

    `with Mesh(…) as mesh` gives a `BlockingMesh`, for threaded services, and `Mesh(signup).run(signup, {...})` is one
    blocking call for scripts.

    It is open once at a time, on any loop, and once closed it can be opened again.  All begins anew then (pools,
    policies, resources, a store in memory), but for what is in the store's file.

    Args:
        definitions: workflows and consumers; checked here, so that what is wrong with them is said before anything
            runs.
        sinks: who is told about pulses, beside the collector that `otlp` names; a text is the URL of one
            (`mesh.sinks.open_sink`).
        clock, ids: replaceable, for tests.
        replace: resource → object to be given out in its place, for tests.
        middleware: objects with `before(event)` and `after(event)` around each call of a user's function; see
            `mesh.hops.middleware`.
        options: see `mesh.runtime.settings.Settings`; each can also come from the environment as `BITACTOR_…`.

    Raises:
        DefinitionError: a definition cannot work.
        ConfigurationError: an option is wrong.
    """

    def __init__(
        self,
        *definitions: Workflow | Consumer,
        sinks: Sequence[Sink | str] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        replace: Mapping[str, Any] | None = None,
        middleware: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        chosen = settings(**options)
        self._sinks = tuple(sinks)
        self._parts: dict[str, Any] = {"clock": clock, "ids": ids, "replace": replace, "middleware": middleware}
        self._definitions = definitions
        self._settings = chosen
        self.node = self._make_node()
        self._renewing = threading.Lock()
        self._threads: list[tuple[LoopThread, Node]] = []  # of those who are in a `with` block
        self._bridge: Bridge | None = None

    def _make_node(self) -> Node:
        chosen = self._settings
        otlp = [OtelSink(chosen.otlp, service_name=chosen.service_name)] if chosen.otlp else []
        return Node(
            self._definitions,
            chosen,
            network=Links if chosen.registry else None,
            sinks=[*(open_sink(sink) if isinstance(sink, str) else sink for sink in self._sinks), *otlp],
            **self._parts,
        )

    def _refuse_closed_sinks(self) -> None:
        for sink in self._sinks:
            if getattr(sink, "ended", False) is True:
                raise ConfigurationError(
                    f"the sink {type(sink).__name__} was closed with this mesh, which would be opened without it: give "
                    "it by its URL, as in sinks=['jsonl:///pulses.jsonl'], and it is opened anew each time"
                )

    @override
    def _look(self) -> Node:
        return self.node

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.close()

    async def _open(self) -> Node:
        """Open the mesh on this loop; its node is a new one if it was open before."""
        with self._renewing:  # two threads may open at the same time
            if self.node.state == "closed":
                self._refuse_closed_sinks()
                self.node = self._make_node()
            node = self.node
            node.claim()
            self._bridge = Bridge(lambda: node.state == "closed")
        await node.open()
        return node

    async def stimulate(
        self,
        workflow: str | Workflow[R],
        input: Any = None,
        *,
        key: str | None = None,
        ttl: int | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        max_concurrency: int | None = None,
        priority: int = 0,
        **unknown: Never,
    ) -> Transaction[R]:
        """Begin a transaction; returns once it is kept as durably as the store promises.

        Args:
            workflow: its name, or itself.
            input: what its input model validates: a mapping with its fields, or the model itself.
            key: idempotency key; the same key with the same input gives the transaction that began first.
            ttl: hop budget, instead of the workflow's.
            deadline: seconds it may take, instead of the workflow's.
            metadata: plain data that every step sees as `ctx.metadata`.
            traceparent: W3C trace context of the caller; the transaction's span links to it.
            max_concurrency: how many of its hops may run at once, instead of the workflow's.
            priority: added to the priority of each of its steps, for whatever its hops have to wait for; 0 is the
                ordinary one.

        Raises:
            UnknownWorkflow, InvalidInput: nothing was started.
            DuplicateTransaction: the key was used with another input.
            Overloaded: too many transactions are running, and none ended in time.
        """
        if unknown:
            refuse_unknown("Mesh.stimulate", unknown)
        name = name_of(workflow)
        options = StimulusOptions(key, ttl, deadline, metadata, traceparent, max_concurrency, priority)
        return Transaction(self.node.transactions, await self.node.intake.stimulate(name, input, options))

    async def begin(
        self, workflow: str | Workflow[R], values: Mapping[str, Any], options: StimulusOptions, given: Any = None
    ) -> Transaction[R]:
        """Begin a transaction with an input that has been validated: what `Workflow.validate_input` returns.  For an
        ingress, which validates in a way of its own; `given` is the input as it was sent, by which a key's requests are
        compared, `values` if left out.

        Raises:
            UnknownWorkflow, InvalidInput, DuplicateTransaction, Overloaded: as `stimulate`.
        """
        self.node.require_open()
        name = name_of(workflow)
        fields = self.node.workflows[name].input_model.model_fields
        plain = mapping_of(values)
        if plain is None or not fields.keys() <= plain.keys():
            needed = ", ".join(fields) or "nothing"
            raise InvalidInput(f"input of {name!r}: begin takes what validate_input returns, a mapping of {needed}")
        if not issubclass(type(options), StimulusOptions):
            raise InvalidInput(f"begin takes StimulusOptions(…), not {shown(options)}")
        return Transaction(
            self.node.transactions,
            await self.node.intake.begin(name, plain, options, plain if given is None else given),
        )

    async def transaction(self, transaction: str) -> Transaction:
        """A transaction by its id, running or from the store.

        Raises:
            UnknownTransaction: there is none, or its workflow is not declared here.
        """
        self.node.require_loop()
        return Transaction(self.node.transactions, await self.node.transactions.load(known_as(transaction)))

    async def journal(self, transaction: str) -> tuple[TransactionRow, Sequence[Pulse]]:
        """What the store has of a transaction, also of a workflow that is not declared here: its row and its pulses.

        Raises:
            UnknownTransaction: there is none.
            DamagedJournal: its pulses are gone, or cannot be read.
        """
        self.node.require_loop()
        row = await self.node.transactions.row(known_as(transaction))
        return row, await self.node.transactions.pulses(transaction)

    async def transactions(
        self,
        *,
        status: str | None = None,
        workflow: str | Workflow | Consumer | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[TransactionRow]:
        """What the store knows of its transactions, whoever runs them: newest first, at most `limit`.

        Args:
            status: only those that stand so: `running | completed | compensated | cancelled | halted | stuck`.
            workflow: only those of this workflow, or consumer, by its name or itself.
            before: the last id of the page before.

        Raises:
            InvalidInput: there is no such status, `limit` is less than 1, or `before` no text.
            UnknownWorkflow: `workflow` is neither, nor a name.
        """
        self.node.require_loop()
        name = None if workflow is None else name_of(workflow)
        return await self.node.transactions.rows(status=status, workflow=name, limit=limit, before=before)

    async def dead_letters(
        self, *, workflow: str | Workflow | Consumer | None = None, limit: int = 100, before: str | None = None
    ) -> list[DeadLetter]:
        """What ended nowhere, and what was in it: emitted signals and steps that nobody took (`unroutable`), steps of
        which workers died again and again (`poison`), and undos that failed, as long as their transactions are
        `stuck`.  Whoever ran them: of the newest transaction first, and of one the last to die first.

        Args:
            workflow: only those of transactions of this workflow, or consumer, by its name or itself.
            before: the last id of the page before.

        Raises:
            InvalidInput: `limit` is less than 1, or `before` no id of a dead letter.
            UnknownWorkflow: `workflow` is neither, nor a name.
        """
        self.node.require_loop()
        name = None if workflow is None else name_of(workflow)
        return await self.node.transactions.dead_letters(workflow=name, limit=limit, before=before)

    async def send_again(self, letter: DeadLetter | str) -> Transaction:
        """Bring what is in a dead letter, or the one of this id, to its receiver once more, and return its transaction
        when that is kept: a signal goes to its consumers, an undo is tried again with all that failed beside it.

        Raises:
            InvalidInput: there is no such dead letter, it was sent again before, or that cannot be done.
            UnknownTransaction: its transaction is not known here, or its workflow not declared.
            Unroutable: another process runs its transaction, or only another release can.
        """
        self.node.require_loop()
        given = letter.id if isinstance(letter, DeadLetter) else letter
        return Transaction(self.node.transactions, await send_again(self.node.transactions, given))

    def about(self) -> dict[str, Any]:
        """How this mesh's node stands, as plain data: what runs, waits, is held and was refused; docs/operations.md has
        what it means.

        Raises:
            BitActorError: the mesh has not been opened.
        """
        if self.state in ("new", "opening"):
            raise BitActorError("open the mesh first: `async with Mesh(…)`")
        return self.node.about()

    async def close(self, drain: float | None = None) -> None:
        """Stop taking work, wait up to `drain` seconds for what runs, release everything."""
        await self.node.close(drain)

    # From threads

    @property
    def blocking(self) -> BlockingMesh:
        """The mesh for threads beside its loop: what `with Mesh(…)` gives."""
        return BlockingMesh(self)

    def __enter__(self) -> BlockingMesh:
        thread = LoopThread("bitactor-mesh")
        try:
            node = thread.call(self._open)
        except BaseException:
            try:
                thread.call(self._abandon)
            finally:
                thread.close()
            raise
        self._threads.append((thread, node))
        return self.blocking

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._threads:
            return
        thread, node = self._threads.pop()
        if thread.bridge.forked:
            return  # what a fork has of it is a copy
        try:
            thread.call(node.close)
        finally:
            thread.close()

    async def _abandon(self) -> None:
        """Close what was opened on this loop, for somebody who could not wait for it."""
        node = self.node
        if node.state != "new" and node.loop is asyncio.get_running_loop():
            await node.close(0)

    def submit(
        self, workflow: str | Workflow[R], input: Any = None, **options: Unpack[StimulusKeywords]
    ) -> BlockingTransaction[R]:
        """`stimulate` from a thread that is not the mesh's; blocks until it is accepted.

        Raises:
            BitActorError: called on the mesh's own loop, where blocking would be a deadlock.
            What `stimulate` raises.
        """
        refuse_unknown("Mesh.submit", options)
        return self.blocking.stimulate(workflow, input, **options)

    def run(
        self,
        workflow: str | Workflow[R],
        input: Any = None,
        *,
        timeout: float | None = None,
        **options: Unpack[StimulusKeywords],
    ) -> R:
        """Begin a transaction and wait for its result: one blocking call, which opens and closes the mesh if nobody
        has.

        Raises:
            What `stimulate` and `Transaction.result` raise.
        """
        refuse_unknown("Mesh.run", options)
        if self.state in ("new", "closed"):
            with self as mesh:
                return mesh.stimulate(workflow, input, **options).result(timeout)
        return self.blocking.stimulate(workflow, input, **options).result(timeout)


class BlockingMesh(MeshFacts):
    """A `Mesh` for threads that are not its own: the same methods, which block where those are awaited.

        with Mesh(signup) as mesh:
            transaction = mesh.stimulate("users.signup", {"name": "Ada", "email": "ada@example.org"})
            transaction.result(timeout=5)

    `with Mesh(…)` gives one, and so does `mesh.blocking`, for the threads beside a loop of your own.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    @property
    def node(self) -> Node:
        """The mesh's part in this process, for those who look inside."""
        return self._mesh.node

    @override
    def _look(self) -> Node:
        return self._mesh.node

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        bridge = self._mesh._bridge
        if bridge is None:
            state = self.state
            raise BitActorError(
                "open the mesh first: `with Mesh(…) as mesh:`" if state == "new" else f"this mesh is {state}"
            )
        result = bridge.call(getattr(self._mesh, method), *arguments, **options)
        return BlockingTransaction(bridge, result) if isinstance(result, Transaction) else result

    @like(Mesh.stimulate)
    def stimulate(
        self, workflow: str | Workflow[R], input: Any = None, **options: Unpack[StimulusKeywords]
    ) -> BlockingTransaction[R]:
        begun: BlockingTransaction[R] = self._call("stimulate", workflow, input, **options)
        return begun

    @like(Mesh.begin)
    def begin(
        self, workflow: str | Workflow[R], values: Mapping[str, Any], options: StimulusOptions, given: Any = None
    ) -> BlockingTransaction[R]:
        begun: BlockingTransaction[R] = self._call("begin", workflow, values, options, given)
        return begun

    @like(Mesh.submit)
    def submit(
        self, workflow: str | Workflow[R], input: Any = None, **options: Unpack[StimulusKeywords]
    ) -> BlockingTransaction[R]:
        return self._mesh.submit(workflow, input, **options)

    @like(Mesh.run)
    def run(
        self,
        workflow: str | Workflow[R],
        input: Any = None,
        *,
        timeout: float | None = None,
        **options: Unpack[StimulusKeywords],
    ) -> R:
        return self._mesh.run(workflow, input, timeout=timeout, **options)

    transaction = blocking(Mesh.transaction)
    journal = blocking(Mesh.journal)
    transactions = blocking(Mesh.transactions)
    dead_letters = blocking(Mesh.dead_letters)
    send_again = blocking(Mesh.send_again)
    about = blocking(Mesh.about)
    close = blocking(Mesh.close)
