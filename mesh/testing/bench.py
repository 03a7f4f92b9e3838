"""The meshes and fixtures of one test, and how they end."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, Unpack

import pytest
from typing_extensions import TypeVar, override

from bitactor.declare.stimulus import StimulusKeywords
from bitactor.errors import BitActorError
from bitactor.plan.consumer import Consumer
from bitactor.ports import Clock, Ids, Sink, TransactionRow
from bitactor.testing import SequentialIds
from bitactor.workflow import Workflow
from mesh.mesh import BlockingMesh, Mesh
from mesh.runtime.node import Node
from mesh.runtime.settings import Settings
from mesh.testing.activity import LINGER, Leftovers
from mesh.testing.clock import MeshClock
from mesh.testing.portal import Portal, in_a_loop
from mesh.testing.pulses import Pulses
from mesh.testing.replace import Replacements, replace_callbacks
from mesh.transaction import Transaction

R = TypeVar("R", default=Any)


class FixtureMesh(Mesh):
    """A `Mesh` that opens by itself when it is first used, and that the fixture closes.

    In a coroutine it lives on the loop of the test; elsewhere on a loop in a thread, which all meshes of the test
    share.  Closed by yourself, with `close`, nothing is said about what was still running.
    """

    def __init__(
        self,
        bench: Bench,
        *definitions: Workflow | Consumer,
        steps: Replacements | None = None,
        sinks: Sequence[Sink] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        **options: Any,
    ) -> None:
        self._bench = bench
        self._lock = asyncio.Lock()
        self._steps = steps
        super().__init__(*definitions, sinks=[bench.pulses, *sinks], clock=clock, ids=ids, **_hermetic(options))

    @override
    def _make_node(self) -> Node:
        node = super()._make_node()
        if self._steps:
            plans = replace_callbacks(self._definitions, self._steps)
            node.plans.update(plans)
            node.consumers.update({key: plans[plan.workflow] for key, plan in node.consumers.items()})
        self._bench._watch(node, self._parts["clock"])
        return node

    # On the loop of a test

    @override
    async def __aenter__(self) -> Self:
        await self._begin("new", "closed")
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bench.end([self], failed=error is not None)

    @override
    async def stimulate(self, workflow: str | Workflow[R], input: Any = None, **options: Any) -> Transaction[R]:
        """Opens the mesh first if need be; see `Mesh.stimulate`."""
        await self._begin()
        return await super().stimulate(workflow, input, **options)

    @override
    async def transaction(self, transaction: str) -> Transaction:
        """Opens the mesh first if need be; see `Mesh.transaction`."""
        await self._begin()
        return await super().transaction(transaction)

    @override
    async def transactions(self, **options: Any) -> list[TransactionRow]:
        """Opens the mesh first if need be; see `Mesh.transactions`."""
        await self._begin()
        return await super().transactions(**options)

    async def _begin(self, *states: str) -> None:
        """Open the mesh if it was never opened, or is in one of these states."""
        if self.state == "closed" and "closed" not in states:
            return
        if not in_a_loop():
            raise BitActorError(
                'a mesh lives on an asyncio loop; run this test on one (with anyio: `anyio_backend = "asyncio"`)'
            )
        async with self._lock:
            if self.state in (states or ("new",)):
                self._bench.begin()
                await self._open()

    # From a thread

    @override
    def __enter__(self) -> BlockingMesh:
        self._open_in_thread("new", "closed")
        return super().blocking

    @property
    @override
    def blocking(self) -> BlockingMesh:
        """Opens the mesh first if need be; see `Mesh.blocking`."""
        self._open_in_thread()
        return super().blocking

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bench.portal().call(self._bench.end, [self], failed=error is not None)

    @override
    def run(
        self,
        workflow: str | Workflow[R],
        input: Any = None,
        *,
        timeout: float | None = None,
        **options: Unpack[StimulusKeywords],
    ) -> R:
        """The mesh stays open afterwards; see `Mesh.run`."""
        self._open_in_thread()
        return super().run(workflow, input, timeout=timeout, **options)

    def _open_in_thread(self, *states: str) -> None:
        if in_a_loop():
            raise BitActorError(
                "this test is a coroutine: await `stimulate`; `submit` and `run` would block the loop that its mesh "
                "lives on"
            )
        self._bench.portal().call(self._begin, *states)


class MeshFactory:
    """The `mesh` fixture: makes meshes that close with the test."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __call__(
        self,
        *definitions: Workflow | Consumer,
        steps: Replacements | None = None,
        sinks: Sequence[Sink] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        **options: Any,
    ) -> FixtureMesh:
        """A mesh in this process; it opens when first used, and closes with the test.

        What runs then still, and does not end by itself within two seconds, fails the test; so do tasks that steps have
        left behind.

        Args:
            definitions: workflows and consumers, as for `Mesh`.
            steps: step → function, or mock, to run in its place; `step.undo` and `step.compensate` likewise, and
                `workflow/step` where a name alone may mean several.  A mock is given what the replaced function takes.
            sinks: who is told of pulses beside the `pulses` fixture.
            clock: time; by default the `fake_clock` fixture's if the test asks for that, else the machine's.
            ids: by default counted up, so that they are the same at each run, if the store is `memory://`.
            options: as for `Mesh`, `replace={resource: object}` among them.  What is in the environment (`BITACTOR_…`)
                does not count.

        Raises:
            DefinitionError: a definition, or a function in `steps`, cannot work.
            ConfigurationError: an option is wrong, or `steps` names what is not there.
        """
        return self._bench.make(*definitions, steps=steps, sinks=sinks, clock=clock, ids=ids, **options)


class Bench:
    """Holds everything that the fixtures made for one test.

    Meshes are closed inside the test's own call, where a coroutine's loop still runs: the test's function is wrapped
    for that.
    """

    def __init__(self, item: Any) -> None:
        self.pulses: Final = Pulses()
        self.factory: Final = MeshFactory(self)
        self._item = item
        self._clock: MeshClock | None = None
        self._ids = SequentialIds()
        self._meshes: list[FixtureMesh] = []
        self._portal: Portal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the test's, if it is a coroutine
        self._tasks: set[asyncio.Task[Any]] = set()  # those that were there before our meshes
        self._unwrap: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        if not hasattr(self._item, "obj"):
            return self  # a doctest, or something else that is no function
        inner = getattr(self._item.obj, "hypothesis", None)
        owner, name = (self._item, "obj") if inner is None else (inner, "inner_test")
        function = getattr(owner, name)
        setattr(owner, name, self._wrap(function))
        self._unwrap = lambda: setattr(owner, name, function)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unwrap()
        try:
            self._end_in_thread(failed=False)
            still_open = [mesh for mesh in self._meshes if mesh.node.state not in ("new", "closed")]
            if still_open:
                pytest.fail(
                    f"{len(still_open)} meshes are open on a loop that the test did not run on; close them where they "
                    "were opened, "
                    "with `async with mesh(…)`",
                    pytrace=False,
                )
        finally:
            if self._portal is not None:
                self._portal.close()

    def make(
        self, *definitions: Workflow | Consumer, clock: Clock | None, ids: Ids | None, **options: Any
    ) -> FixtureMesh:
        """A mesh of this test; see `MeshFactory`."""
        if ids is None and options.get("store", "memory://") == "memory://":
            ids = self._ids  # a store that outlives the test needs ids that nobody has had
        mesh = FixtureMesh(self, *definitions, clock=clock or self._clock, ids=ids, **options)
        self._meshes.append(mesh)
        return mesh

    def _watch(self, node: Node, clock: Clock | None) -> None:
        """Know the node of a mesh, a new one each time it is opened."""
        self.pulses.know(node.plans)
        if self._clock is not None and clock is self._clock:
            self._clock.watch(node)

    def use_fake_clock(self) -> MeshClock:
        """The fake clock, by which meshes live from now on."""
        if self._clock is None:
            self._clock = MeshClock(self.portal, lambda: len(self.pulses))
        return self._clock

    def portal(self) -> Portal:
        """The event loop of a test that is no coroutine."""
        if self._portal is None:
            self._portal = Portal()
        return self._portal

    # Beginning and ending, on the loop of the meshes

    def begin(self) -> None:
        """Note that a mesh is about to open."""
        if not any(mesh.state in ("opening", "open") for mesh in self._meshes):
            self._tasks = asyncio.all_tasks()

    async def end(self, meshes: Sequence[FixtureMesh] | None = None, *, failed: bool) -> None:
        """Close `meshes`, or all that live on this loop.

        Args:
            failed: the test has failed already; nothing is said about what is left over.

        Raises:
            Failed: something is left over.
        """
        nodes = [
            mesh.node
            for mesh in (self._meshes if meshes is None else meshes)
            if mesh.node.state in ("open", "draining")
        ]
        nodes = [node for node in nodes if node.loop is asyncio.get_running_loop()]
        if not nodes:
            return
        leftovers = Leftovers(nodes, self._tasks if self._is_ours(nodes[0].loop) else asyncio.all_tasks())
        if not failed:
            await leftovers.linger(LINGER, clock_frozen=self._clock is not None)
        for node in nodes:
            await node.close(0)
        failure_message = "" if failed else await leftovers.failure_message()
        if failure_message:
            pytest.fail(failure_message, pytrace=False)

    def _is_ours(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a loop is the test's or its portal's.  On another, a test client's, there are tasks of its own."""
        return loop is self._loop or (self._portal is not None and loop is self._portal.loop)

    def _end_in_thread(self, *, failed: bool) -> None:
        if self._portal is not None:
            self._portal.call(self.end, failed=failed)

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):
            return self._wrap_coroutine(function)

        @functools.wraps(function)
        def test(*arguments: Any, **options: Any) -> Any:
            __tracebackhide__ = True
            try:
                result = function(*arguments, **options)
            except BaseException:
                self._end_in_thread(failed=True)
                raise
            self._end_in_thread(failed=False)
            return result

        return test

    def _wrap_coroutine(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def test(*arguments: Any, **options: Any) -> Any:
            __tracebackhide__ = True
            self._loop = asyncio.get_running_loop()
            try:
                result = await function(*arguments, **options)
            except BaseException:
                await self.end(failed=True)
                raise
            await self.end(failed=False)
            return result

        return test


def _hermetic(options: dict[str, Any]) -> dict[str, Any]:
    """`options` completed so that the environment adds nothing."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    return {name: value for name, value in defaults.items() if value is not None} | options
