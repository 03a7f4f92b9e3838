"""What users of the packages see, as plain data: `python -m tests.public_face` writes the listing that
`test_public_face` holds it against.

Names, signatures, the command line's help, the HTTP API, and the bytes of messages, pulses and the journal of one fixed
example.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import importlib
import inspect
import io
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitactor import Backoff, Context, Element, Result, Workflow, consumer
from bitactor.messages.signal import Answer, Cancel, Fault, Question, Receipt, Reply, Signal, Stimulus
from bitactor.messages.wire import decode_message, encode_message, encode_pulse
from bitactor.testing import FakeClock, SequentialIds
from mesh import Mesh
from mesh.cli.app import VERBS
from mesh.cli.app import main as command
from mesh.ingress.openapi import describe_api
from tests.e2e.support import turns, until

LISTING = Path(__file__).parent / "public_face.json"
MODULES = (
    "bitactor", "bitactor.errors", "bitactor.messages.ids", "bitactor.patterns", "bitactor.ports", "bitactor.testing",
    "mesh", "mesh.ingress.http", "mesh.ingress.server", "mesh.ready.http_errors", "mesh.ready.resources.cache",
    "mesh.ready.resources.database", "mesh.ready.resources.http", "mesh.ready.steps.files", "mesh.ready.steps.http",
    "mesh.ready.steps.subprocess", "mesh.sinks", "mesh.testing", "pytest_bitactor", "registry",
)  # fmt: skip
"""Every module that docs, README or a docstring of the public face tell users to import from."""

PACKAGES = ("bitactor", "registry", "mesh", "pytest_bitactor")
GIVEN = ("Bench", "BlockingMesh", "BlockingTransaction", "Consumer", "Context", "FixtureMesh", "Step", "Transaction")
"""Classes whose objects users get and never make: their constructors are ours."""


def listing() -> dict[str, Any]:
    """All of it."""
    return {
        "names": {name: _module(name) for name in MODULES},
        "command line": _help(),
        "http": json.loads(json.dumps(describe_api([example()[0]], 1_000_000))),
        "graph": example()[0].describe(),
        "picture": example()[0].mermaid(),
        "messages": {type(message).__name__: encode_message(message).hex() for message in messages()},
        **asyncio.run(_run()),
    }


def _module(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    return {public: _about(getattr(module, public)) for public in listed_names(name)}


def listed_names(name: str) -> list[str]:
    """The public names of a module."""
    module = importlib.import_module(name)
    return sorted(
        getattr(module, "__all__", None)
        or [
            public
            for public, thing in vars(module).items()
            if not public.startswith("_") and getattr(thing, "__module__", name) == name and not inspect.ismodule(thing)
        ]
    )


def listed_members(kind: type) -> list[str]:
    """The public members of a class, but for those that it has of others' classes."""
    return [
        name
        for name in dir(kind)
        if not name.startswith("_")
        and not any(name in vars(base) for base in kind.__mro__ if base.__module__.split(".")[0] not in PACKAGES)
    ]


def _about(thing: Any) -> Any:
    if isinstance(thing, type):
        members = dict(sorted(_members(thing)))
        bases = [base.__name__ for base in thing.__bases__ if base is not object and not base.__name__.startswith("_")]
        made = "" if thing.__name__ in GIVEN else _signature(thing)
        return {"bases": bases, "signature": made, "members": members}
    if callable(thing):
        return _signature(thing)
    return _plain(thing)


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    for name in listed_members(kind):
        if issubclass(kind, enum.Enum) or isinstance(inspect.getattr_static(kind, name), property):
            yield name, "property"
            continue
        member = getattr(kind, name)
        yield name, _signature(member) if callable(member) else "attribute"


def _signature(thing: Any) -> str:
    try:
        return re.sub(r" at 0x[0-9a-f]+|\b(?:[a-z_]+\.)+(?=[A-Z])", "", str(inspect.signature(thing)))
    except (TypeError, ValueError):
        return "?"


def _plain(thing: Any) -> str:
    return (
        re.sub(r" at 0x[0-9a-f]+|<function [^>]*>", "", repr(thing))
        if isinstance(thing, str | int | float | tuple)
        else type(thing).__name__
    )


def _help() -> dict[str, str]:
    found = {}
    for verb in [(), *((verb,) for verb in VERBS), ("registry", "serve")]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            command([*verb, "--help"])
        found[" ".join(verb)] = " ".join(re.sub(r"[\u2500-\u257f]", " ", output.getvalue()).split())
    return found


def messages() -> list[Any]:
    """One of each kind, every field in use."""
    transaction, root = "01" * 16, "02" * 16
    fault = Fault("builtins:ValueError", "no", "Traceback\n", b"\x91\xa2no", b"\x90")
    made = [
        Signal(
            "w/s", transaction, root, "03" * 8, ("04" * 8,), "undo", 2, 3, 4, 5, 6, b"\x01", "ipc://x", fault,
            "05" * 16, {"a": 1}, True, 7, ("w",), "c/1/s",
        ),
        Reply(transaction, "03" * 8, 3, 4, "retry", b"\x01", fault, 5, (("n", b"\x02"),), 6, "why", b"\x90"),
        Cancel(transaction, "03" * 8, 3, 4),
        Stimulus("06", "n", "g", b"\x01", 5, 6, "ipc://x", root, transaction, "03" * 8, ("w",), {"a": 1}, "k"),
        Receipt("06", transaction, "busy"),
        Question("q", "status", [1], "ipc://x"),
        Answer("q", {"a": 1}, "no", "InvalidInput"),
    ]  # fmt: skip
    assert all(type(decode_message(encode_message(message))) is type(message) for message in made)
    return made


def example() -> tuple[Workflow, Workflow, Any]:
    """A workflow with most kinds of steps, one that fails and undoes, and a consumer."""
    line = Workflow("line", input={"amount": int}, ttl=4)

    @line.step
    async def reserve(amount: int) -> int:
        return amount * 10

    workflow = Workflow("example", input={"amounts": list[int], "name": str}, ttl=12, deadline=30.0)

    @workflow.step(retries=1, backoff=Backoff(initial=0.5, jitter=0), timeout=2.0)
    async def begin(name: str, attempt: int) -> dict[str, str]:
        if attempt == 1:
            raise ConnectionError("again")
        return {"name": name}

    @begin.undo(in_doubt=True)
    async def unbegin(result: Any) -> None: ...

    workflow.map(name="reserved", workflow=line, over="amounts", bind={"amount": Element()}, batch=2, after=["begin"])
    workflow.template("text", "{begin.name} has {reserved}")

    @workflow.step(when=lambda begin: False, after=["text"])
    async def skipped(begin: Any) -> None: ...

    @workflow.step(bind={"text": Result("text")}, after=["skipped"])
    async def tell(text: str, ctx: Context) -> str:
        await ctx.emit("told", {"text": text})
        return text

    failing = Workflow("failing", input={"n": int}, ttl=4)

    @failing.step(spawn="inline")
    def one(n: int) -> int:
        return n

    @one.undo
    def unone(result: int) -> None: ...

    @failing.step(spawn="inline")
    def two(one: int) -> int:
        raise ValueError("two fails", one)

    @consumer("told", group="listeners")
    async def listen(signal: Any) -> None: ...

    return workflow, failing, listen


async def _run() -> Mapping[str, Any]:
    """The example, run with ids and a clock that are the same each time, on SQLite: its pulses as bytes, and the
    tables."""
    clock = FakeClock()
    with tempfile.TemporaryDirectory() as directory:
        store = f"{directory}/store.db"
        workflow, failing, listen = example()
        async with Mesh(
            workflow, failing, listen, store=f"sqlite:///{store}", clock=clock, ids=SequentialIds()
        ) as mesh:
            for name, given in (("example", {"amounts": [1, 2, 3], "name": "Ada"}), ("failing", {"n": 1})):
                transaction = await mesh.stimulate(name, given, key="k", metadata={"by": "test"})
                while transaction.status in ("queued", "running"):
                    await turns()
                    if transaction.pulses()[-1].kind == "retried":  # and nothing else is on its way, in a thread say
                        clock.advance(0.125)
                await until(lambda: not mesh.node.about()["running"] and not mesh.node.about()["undelivered"])
            rows = await mesh.transactions()
            pulses = {
                row.workflow: [
                    encode_pulse(pulse._replace(at_ns=0, elapsed_ns=0, data=_without_traceback(pulse.data))).hex()
                    for pulse in mesh.node.store.reader().pulses(row.transaction)
                ]
                for row in rows
            }
        copy = str(Path(directory) / "copy.db")
        command(["export", "--store", f"sqlite:///{store}", "--format", "sqlite", "-o", copy])
        database = sqlite3.connect(copy)
        tables = sorted(sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
        database.close()
    return {"pulses": pulses, "tables": tables}


def _without_traceback(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Where this file lies is not of interest."""
    if data is None:
        return data
    said = {name: item for name, item in data.items() if name not in ("request_digest", "valid_digest")}  # new since
    return {**said, "fault": [*said["fault"][:2], "", *said["fault"][3:]]} if "fault" in said else said


if __name__ == "__main__":
    LISTING.write_text(json.dumps(listing(), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
