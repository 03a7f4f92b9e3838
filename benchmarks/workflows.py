"""The workflows that are measured.  Their functions are at module level, so that worker processes find them too."""

from __future__ import annotations

import asyncio
from typing import Any

from bitactor import Result, Workflow
from bitactor.messages.signal import DEFAULT_TTL

TIMEOUT = 30.0
"""Seconds on each step, so that each hop has a deadline, which is armed if it suspends or runs elsewhere."""


async def first() -> int:
    return 1


async def following(value: Any) -> Any:
    return value + 1


async def join() -> int:
    return 1


def chain(name: str, length: int, spawn: str | None = None) -> Workflow:
    """`length` steps, each taking the result of the one before; the result is `length`."""
    workflow = Workflow(name, ttl=max(length, DEFAULT_TTL))
    workflow.step(name="step1", timeout=TIMEOUT, spawn=spawn)(first)
    for number in range(2, length + 1):
        bind = {"value": Result(f"step{number - 1}")}
        workflow.step(name=f"step{number}", bind=bind, timeout=TIMEOUT, spawn=spawn)(following)
    return workflow


def fan_out(name: str, width: int) -> Workflow:
    """`width` steps side by side, and one that waits for all of them."""
    workflow = Workflow(name)
    names = [f"step{number}" for number in range(1, width + 1)]
    for step in names:
        workflow.step(name=step, timeout=TIMEOUT)(first)
    workflow.step(name="join", after=names, timeout=TIMEOUT)(join)
    return workflow


def parking(name: str, gate: asyncio.Event) -> Workflow:
    """One step that waits at `gate`."""
    workflow = Workflow(name)

    @workflow.step
    async def park() -> int:
        await gate.wait()
        return 1

    return workflow


IPC_CHAIN_LENGTH = 20
PROCESS_CHAIN_LENGTH = 20

in_other_node = chain("benchmarks.ipc", IPC_CHAIN_LENGTH)
in_worker_process = chain("benchmarks.process", PROCESS_CHAIN_LENGTH, spawn="process")
