"""`bitactor registry` and `bitactor registry serve ENDPOINT`"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from mesh.cli import work
from mesh.cli.exits import CommandError
from mesh.cli.options import Curve, Json, LogAs, Registry, Verbose, ask
from mesh.cli.output import err, print_lines, print_table, short
from mesh.cli.signals import StopSignals


async def show(
    pattern: Annotated[str, Parameter(help="Only names that match this glob.")] = "*",
    /,
    *,
    registry: Registry = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Show who is registered: names, holders, values.

    Example: bitactor registry 'workflow:*' --registry ipc:///run/user/1000/bitactor/registry
    """

    async def entries(client: work.Client) -> list[work.Entry]:
        return list(client.entries(pattern))

    found = await ask(registry, curve, entries)
    if json:
        print_lines(entry._asdict() for entry in found)
    elif found:
        print_table(
            ("name", "holder", "", "value"),
            (
                (
                    entry.name,
                    entry.holder,
                    f"unique, epoch {entry.epoch}" if entry.unique else "",
                    short(dict(entry.value)),
                )
                for entry in found
            ),
            fold="value",
        )
    else:
        err().print("nothing is registered")


async def serve(
    endpoint: str,
    /,
    *,
    state: Annotated[
        Path | None, Parameter(help="File that keeps the boot epoch, so that a restart is safe for clients that stay.")
    ] = None,
    curve: Curve = None,
    until_stdin_closes: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Stop also when standard input ends: the starter is gone."),
    ] = False,
    verbose: Verbose = False,
    log_format: LogAs = None,
    json: Json = False,
) -> int:
    """Serve the registry that connects the nodes of a mesh.

    Prints one line when it is ready, and runs until SIGTERM or SIGINT.

    Example: bitactor registry serve ipc:///run/user/1000/bitactor/registry --state registry.boot

    Parameters
    ----------
    endpoint
        ipc:///directory/name, or tcp://host:port with --curve.
    """
    work.log_to_stderr(logging.INFO if verbose else logging.WARNING, log_format)
    server = work.RegistryServer(endpoint, state, work.Curve.load(curve) if curve is not None else None)
    with StopSignals(until_stdin_closes=until_stdin_closes) as stopping:
        await asyncio.to_thread(server.start)
        try:
            if json:
                print_lines([{"ready": True, "endpoint": server.endpoint}])
            else:
                print(f"registry ready at {server.endpoint}", flush=True)
            requested = asyncio.ensure_future(stopping.requested.wait())
            ended = asyncio.ensure_future(asyncio.to_thread(server.join))
            await asyncio.wait((requested, ended), return_when=asyncio.FIRST_COMPLETED)
            requested.cancel()
        finally:
            await asyncio.to_thread(server.stop)
        try:
            await ended
        except Exception as error:
            raise CommandError(
                f"the registry has ended by a defect: {error!r}", hint="its log has the stack"
            ) from error
    return stopping.code


app = App(name="registry", help_format="plaintext")
app.default(show)
app.command(serve)
