"""The mesh that the `mesh` fixture makes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from typing_extensions import override

from bitactor.consumer import Consumer
from bitactor.errors import BitActorError
from bitactor.plan.plan import Plan
from bitactor.ports import Clock, Ids, Sink, TransactionRow
from bitactor.workflow import Workflow
from mesh.mesh import Mesh
from mesh.runtime.settings import Settings
from mesh.testing.portal import Portal, in_a_loop
from mesh.testing.pulses import Pulses
from mesh.testing.replace import Replacements, replace_callbacks
from mesh.transaction import BlockingTransaction, Transaction


class MeshBench(Protocol):
    """The bench that the meshes of one test share."""

    @property
    def pulses(self) -> Pulses:
        """The recording of the pulses of all meshes."""

    def begin(self) -> None:
        """Note that a mesh is about to open."""

    def portal(self) -> Portal:
        """The event loop of a test that is no coroutine."""

    async def end(self, meshes: Sequence[FixtureMesh], *, failed: bool) -> None:
        """Close `meshes`.

        Args:
            failed: the test has failed already; nothing is said about what is left over.

        Raises:
            Failed: something is left over.
        """


class FixtureMesh(Mesh):
    """A `Mesh` that opens by itself when it is first used, and that the fixture closes.

    In a coroutine it lives on the loop of the test; elsewhere on a loop in a thread, which all meshes of the test
    share.  Closed by yourself, with `close`, nothing is said about what was still running.
    """

    def __init__(
        self,
        bench: MeshBench,
        *definitions: Workflow | Consumer,
        steps: Replacements | None = None,
        sinks: Sequence[Sink] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*definitions, sinks=[bench.pulses, *sinks], clock=clock, ids=ids, **_hermetic(options))
        self._bench = bench
        self._lock = asyncio.Lock()
        if steps:
            self._install_plans(replace_callbacks(definitions, steps))

    def _install_plans(self, plans: Mapping[str, Plan]) -> None:
        self.node.plans.update(plans)
        for key, plan in self.node.consumers.items():
            self.node.consumers[key] = plans[plan.workflow]

    # On the loop of a test

    @override
    async def __aenter__(self) -> Self:
        await self._open()
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bench.end([self], failed=error is not None)

    @override
    async def stimulate(self, workflow: str | Workflow, input: Any = None, **options: Any) -> Transaction:
        """Opens the mesh first if need be; see `Mesh.stimulate`."""
        await self._open()
        return await super().stimulate(workflow, input, **options)

    @override
    async def transaction(self, transaction: str) -> Transaction:
        """Opens the mesh first if need be; see `Mesh.transaction`."""
        await self._open()
        return await super().transaction(transaction)

    @override
    async def transactions(self, **options: Any) -> list[TransactionRow]:
        """Opens the mesh first if need be; see `Mesh.transactions`."""
        await self._open()
        return await super().transactions(**options)

    async def _open(self) -> None:
        if not in_a_loop():
            raise BitActorError(
                'a mesh lives on an asyncio loop; run this test on one (with anyio: `anyio_backend = "asyncio"`)'
            )
        async with self._lock:
            if self.node.state == "new":
                self._bench.begin()
                await self.node.open()

    # From a thread

    @override
    def __enter__(self) -> Self:
        self._open_in_thread()
        return self

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bench.portal().call(self._bench.end, [self], failed=error is not None)

    @override
    def submit(self, workflow: str | Workflow, input: Any = None, **options: Any) -> BlockingTransaction:
        """Opens the mesh first if need be; see `Mesh.submit`."""
        self._open_in_thread()
        return super().submit(workflow, input, **options)

    @override
    def run(self, workflow: str | Workflow, input: Any = None, *, timeout: float | None = None, **options: Any) -> Any:
        """The mesh stays open afterwards; see `Mesh.run`."""
        return self.submit(workflow, input, **options).result(timeout)

    def _open_in_thread(self) -> None:
        if in_a_loop():
            raise BitActorError(
                "this test is a coroutine: await `stimulate`; `submit` and `run` would block the loop that its mesh "
                "lives on"
            )
        self._bench.portal().call(self._open)


def _hermetic(options: dict[str, Any]) -> dict[str, Any]:
    """`options` completed so that the environment adds nothing."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    return {name: value for name, value in defaults.items() if value is not None} | options
