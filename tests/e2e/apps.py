"""Workflows that the end-to-end tests run in several processes; found by name in each of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from opentelemetry import trace
from pydantic import BaseModel

from bitactor import Backoff, Context, Continue, Result, Retry, Signal, WorkerLost, Workflow, consumer
from tests.e2e.errands import DEFINITIONS


class Busy(Exception):
    """Declared by `signup`, so it travels as itself."""


class SignUp(BaseModel):
    name: str
    email: str


class Users:
    """A stand-in for a users' service, kept in files so that all processes see the same."""

    def directory(self) -> Path:
        return Path(os.environ["USERS"])

    async def insert(self, row: dict[str, Any], key: str) -> dict[str, Any]:
        if row["name"] == "busy":
            raise Busy("come back later", 7)
        (self.directory() / key).write_text(row["email"])
        return row

    async def delete_by_key(self, key: str) -> None:
        (self.directory() / key).unlink(missing_ok=True)


users = Users()
signup = Workflow("users.signup", input=SignUp, ttl=8, deadline=30.0, errors=[Busy])


@signup.step
def normalise(name: str, email: str) -> dict:
    return {"name": name.strip(), "email": email.lower()}


@signup.step(retries=1, backoff=Backoff(initial=0.01, factor=2, cap=1.0), timeout=2.0)
async def create_user(normalise: dict, ctx: Context) -> dict:
    return await users.insert(normalise, key=ctx.idempotency_key)


@create_user.undo(in_doubt=True)
async def delete_user(result: dict | None, ctx: Context) -> None:
    await users.delete_by_key(ctx.forward_key)


@create_user.compensate
def on_failure(error: Exception) -> Any:
    return Retry(after=0.01) if isinstance(error, Busy) else None


@signup.step(bind={"to": Result("create_user", "email")}, after=["create_user"], when=lambda to: "@" in to)
async def welcome(to: str, ctx: Context) -> int:
    await ctx.emit("user.created", {"email": to})
    return os.getpid()


@consumer("user.created", concurrency=10)
async def greet(signal: Signal) -> None:
    (users.directory() / f"greeted-{signal.token['email']}").write_text(str(os.getpid()))


@consumer("ping")
async def ping(signal: Signal, ctx: Context) -> None:
    await ctx.emit("pong", signal.token + 1)


@consumer("pong")
async def pong(signal: Signal, ctx: Context) -> None:
    await ctx.emit("ping", signal.token + 1)


serve = Workflow("serve", input={"ball": int}, ttl=8)


@serve.step
async def hit(ball: int, ctx: Context) -> None:
    await ctx.emit("ping", ball)


fragile = Workflow("fragile", input={"deadly": int, "notes": str}, ttl=8, redeliveries=2, grace=0.2)
"""Kills the process that runs it, the first `deadly` times."""


def _times(notes: str, what: str) -> int:
    """How often this has been called with these notes, over all processes."""
    with Path(notes, what).open("a") as file:
        file.write("x")
        file.flush()
    return Path(notes, what).stat().st_size


@fragile.step
async def prepare(notes: str) -> str:
    _times(notes, "prepared")
    return notes


@prepare.undo
async def tidy(notes: str) -> None:
    _times(notes, "tidied")


@fragile.step
async def explode(prepare: str, deadly: int) -> int:
    if _times(prepare, "exploded") <= deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


forgiving = Workflow("forgiving", input={"notes": str}, ttl=8, redeliveries=0, grace=0.2)


@forgiving.step
async def vanish(notes: str) -> str:
    _times(notes, "vanished")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@vanish.compensate
def instead(error: Exception) -> Any:
    return Continue(f"instead of {type(error).__name__}") if isinstance(error, WorkerLost) else None


slow = Workflow("slow", input={"seconds": float}, ttl=8)


@slow.step
async def wait(seconds: float, ctx: Context) -> dict:
    left = ctx.deadline_left
    await asyncio.sleep(seconds)
    return {"left": left, "pid": os.getpid()}


chain = Workflow("chain", input={"notes": str}, ttl=8, redeliveries=5)


@chain.step
async def one(notes: str) -> str:
    _times(notes, "one")
    return notes


@chain.step
async def two(one: str) -> str:
    await asyncio.sleep(0.01)
    _times(one, "two")
    return one


@chain.step
async def three(two: str) -> str:
    _times(two, "three")
    return "end"


spans = Workflow("spans", ttl=8)


@spans.step
async def loop_span() -> str:
    with trace.get_tracer("user").start_as_current_span("mine"):
        return "loop"


@spans.step
def thread_span() -> str:
    with trace.get_tracer("user").start_as_current_span("mine"):
        return "thread"


@spans.step(spawn="inline")
def inline_span() -> str:
    with trace.get_tracer("user").start_as_current_span("mine"):
        return "inline"


large = Workflow("large", input={"text": str, "times": int, "where": str}, ttl=5)


@large.step(retries=0)
async def repeat(text: str, times: int, where: str, ctx: Context) -> str:
    if where == "emitted":
        await ctx.emit("large.text", text * times)
        return ""
    return text * times


large_in_process = Workflow("large.in_process", input={"text": str, "times": int}, ttl=5)


@large_in_process.step(spawn="process", retries=0)
def repeat_there(text: str, times: int) -> str:
    return text * times


definitions: dict[str, Any] = {
    "signup": signup, "greet": greet, "ping": ping, "pong": pong, "serve": serve, "fragile": fragile,
    "forgiving": forgiving, "slow": slow, "chain": chain, "spans": spans, "large": large,
    "large.in_process": large_in_process, **DEFINITIONS,
}  # fmt: skip
