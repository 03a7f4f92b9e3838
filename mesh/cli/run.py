"""`bitactor run MODULE:OBJECT`"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from cyclopts import Parameter

from mesh.cli import work
from mesh.cli.exits import FAILED, FENCED, CommandError, UsageError
from mesh.cli.load import definitions, load
from mesh.cli.options import Json, LogAs, Verbose
from mesh.cli.output import print_lines
from mesh.cli.signals import StopSignals

FLUSH_WITHIN: Final = 4.0
"""Seconds that leaving the mesh and flushing may take, after draining; then the process is ended."""


HttpAt = Annotated[
    str | None, Parameter(help="Serve the HTTP ingress: PORT (on 127.0.0.1; 0: any free one), or HOST:PORT.")
]
RootPath = Annotated[
    str, Parameter(show_default=False, help="The path that a proxy before the ingress takes off, such as /orders.")
]
WhenFenced = Annotated[
    Literal["rejoin", "exit"] | None,
    Parameter(help="When others took over what runs here: go on as another owner, or end with code 75."),
]
NoHost = Annotated[
    bool,
    Parameter(
        "--no-host", negative=(), show_default=False, help="Only supervise; other nodes run the steps and consumers."
    ),
]


class NodeServer:
    """A server of a mesh without an ingress."""

    def __init__(self, mesh: work.Mesh) -> None:
        self._mesh = mesh
        self._stop_requested = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self.started = asyncio.Event()
        self.url = ""

    async def run(self) -> None:
        """Open the mesh, wait for `stop`, drain, close."""
        async with self._mesh:
            self.started.set()
            await self._stop_requested.wait()
            self._draining = asyncio.ensure_future(self._mesh.close())
            await asyncio.wait((self._draining,))
            if not self._draining.cancelled():
                self._draining.result()

    def stop(self) -> None:
        """Stop the server: the first call drains, the second ends it now."""
        if self._stop_requested.is_set() and self._draining is not None:
            self._draining.cancel()
        self._stop_requested.set()


Server: TypeAlias = "work.HttpServer | NodeServer"
"""A server that runs until it is stopped: the first `stop` drains, the second ends it at once."""


async def run(
    place: str,
    /,
    *,
    store: Annotated[
        str | None,
        Parameter(env_var="BITACTOR_STORE", help="Where pulses are kept: memory://, or sqlite:///pulses.db."),
    ] = None,
    registry: Annotated[
        str | None, Parameter(env_var="BITACTOR_REGISTRY", help="Endpoint of the registry that connects several nodes.")
    ] = None,
    http: HttpAt = None,
    root_path: RootPath = "",
    endpoint: Annotated[str | None, Parameter(help="Where other nodes reach this one, ipc://… or tcp://….")] = None,
    otlp: Annotated[str | None, Parameter(help="OTLP/HTTP collector, such as http://127.0.0.1:4318.")] = None,
    curve: Annotated[Path | None, Parameter(help="File with the mesh's key pair; tcp endpoints need it.")] = None,
    no_host: NoHost = False,
    when_fenced: WhenFenced = None,
    payload_limit: Annotated[
        int | None, Parameter(help="Bytes one value may take, 65536 to 15728640; give all nodes the same.")
    ] = None,
    drain: Annotated[
        float | None, Parameter(help="Seconds that running transactions get when the node is stopped.")
    ] = None,
    verbose: Verbose = False,
    log_format: LogAs = None,
    until_stdin_closes: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Stop also when standard input ends: the starter is gone."),
    ] = False,
    json: Json = False,
) -> int:
    """Run a node: it takes stimuli, supervises transactions and runs steps, until it is stopped.

    Prints one line when it is ready. SIGTERM or SIGINT: take no more work, let what runs end, flush; a second one: now.
    Exit code 75: other processes took over what ran here, and --when-fenced exit was given; start it again.
    Options of the node (all but --http) can also come from the environment: BITACTOR_STORE, BITACTOR_DRAIN ...

    Example: bitactor run mesh.demo.signup:service --store sqlite:///pulses.db --http 8000

    Parameters
    ----------
    place
        MODULE:OBJECT, where OBJECT is a Workflow, a consumer, a list of them, or a Mesh with options of its own.
    """
    options = {
        "store": store, "registry": registry, "endpoint": endpoint, "otlp": otlp, "curve": curve,
        "hosts": False if no_host else None, "drain": drain,
        "when_fenced": when_fenced, "payload_limit": payload_limit,
    }  # fmt: skip
    level = logging.INFO if verbose else logging.WARNING
    work.prepare_log(level, log_format)
    mesh = _mesh(place, {name: value for name, value in options.items() if value is not None})
    work.log_to_stderr(level, log_format)  # what was imported may have set it up
    with StopSignals(until_stdin_closes=until_stdin_closes) as stopping:
        await _run(_server(mesh, http, root_path), mesh, stopping, machine=json)
    _require_no_collapse(mesh)
    return stopping.code


def _require_no_collapse(mesh: work.Mesh) -> None:
    """Raise `CommandError` if the node has ended by itself."""
    if mesh.node.collapsed:
        hint = "mend what it says; a service manager may start it again"
        code = FENCED if mesh.node.ownership.lost else FAILED
        raise CommandError(f"the node has ended: {mesh.node.collapsed}", code, hint=hint)


def _mesh(place: str, options: Mapping[str, Any]) -> work.Mesh:
    found = load(place)
    if not isinstance(found, work.Mesh):
        return work.Mesh(*definitions(found, place), **options)
    settings = found.node.settings
    other = [name for name, value in options.items() if getattr(settings, name) != value]
    if other:
        options_text = " and ".join(f"--{name.replace('_', '-')}" for name in other)
        raise UsageError(
            f"{place} is a Mesh with options of its own, so {options_text} would be ignored",
            "say so in its code or in the environment, or name the list of its workflows instead",
        )
    return found


def _server(mesh: work.Mesh, http: str | None, root_path: str) -> Server:
    if root_path and (http is None or not root_path.startswith("/")):
        raise UsageError(
            f"--root-path {root_path!r}: a path before that of an ingress", "give --http, and begin it with /"
        )
    if http is None:
        return NodeServer(mesh)
    host, separator, port = http.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535 or (separator and not host):
        raise UsageError(
            f"--http {http!r} is neither PORT nor HOST:PORT", "such as 8000, or 0.0.0.0:8000 for other machines"
        )
    return work.HttpServer(
        mesh, host=host.strip("[]") or work.DEFAULT_HOST, port=int(port), root_path=root_path.rstrip("/")
    )


async def _run(server: Server, mesh: work.Mesh, stopping: StopSignals, *, machine: bool) -> None:
    running = asyncio.ensure_future(server.run())
    requested = asyncio.ensure_future(stopping.requested.wait())
    forced = asyncio.ensure_future(stopping.forced.wait())
    started = asyncio.ensure_future(server.started.wait())
    collapsed = asyncio.ensure_future(mesh.node.collapse.wait())
    try:
        await asyncio.wait((running, started, requested), return_when=asyncio.FIRST_COMPLETED)
        if started.done() and not running.done():
            _print_ready(server, mesh, machine=machine)
            await asyncio.wait((running, requested, collapsed), return_when=asyncio.FIRST_COMPLETED)
            server.stop()
            bound = mesh.node.settings.drain + FLUSH_WITHIN
            await asyncio.wait((running, forced), timeout=bound, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                stopping.force()
                server.stop()
        elif not running.done():  # not wanted any more before it was up
            stopping.force()
            running.cancel()
        await asyncio.wait((running,))
    finally:
        for waiting in (requested, forced, started, collapsed):
            waiting.cancel()
        await asyncio.gather(requested, forced, started, collapsed, return_exceptions=True)
    if not running.cancelled():
        running.result()


def _print_ready(server: Server, mesh: work.Mesh, *, machine: bool) -> None:
    about = mesh.node.about()
    if machine:
        print_lines([{"ready": True, "http": server.url or None, **about}])
        return
    names = [*about["workflows"], *about["consumers"]]
    parts = [
        f"node {about['node']} ready: {', '.join(names)}",
        server.url,
        "" if about["hosts"] else "supervising only",
        about["store"],
    ]
    print("; ".join(part for part in parts if part), flush=True)
