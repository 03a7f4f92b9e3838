"""Workflows that the spawners' tests run; worker processes import this module by its name."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel, Field

from bitactor import Context, Continue, Workflow
from tests import extensions  # noqa: F401  (which adds a spawner)

CALLS: contextvars.ContextVar[int] = contextvars.ContextVar("calls", default=0)


class Cataclysm(BaseException):
    """What no `except Exception` catches."""


def echo(value: Any) -> Any:
    return value


def fail(value: Any) -> None:
    raise ValueError(value)


def leave(value: Any) -> None:
    sys.exit(value)


def interrupt(value: Any) -> None:
    raise KeyboardInterrupt(value)


def ruin(value: Any) -> None:
    raise Cataclysm(value)


def uncarriable(value: Any) -> Any:
    return object()


def undecodable(value: Any) -> None:
    raise OSError("no file \udcff")


def count_calls(value: Any) -> int:
    CALLS.set(CALLS.get() + 1)
    return CALLS.get()


def emit_two(value: Any, ctx: Context) -> str:
    ctx.emit_later("first", value)
    ctx.emit_later("second")
    return ctx.idempotency_key


def wait_for_file(value: str) -> str:
    Path(f"{value}.begun").touch()
    while not Path(value).exists():
        time.sleep(0.005)
    return "seen"


def recover(value: Any) -> None:
    raise LookupError(value)


async def async_echo(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def async_fail(value: Any) -> None:
    await asyncio.sleep(0)
    raise ValueError(value)


async def async_leave(value: Any) -> None:
    await asyncio.sleep(0)
    sys.exit(value)


async def async_interrupt(value: Any) -> None:
    raise KeyboardInterrupt(value)


async def async_ruin(value: Any) -> None:
    await asyncio.sleep(0)
    raise Cataclysm(value)


async def async_uncarriable(value: Any) -> Any:
    return object()


async def async_undecodable(value: Any) -> None:
    raise OSError("no file \udcff")


async def async_count_calls(value: Any) -> int:
    CALLS.set(CALLS.get() + 1)
    await asyncio.sleep(0)
    return CALLS.get()


async def async_emit_two(value: Any, ctx: Context) -> str:
    await ctx.emit("first", value)
    await ctx.emit("second")
    return ctx.idempotency_key


async def async_wait_for_file(value: str) -> str:
    begun, awaited = Path(f"{value}.begun"), Path(value)
    begun.touch()  # noqa: ASYNC240
    while not awaited.exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)
    return "seen"


async def async_recover(value: Any) -> None:
    raise LookupError(value)


async def be_a_task(value: Any) -> list[Any]:
    first = asyncio.current_task()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        child = group.create_task(async_echo(value))
    return [first is not None, asyncio.current_task() is first, child.result()]


def _continue(error: Exception, value: Any) -> Continue:
    return Continue(f"recovered from {type(error).__name__}")


def _workflow(name: str, spawn: str, *functions: Callable[..., Any]) -> Workflow:
    workflow = Workflow(name, input={"value": Any}, errors=[LookupError])
    for function in functions:
        step = workflow.step(name=function.__name__.removeprefix("async_"), spawn=spawn)(function)
        if step.name == "recover":
            step.compensate(_continue)
    return workflow


_SYNC = (echo, fail, leave, interrupt, ruin, uncarriable, undecodable, count_calls, emit_two, wait_for_file, recover)
_ASYNC = (
    async_echo, async_fail, async_leave, async_interrupt, async_ruin, async_uncarriable, async_undecodable,
    async_count_calls, async_emit_two, async_wait_for_file, async_recover, be_a_task,
)  # fmt: skip

def_inline = _workflow("def.inline", "inline", *_SYNC)
def_thread = _workflow("def.thread", "thread", *_SYNC)
def_process = _workflow("def.process", "process", *_SYNC)
async_loop = _workflow("async.loop", "loop", *_ASYNC)
async_process = _workflow("async.process", "process", *_ASYNC)
def_unpooled = _workflow("def.unpooled", "unpooled", *_SYNC)


def emit_what_cannot_be(value: Any, ctx: Context) -> None:
    ctx.emit_later("news", object())


emits_what_cannot_be = Workflow("emits.process", input={"value": Any})
emits_what_cannot_be.step(name="it", spawn="process")(emit_what_cannot_be)


# What only makes sense in a process of its own


class Customer(BaseModel):
    full_name: str = Field(alias="fullName")


def who_am_i(value: Any) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "pytest": "pytest" in sys.modules,
        "path": sys.path,
        "stdin": sys.stdin.read(),
    }


def exit_hard(value: Any) -> None:
    os._exit(7)


def crash(value: Any) -> None:
    ctypes.string_at(0)


def keep_the_interpreter(value: str) -> None:
    """Spins in C without ever letting another thread run, after it has started a process of its own."""
    sleeper = subprocess.Popen(["sleep", "600"])
    Path(f"{value}.pids").write_text(f"{os.getpid()} {sleeper.pid}")
    Path(f"{value}.begun").touch()
    re.match(r"(a+)+$", "a" * 64 + "b")


def convert(value: Path, customer: Customer) -> str:
    return f"{customer.full_name} at {value.name}"


def trace_parent(value: Any) -> list[str]:
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    with trace.get_tracer("test").start_as_current_span("mine") as span:
        assert span.parent is not None  # type: ignore[attr-defined]
        parent = span.parent  # type: ignore[attr-defined]
        return [f"{parent.trace_id:032x}", f"{parent.span_id:016x}"]


def remember(value: Any) -> dict[str, Any]:
    return {"done": value, "pid": os.getpid()}


def forget(result: dict[str, Any]) -> None:
    assert result["pid"]


def kill_own_process_once(value: str) -> int:
    """Dies on its first delivery."""
    if not Path(value).exists():
        Path(value).touch()
        os.kill(os.getpid(), 9)
    return os.getpid()


alone = _workflow("alone", "process", who_am_i, exit_hard, crash, keep_the_interpreter, trace_parent)

typed = Workflow("typed", input={"value": str, "customer": dict})
typed.step(spawn="process")(convert)

once = Workflow("once", input={"value": str})
once.step(spawn="process")(kill_own_process_once)

undone = Workflow("undone", input={"value": Any})
remembered = undone.step(spawn="process")(remember)


@remembered.undo
async def take_back(result: dict[str, Any], value: Any) -> str:
    return f"took back {result['done']} given {value}"


remembering = Workflow("remembering", input={"value": Any})
"""What `undone` does, until a later step fails."""
remembering.step(spawn="process")(remember).undo(forget)
remembering.step(spawn="process", after=["remember"])(fail)


forgetful = Workflow("forgetful")


@forgetful.step(spawn="process")
def forgets(ctx: Context) -> None:
    ctx.emit("news", 1)
