"""`bitactor doctor`"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import sqlite3
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import zmq
from cyclopts import Parameter
from rich.text import Text

from bitactor.errors import BitActorError, ConfigurationError, StoreError
from bitactor.launcher import PACKAGES, complaint, namesake, stranger
from mesh.cli import work
from mesh.cli.exits import FAILED, OK
from mesh.cli.options import Curve, Json, Registry, Store
from mesh.cli.output import out, print_document, printable
from registry.support.private import check_directory

NEEDED: Final = (
    "pykka",
    "msgpack",
    "pyzmq",
    "pydantic",
    "pydantic-settings",
    "opentelemetry-sdk",
    "cachetools",
    "cyclopts",
    "rich",
    "starlette",
    "uvicorn",
)
_NAME_LENGTH: Final = len("/bitactor-12345678/n123456789012")
_FEW_FILES: Final = 1_024
_FEW_NAMES: Final = 5
_SYMBOLS: Final = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


class Check(NamedTuple):
    """A finding of `doctor`: one thing that was looked at."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    todo: str = ""
    """What to do about the finding; empty if nothing is to be done."""


async def doctor(
    *,
    store: Store = "",
    registry: Registry = "",
    otlp: Annotated[str, Parameter(env_var="BITACTOR_OTLP", help="OTLP/HTTP collector to look for.")] = "",
    curve: Curve = None,
    json: Json = False,
) -> int:
    """Look at this machine, and at the store, registry and collector that are named: does a node find what it needs?

    Exit code 1 if something fails; each finding says what to do about it.

    Example: bitactor doctor --store sqlite:///pulses.db --registry ipc:///run/user/1000/bitactor/registry
    """
    checks = [*_packages(), *_shadowed(), *_system(), *_directories(registry)]
    if store:
        checks += await asyncio.to_thread(_store, store)
    if registry:
        checks += await _registry(registry, curve)
    if otlp:
        checks.append(await asyncio.to_thread(_collector, otlp))
    failed = any(check.verdict == "fail" for check in checks)
    if json:
        print_document({"ok": not failed, "checks": [check._asdict() for check in checks]})
    else:
        for check in checks:
            symbol, style = _SYMBOLS[check.verdict]
            out().print(
                Text.assemble((f"{symbol} ", style), f"{check.name:<10} ", printable(check.found)), soft_wrap=True
            )
            if check.todo:
                out().print(Text.assemble(" " * 13, ("→ ", "dim"), printable(check.todo)), soft_wrap=True)
    return FAILED if failed else OK


def _packages() -> Iterator[Check]:
    running = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    yield Check("python", "ok", running)
    found, missing = [], []
    for name in NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check(
            "packages", "fail", f"not installed: {', '.join(missing)}", "pip install --force-reinstall bitactor"
        )
    else:
        yield Check(
            "packages", "ok", f"{', '.join(found)}; libzmq {zmq.zmq_version()}, SQLite {sqlite3.sqlite_version}"
        )


def _shadowed() -> Iterator[Check]:
    shadowed = [(name, found) for name in PACKAGES if (found := stranger(name)) is not None]
    for name, found in shadowed:
        yield Check("imports", "fail", complaint(name, found))
    here = namesake(Path.cwd())
    if here is not None:
        yield Check(
            "imports",
            "warn",
            f"{here} has the name of one of BitActor's packages",
            "'bitactor run' from here is refused; rename it",
        )
    elif not shadowed:
        yield Check("imports", "ok", f"{', '.join(PACKAGES)} are ours")


def _system() -> Iterator[Check]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        yield Check(
            "files",
            "warn",
            f"{soft} open files are allowed",
            f"ulimit -n {_FEW_FILES * 4}: each node and worker process needs a few",
        )
    else:
        yield Check(
            "files", "ok", f"{'any number of' if soft == resource.RLIM_INFINITY else soft} open files are allowed"
        )
    if not zmq.has("curve"):
        yield Check(
            "curve",
            "warn",
            "this libzmq has no CURVE",
            "nodes can meet on ipc:// only; reinstall pyzmq from its wheel for tcp://",
        )


def _directories(registry: str) -> Iterator[Check]:
    """Check the directories of sockets: nobody else may put one there, and their names must be short."""
    place = tempfile.gettempdir()
    longest = len(os.fsencode(place)) + _NAME_LENGTH
    if longest > work.MAX_IPC_PATH:
        yield Check(
            "sockets",
            "fail",
            f"{place} is too long for sockets in it ({longest} bytes of {work.MAX_IPC_PATH})",
            "set TMPDIR to a short one",
        )
    else:
        try:
            with tempfile.TemporaryDirectory(prefix="bitactor-") as made:
                yield _private(Path(made), "sockets")
        except OSError as error:
            yield Check(
                "sockets",
                "fail",
                f"no directory can be made in {place}: {error.strerror}",
                "set TMPDIR to a place that can be written",
            )
    if registry.startswith("ipc://"):
        directory = Path(registry.removeprefix("ipc://")).parent
        if directory.is_dir():
            yield _private(directory, "sockets")
        else:
            yield Check("sockets", "warn", f"{directory} does not exist", "'bitactor registry serve' makes it")


def _private(directory: Path, name: str) -> Check:
    try:
        check_directory(directory)
    except ConfigurationError as error:
        why, _, cure = str(error).partition("; ")
        return Check(name, "fail", why, cure)
    return Check(
        name,
        "ok",
        f"{directory.parent if name == 'sockets' and directory.name.startswith('bitactor-') else directory} takes "
        "private sockets",
    )


def _store(store: str) -> list[Check]:
    try:
        with work.open_reader(store) as reader:
            found = [_counts(store, Counter(row.status for row in reader.list(limit=10_000)))]
            if isinstance(reader, work.SqliteReader):
                found += _kept(reader, store)
            return found
    except (BitActorError, OSError) as error:
        missing = isinstance(error, StoreError) and "no such file" in str(error)
        early = "of an earlier release" in str(error)  # says itself what to do
        return [
            Check(
                "store",
                "warn" if early else "fail",
                str(error),
                "if no node has run on it yet, start one: the first makes it"
                if missing
                else ""
                if early
                else "name a store that this version reads",
            )
        ]


def _kept(reader: work.SqliteReader, store: str) -> Iterator[Check]:
    """Check the file of the journal that `store` names, all of it: with a large one that takes a while."""
    mode = reader.path.stat().st_mode
    if mode & 0o077:
        yield Check(
            "store",
            "warn",
            f"{reader.path} has mode {stat.S_IMODE(mode):o}: other users may open it, and it has what hops were given",
            f"chmod 600 {reader.path}*",
        )
    damage = reader.damage()
    if damage:
        yield Check(
            "store",
            "fail",
            f"{reader.path} is damaged: {'; '.join(damage)}",
            "stop the nodes that use it, copy it aside, and restore a sound copy, or try `sqlite3 FILE .recover`",
        )
    faults, seen = list[work.Fault](), work.Progress(0, 0)
    try:
        for found in reader.verify():
            if isinstance(found, work.Fault):
                faults.append(found)
            else:
                seen = found
    except StoreError:
        if not damage:
            raise
        return
    if not damage and not faults:
        counted = f"{seen.transactions} transactions, {seen.pulses} pulses"
        yield Check("store", "ok", f"{counted} and the file's structure are sound")
    hurt = [fault for fault in faults if fault.transaction]
    if hurt:
        named = "; ".join(f"{one.transaction}: {one.why}" for one in hurt[:_FEW_NAMES])
        more = f"; and {len(hurt) - _FEW_NAMES} more" if len(hurt) > _FEW_NAMES else ""
        yield Check(
            "store",
            "fail",
            f"{len(hurt)} transactions cannot be read: {named}{more}",
            "nodes leave them alone and carry on with the others; restore a sound copy to have them back",
        )
    if len(hurt) < len(faults):
        first = next(fault.why for fault in faults if not fault.transaction)
        yield Check(
            "store",
            "fail",
            f"{reader.path} is not as it was written in {len(faults) - len(hurt)} places: {first}",
            f"'bitactor verify --store {store}' names them all",
        )


def _counts(store: str, counts: Counter[str]) -> Check:
    shown = ", ".join(f"{number} {status}" for status, number in counts.most_common()) or "empty"
    if counts["stuck"] or counts["halted"]:
        return Check(
            "store",
            "warn",
            f"{store}: {shown}",
            "'bitactor list --status stuck' (or halted) shows them, 'bitactor resume ID' lets one go on",
        )
    return Check("store", "ok", f"{store}: {shown}")


async def _registry(registry: str, curve: Path | None) -> list[Check]:
    try:
        async with work.Client(registry, curve=curve, patience=3.0) as client:
            took = await client.ping()
            nodes = await client.nodes()
    except (BitActorError, TimeoutError) as error:
        return [Check("registry", "fail", str(error), f"bitactor registry serve {registry}")]
    checks = [Check("registry", "ok", f"{registry} answers in {took * 1000:.1f} ms")]
    silent = [node["node"] for node in nodes if node["state"] == "silent"]
    if silent:
        checks.append(
            Check(
                "nodes",
                "fail",
                f"registered, but silent: {', '.join(silent)}",
                "look whether they hang; their leases are alive",
            )
        )
    elif not nodes:
        checks.append(
            Check("nodes", "warn", "no node is registered", f"bitactor run MODULE:OBJECT --registry {registry}")
        )
    else:
        checks.append(Check("nodes", "ok", f"{len(nodes)} answer: {', '.join(node['node'] for node in nodes)}"))
    parked = {transaction: why for node in nodes for transaction, why in node.get("parked", {}).items()}
    if parked:
        named = "; ".join(f"{transaction}: {why}" for transaction, why in islice(parked.items(), _FEW_NAMES))
        more = f"; and {len(parked) - _FEW_NAMES} more" if len(parked) > _FEW_NAMES else ""
        found = f"{len(parked)} transactions cannot go on where they are: {named}{more}"
        checks.append(Check("nodes", "warn", found, "'bitactor list --registry …' marks them as parked"))
    return checks


def _collector(otlp: str) -> Check:
    url = urlsplit(otlp)
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    try:
        connection = kind(url.hostname or "", url.port or 4318, timeout=3.0)
        try:
            connection.request(
                "POST", f"{url.path.rstrip('/')}/v1/traces", b"", {"Content-Type": "application/x-protobuf"}
            )
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as error:
        return Check(
            "collector",
            "warn",
            f"nobody takes spans at {otlp}: {error}",
            "runs go on without; start one, such as Jaeger, on port 4318",
        )
    if status >= 400:
        return Check(
            "collector",
            "warn",
            f"{otlp} answers {status} to an empty OTLP request",
            "is it the collector's OTLP/HTTP port?",
        )
    return Check("collector", "ok", f"{otlp} takes spans")
