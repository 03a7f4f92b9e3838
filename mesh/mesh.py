"""`Mesh`, the face of BitActor: what its users make and call."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from typing_extensions import TypeVar

from bitactor.consumer import Consumer
from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import BitActorError, InvalidInput, UnknownTransaction, suggest
from bitactor.messages.pulse import STATUSES, Pulse
from bitactor.messages.values import shown
from bitactor.ports import Clock, Ids, Sink, TransactionRow
from bitactor.workflow import Workflow
from mesh.hops.exits import run_on
from mesh.network.links import Links
from mesh.runtime.names import name_of
from mesh.runtime.node import Node
from mesh.runtime.settings import Settings, settings
from mesh.sinks import OtelSink, open_sink
from mesh.transaction import BlockingTransaction, Transaction

T = TypeVar("T")
R = TypeVar("R", default=Any)


class Mesh:
    """Runs workflows and consumers: in this process alone, or, with a registry, together with others.

        async with Mesh(signup, greet, store="sqlite:///pulses.db") as mesh:
            transaction = await mesh.stimulate("users.signup", {"name": "Ada", "email": "ada@example.org"})
            await transaction.result(timeout=5)

    It is also a plain context manager for threaded services, and `Mesh(signup).run(signup, {...})` is one blocking call
    for scripts.

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
        if chosen.otlp:
            sinks = [*sinks, OtelSink(chosen.otlp, service_name=chosen.service_name)]
        self.node = Node(
            definitions,
            chosen,
            network=Links if chosen.registry else None,
            sinks=[open_sink(sink) if isinstance(sink, str) else sink for sink in sinks],
            clock=clock,
            ids=ids,
            replace=replace,
            middleware=middleware,
        )
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        await self.node.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.close()

    @property
    def state(self) -> str:
        """How far the mesh is in its life: `new | opening | open | draining | closed`."""
        return self.node.state

    @property
    def settings(self) -> Settings:
        """The options it was made with, completed from the environment and the defaults."""
        return self.node.settings

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it lives on; None before it is opened."""
        return None if self.state == "new" else self.node.loop

    @property
    def workflows(self) -> Mapping[str, Workflow]:
        """Name → workflow, of those declared here; `workflows[name]` raises `UnknownWorkflow`."""
        return self.node.workflows

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
    ) -> Transaction[R]:
        """Begin a transaction; returns once it is kept as durably as the store promises.

        Args:
            workflow: its name, or itself.
            input: what its input model validates.
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
        plain = _plain(values)
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
        return Transaction(self.node.transactions, self.node.transactions.load(transaction))

    async def journal(self, transaction: str) -> tuple[TransactionRow, Sequence[Pulse]]:
        """What the store has of a transaction, also of a workflow that is not declared here: its row and its pulses.

        Raises:
            UnknownTransaction: there is none.
        """
        store = self.node.transactions.store
        row = store.get(transaction)
        if row is None:
            raise UnknownTransaction(f"no transaction {transaction!r} in {self.settings.store}")
        return row, store.pulses(transaction)

    async def transactions(
        self,
        *,
        status: str | None = None,
        workflow: str | Workflow | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[TransactionRow]:
        """What the store knows of its transactions, whoever runs them: newest first, at most `limit`.

        Args:
            status: only those that stand so: `running | completed | compensated | cancelled | halted | stuck`.
            workflow: only those of this one, by its name or itself.
            before: the last id of the page before.

        Raises:
            InvalidInput: there is no such status, or `limit` is less than 1.
        """
        if status is not None and status not in STATUSES:
            raise InvalidInput(f"status={status!r}: no such status.{suggest(str(status), STATUSES)}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidInput(f"limit={limit!r}: a whole number, at least 1")
        name = workflow.name if isinstance(workflow, Workflow) else workflow
        return self.node.transactions.store.list(status=status, workflow=name, limit=limit, before=before)

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

    def __enter__(self) -> Self:
        started = threading.Event()
        failure: list[BaseException] = []
        loop = asyncio.new_event_loop()

        def live() -> None:
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(self.node.open())
            except BaseException as error:
                failure.append(error)
                started.set()
            else:
                started.set()
                run_on(loop.run_forever)
            finally:
                loop.run_until_complete(_cancel_others())
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

        self._loop = loop
        self._thread = threading.Thread(target=live, name="bitactor-mesh", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            self._thread = None
            raise failure[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None or self._loop is None:
            return
        try:
            self._blocking(self.node.close)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None

    def submit(self, workflow: str | Workflow[R], input: Any = None, **options: Any) -> BlockingTransaction[R]:
        """`stimulate` from a thread that is not the mesh's; blocks until it is accepted.

        Raises:
            BitActorError: called on the mesh's own loop, where blocking would be a deadlock.
        """
        if self.state == "new":
            raise BitActorError("open the mesh first: `with Mesh(…) as mesh:`")
        return BlockingTransaction(self._blocking, self._blocking(self.stimulate, workflow, input, **options))

    def run(self, workflow: str | Workflow[R], input: Any = None, *, timeout: float | None = None, **options: Any) -> R:
        """Begin a transaction and wait for its result: one blocking call, which opens and closes the mesh if nobody
        has.

        Raises:
            What `stimulate` and `Transaction.result` raise.
        """
        if self.state == "new":
            with self:
                return self.submit(workflow, input, **options).result(timeout)
        return self.submit(workflow, input, **options).result(timeout)

    def _blocking(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
        """Await `call(*arguments, **options)` on the mesh's loop, from another thread.

        The coroutine is made on the loop's thread, where no Ctrl-C can come between making and starting it.

        Raises:
            BitActorError: called on the loop's own thread, where waiting would be a deadlock; or the mesh is closed.
        """
        loop, collapsed = self.node.loop, self.node.collapsed
        if self.state == "closed" or loop.is_closed():
            raise BitActorError(f"this mesh has ended: {collapsed}" if collapsed else "this mesh is closed")
        if threading.get_ident() == self.node.thread:
            raise BitActorError(
                "a blocking call on the mesh's own loop would wait for itself for ever; await the async one instead"
            )
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def start() -> None:
            task = loop.create_task(call(*arguments, **options))
            task.add_done_callback(lambda _: _transfer_result(future, task))
            future.add_done_callback(lambda _: _cancel_threadsafe(loop, task))

        try:
            loop.call_soon_threadsafe(start)
            while not concurrent.futures.wait([future], timeout=1.0).done:
                if loop.is_closed():
                    raise BitActorError("this mesh was closed meanwhile")
            return future.result()
        except concurrent.futures.CancelledError:
            raise BitActorError("this mesh was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise


def _plain(values: Any) -> dict[str, Any] | None:
    """What is in a mapping; None if it is none, or cannot be read."""
    try:
        return dict(values) if issubclass(type(values), Mapping) else None
    except BaseException:  # of a user's mapping
        return None


def _cancel_threadsafe(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Cancel the task of a caller that waits no more; without effect on a task that has ended."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
        loop.call_soon_threadsafe(task.cancel)


def _transfer_result(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    """Give the task's result or exception to the thread that waits for it, unless it has given up."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())


async def _cancel_others() -> None:
    """Cancel all other tasks on this loop, which ends."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1.0)
