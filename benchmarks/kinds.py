"""What is made of other steps: maps, and a failure that undoes what went before."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from benchmarks.measuring import Contest, Sizes
from benchmarks.workflows import TIMEOUT
from bitactor import Result, Workflow, WorkflowFailed
from mesh import Mesh


def numbers(count: int) -> range:
    """The source of a map."""
    return range(count)


def increment(element: int) -> int:
    """The function of a map."""
    return element + 1


def map_of(
    count: int, batch: int, *, keep: bool = True, store: str = "memory://"
) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """µs for an element of an inline function; held against the loop that calls it."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        elements = sizes.pick(count, batch * 2)
        workflow = Workflow("benchmarks.map", input={"count": int})
        workflow.map(over=numbers, batch=batch, spawn="inline", keep=keep)(increment)
        async with Mesh(workflow, store=store) as mesh:

            async def run() -> float:
                began = time.perf_counter()
                transaction = await mesh.stimulate(workflow, {"count": elements})
                result = await transaction.result()
                took = time.perf_counter() - began
                if (len(result) if keep else result["count"]) != elements:
                    raise RuntimeError(f"{transaction!r} lost elements")
                return took / elements * 1e6

            async def loop() -> float:
                began = time.perf_counter()
                if len([increment(element=element) for element in numbers(elements)]) != elements:
                    raise RuntimeError("a list comprehension lost elements")
                return (time.perf_counter() - began) / elements * 1e6

            yield Contest(run, {"a list comprehension of calls": loop})

    return enter


async def step(value: int = 0) -> int:
    """One that succeeds."""
    return value + 1


async def refuse(value: int = 0) -> int:
    """One that does not."""
    raise ValueError("the tenth step fails")


async def take_back(result: int) -> None:
    """What undoes `step`."""


def chain_of_ten(name: str, *, fails: bool) -> Workflow:
    """Ten steps, nine of them with an undo."""
    workflow = Workflow(name, ttl=10)
    for number in range(1, 11):
        bind = {"value": Result(f"step{number - 1}")} if number > 1 else {}
        declare = workflow.step(name=f"step{number}", bind=bind, timeout=TIMEOUT)
        if number < 10:
            declare(step).undo(take_back)
        else:
            declare(refuse if fails else step)
    return workflow


@asynccontextmanager
async def undo_nine(sizes: Sizes) -> AsyncIterator[Contest]:
    """From the stimulus to the end of the ninth undo."""
    failing, plain = chain_of_ten("benchmarks.failing", fails=True), chain_of_ten("benchmarks.plain", fails=False)
    count = sizes.pick(200, 1)
    async with Mesh(failing, plain, store="memory://") as mesh:

        async def fail() -> float:
            began = time.perf_counter()
            for _ in range(count):
                transaction = await mesh.stimulate(failing)
                try:
                    await transaction.result()
                except WorkflowFailed as error:
                    if error.status != "compensated":
                        raise
            return (time.perf_counter() - began) / count * 1e6

        async def complete() -> float:
            began = time.perf_counter()
            for _ in range(count):
                transaction = await mesh.stimulate(plain)
                await transaction.result()
            return (time.perf_counter() - began) / count * 1e6

        yield Contest(fail, {"the same ten steps without a failure": complete})
