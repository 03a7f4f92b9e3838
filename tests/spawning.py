"""Drives a spawner as a supervisor does: through a real executor, with real actors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from bitactor.declare.spawners import SPAWNERS
from bitactor.messages.codec import encode_token
from bitactor.messages.ids import hop_id
from bitactor.messages.signal import FORWARD, UNDO, Reply, Signal
from bitactor.plan.arguments import BoundArguments
from bitactor.workflow import Workflow
from mesh.hops.actor import BitActor
from mesh.hops.executor import Executor
from mesh.hops.ports import Lease, Spawner
from mesh.limits.timing_wheel import SystemClock, TimingWheel
from mesh.runtime.ids import TimeOrderedIds

PATIENCE = 60.0
"""Far longer than anything takes here."""


class UntilLease(Lease):
    """The right to start until a moment that the test says."""

    def __init__(self, until_ns: int) -> None:
        self.moment_ns = until_ns

    @override
    def until_ns(self) -> int:
        return self.moment_ns


class Hop:
    """One launched signal and what was answered."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.actor: BitActor
        self.replies: list[Reply] = []
        self.begun = 0
        self._changed = asyncio.Event()

    @property
    def state(self) -> int | None:
        """The actor's; None before it is made."""
        return self.actor.state if hasattr(self, "actor") else None

    def done(self, actor: BitActor, reply: Reply, error: BaseException | None) -> None:
        self.replies.append(reply)
        self._changed.set()

    async def reply(self, count: int = 1) -> Reply:
        """The `count`th reply."""
        async with asyncio.timeout(PATIENCE):
            while len(self.replies) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.replies[count - 1]


class Stage:
    """An executor whose every hop goes to one spawner."""

    def __init__(self, spawner: Spawner) -> None:
        self.loop = asyncio.get_running_loop()
        clock = SystemClock(self.loop)
        self.wheel = TimingWheel(clock)
        self.spawner = spawner
        self.executor = Executor(self.loop, clock, self.wheel, dict.fromkeys(SPAWNERS, spawner))
        self.ids = TimeOrderedIds()

    def launch(
        self,
        workflow: Workflow,
        step: str,
        *inputs: Any,
        timeout: float | None = None,
        direction: str = FORWARD,
        result: Any = None,
        lease: Lease | None = None,
    ) -> Hop:
        """Give the step's input fields, in order."""
        plan = workflow.check()
        compiled = plan.steps[plan.by_name[step]]
        transaction = self.ids.transaction()
        hop = Hop(
            Signal(
                compiled.address, transaction, transaction, hop_id(transaction, step, direction), (), direction, 1, 1,
                1, 7, None if timeout is None else int(timeout * 1e9), None, metadata={"by": "test"},
            )
        )  # fmt: skip
        tokens = [None] * len(plan.steps) + [encode_token(value) for value in inputs]
        arguments = BoundArguments(compiled.arguments, tokens, compiled.address)

        def begin() -> None:
            token = encode_token(result) if direction == UNDO else None
            hop.actor = self.executor.launch(plan, compiled, hop.signal, arguments, token, hop.done, lease=lease)

        self.loop.call_soon(begin)
        return hop

    async def run(self, workflow: Workflow, step: str, *inputs: Any, **options: Any) -> Reply:
        """Launch and wait for the reply."""
        return await self.launch(workflow, step, *inputs, **options).reply()

    async def close(self, timeout: float = 20.0) -> None:
        await self.spawner.close(timeout)
        await self.leave()

    async def leave(self) -> None:
        """Close what is not the spawner's, which others go on using."""
        for task in self.executor.compensations:
            task.cancel()
        self.wheel.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that nobody tells us about."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
