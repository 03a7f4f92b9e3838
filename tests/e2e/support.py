"""What the tests of a whole mesh share: a clock that stands still, waiting for conditions, and a look at journals."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bitactor import Workflow
from bitactor.messages.wire import decode_pulse, encode_pulse
from bitactor.saga import Saga
from bitactor.testing import FakeClock
from mesh import Mesh, Transaction

BOUND = 10.0
"""Seconds after which a test that waits has failed; never reached when all is well."""

SPAWNERS = ("inline", "loop", "thread")


async def pass_time(clock: FakeClock, seconds: float, steps: int = 1) -> None:
    """Let time pass, in steps, and the loop do what follows from each."""
    for _ in range(steps):
        clock.advance(seconds / steps)
        await turns()


async def turns(count: int = 20) -> None:
    """Let the loop turn a few times; enough for everything that waits for nobody else."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(BOUND):
        while not (found := condition()):  # noqa: ASYNC110 (conditions of every kind, few of which are events)
            await asyncio.sleep(0.001)
    return found


async def spawned(transaction: Transaction, step: str) -> None:
    """Wait until a step is on its way, and let it begin."""
    await until(lambda: f"spawned {step}" in pulse_lines(transaction))
    await turns()


def for_spawner(where: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, made `async` if it is to run on the loop."""
    if where != "loop":
        return function

    @functools.wraps(function)
    async def on_loop(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return on_loop


def chain(name: str, length: int, *, ttl: int | None = None, **options: Any) -> Workflow:
    """`length` steps in a row, s1 … sn, that each add one."""
    workflow = Workflow(name, input={"start": int}, ttl=ttl or length)
    before = "start"
    for number in range(1, length + 1):
        space: dict[str, Any] = {}
        exec(f"async def s{number}({before}): return {before} + 1", space)
        workflow.step(**options)(space[f"s{number}"])
        before = f"s{number}"
    return workflow


def pulse_lines(transaction: Transaction) -> list[str]:
    """The journal as `kind step`, undo marked with `~`; what is of the transaction itself as `kind` alone."""
    return [
        f"{pulse.kind} {'~' if pulse.direction == 'undo' and pulse.step else ''}{pulse.step}".strip()
        for pulse in transaction.pulses()
    ]


def undone(transaction: Transaction) -> list[str]:
    """Steps that were undone, in order."""
    return [pulse.step for pulse in transaction.pulses() if pulse.kind == "undone"]


def tombstones(transaction: Transaction) -> list[str | None]:
    return [pulse.error for pulse in transaction.pulses() if pulse.kind == "tombstone"]


def audit(transaction: Transaction) -> None:
    """The journal alone says what the live transaction is, and every beginning of it can be folded, also from bytes."""
    pulses = [decode_pulse(encode_pulse(pulse)) for pulse in transaction.raw_pulses()]
    assert pulses == list(transaction.raw_pulses())
    for length in range(1, len(pulses)):
        Saga.fold(transaction.plan, pulses[:length])
    folded = Saga.fold(transaction.plan, pulses)
    assert folded.state.status == transaction.status
    live = transaction.snapshot()
    for name, value in folded.snapshot().items():
        assert value == live[name], f"{name}: the journal says {value!r}, the live state {live[name]!r}"


async def start(mesh: Mesh, workflow: Workflow, value: Any = None, **options: Any) -> Transaction:
    return await mesh.stimulate(workflow, value, **options)


async def finish(mesh: Mesh, workflow: Workflow, value: Any = None, **options: Any) -> Transaction:
    """Stimulate, wait for the end, compare journal and state."""
    transaction = await mesh.stimulate(workflow, value, **options)
    await transaction.ended(BOUND)
    audit(transaction)
    return transaction


class Peak:
    """How many are inside at once, and were at most; from any thread."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1

    @asynccontextmanager
    async def outside(self) -> AsyncIterator[None]:
        """For what is inside but waits."""
        self.__exit__()
        yield
        self.__enter__()
