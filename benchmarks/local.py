"""Work that stays on this process's loop, with its journal in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pykka

from benchmarks.floors import gathered, per_bare_actor, per_task, per_thread, task_chains_per_second
from benchmarks.measuring import Contest, Sizes
from benchmarks.workflows import chain, fan_out
from bitactor import Workflow
from mesh import Mesh

CHAIN_LENGTH = 100
SHORT_CHAIN_LENGTH = 10


async def run_chains(mesh: Mesh, workflow: Workflow, transactions: int, in_flight: int = 1) -> float:
    """Seconds for so many transactions of a chain, `in_flight` side by side."""
    length = len(workflow.steps)

    async def run() -> None:
        for _ in range(transactions // in_flight):
            transaction = await mesh.stimulate(workflow)
            if await transaction.result() != length:
                raise RuntimeError(f"{transaction!r} gave another result than {length}")

    began = time.perf_counter()
    if in_flight == 1:
        await run()
    else:
        await asyncio.gather(*(run() for _ in range(in_flight)))
    return time.perf_counter() - began


async def per_hop(mesh: Mesh, workflow: Workflow, transactions: int, in_flight: int = 1) -> float:
    """µs for a hop of a chain."""
    seconds = await run_chains(mesh, workflow, transactions, in_flight)
    return seconds / (transactions * len(workflow.steps)) * 1e6


async def per_second(mesh: Mesh, workflow: Workflow, transactions: int, in_flight: int) -> float:
    """How many transactions end a second."""
    return transactions / await run_chains(mesh, workflow, transactions, in_flight)


@asynccontextmanager
async def hop_memory(sizes: Sizes) -> AsyncIterator[Contest]:
    """A long chain, so that what beginning and ending a transaction costs hardly shows."""
    workflow = chain("benchmarks.hop", CHAIN_LENGTH)
    transactions = sizes.pick(20, 1)
    async with Mesh(workflow, store="memory://") as mesh:
        yield Contest(
            partial(per_hop, mesh, workflow, transactions),
            {
                "create_task + await": partial(per_task, transactions, CHAIN_LENGTH),
                "bare-actor loop by hand": partial(per_bare_actor, transactions, CHAIN_LENGTH),
            },
        )


def workflows_of_five(in_flight: int) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """Workflows a second."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        workflow = chain("benchmarks.five", 5)
        transactions = sizes.pick(1_000, in_flight)
        async with Mesh(workflow, store="memory://") as mesh:
            yield Contest(
                partial(per_second, mesh, workflow, transactions, in_flight),
                {"5 chained create_task + await": partial(task_chains_per_second, transactions, 5, in_flight)},
            )

    return enter


@asynccontextmanager
async def fan_out_1000(sizes: Sizes) -> AsyncIterator[Contest]:
    """From the stimulus to the result of the step that joins them."""
    width = 1_000
    workflow = fan_out("benchmarks.fan-out", width)
    async with Mesh(workflow, store="memory://") as mesh:

        async def run() -> float:
            began = time.perf_counter()
            transaction = await mesh.stimulate(workflow)
            await transaction.result()
            return (time.perf_counter() - began) * 1e3

        yield Contest(run, {"gather of 1,000 create_task": partial(gathered, width)})


def chain_of(length: int) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """µs for a hop; held against a hop of the short chain, which is held against a task."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        short = chain("benchmarks.short", SHORT_CHAIN_LENGTH)
        hops = sizes.pick(2_000, length)
        if length == SHORT_CHAIN_LENGTH:
            async with Mesh(short, store="memory://") as mesh:
                floor = partial(per_task, hops // length, length)
                yield Contest(partial(per_hop, mesh, short, hops // length), {"create_task + await": floor})
            return
        workflow = chain("benchmarks.chain", length)
        async with Mesh(workflow, short, store="memory://") as mesh:
            floor = partial(per_hop, mesh, short, hops // SHORT_CHAIN_LENGTH)
            yield Contest(partial(per_hop, mesh, workflow, hops // length), {"the same in chain-10": floor})

    return enter


class Echo(pykka.ThreadingActor):
    """A stock actor that answers what it is asked."""

    def on_receive(self, message: int) -> int:
        return message


@asynccontextmanager
async def thread_actor(sizes: Sizes) -> AsyncIterator[Contest]:
    """What a hop would cost as a stock pykka actor: started, asked once, stopped."""
    count = sizes.pick(200, 5)

    async def run() -> float:
        began = time.perf_counter()
        for number in range(count):
            reference = Echo.start()
            if reference.ask(number) != number:
                raise RuntimeError("an echo gave another answer")
            reference.stop()
        return (time.perf_counter() - began) / count * 1e6

    yield Contest(run, {"Thread.start + join": partial(per_thread, count)})
