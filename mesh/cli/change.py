"""`bitactor cancel ID`, `bitactor resume ID`, `bitactor undo ID`"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from mesh.cli.options import Curve, Json, Registry, ask, transaction_id
from mesh.cli.output import out, print_document, status_text
from mesh.network.client import Client

Reason = Annotated[str, Parameter("--reason", help="Kept in the journal.")]


async def cancel(
    transaction: str,
    /,
    *,
    registry: Registry = "",
    reason: Reason = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Stop a running transaction and undo what it did.

    Waits until it has ended, and shows how; one that had ended before stays as it is.

    Example: bitactor cancel 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    await _change(transaction, registry, curve, lambda client, wanted: client.cancel(wanted, reason), machine=json)


async def resume(transaction: str, /, *, registry: Registry = "", curve: Curve = None, json: Json = False) -> None:
    """Let a halted or stuck transaction go on.

    Returns at once; its deadline has stood still meanwhile.

    Example: bitactor resume 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    await _change(transaction, registry, curve, lambda client, wanted: client.resume(wanted), machine=json)


async def undo(
    transaction: str,
    /,
    *,
    registry: Registry = "",
    reason: Reason = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Take back what a completed transaction did, the last step first, once.

    Waits until that has ended, and shows how.

    Example: bitactor undo 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    await _change(transaction, registry, curve, lambda client, wanted: client.undo(wanted, reason), machine=json)


async def _change(
    transaction: str,
    registry: str,
    curve: Path | None,
    verb: Callable[[Client, str], Awaitable[dict[str, Any]]],
    *,
    machine: bool,
) -> None:
    """Ask for something to be done to a transaction, and show how it stands then."""
    wanted = transaction_id(transaction)
    summary = await ask(registry, curve, lambda client: verb(client, wanted))
    if machine:
        print_document(summary)
    else:
        out().print(Text.assemble(f"{wanted} ", status_text(summary["status"])))
