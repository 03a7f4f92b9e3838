"""`bitactor cancel ID`, `bitactor resume ID`, `bitactor undo ID`"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from mesh.cli.exits import FAILED, OK
from mesh.cli.options import Curve, Http, Json, Registry, Store, Timeout, refuse_timeout
from mesh.cli.output import err, out, print_document, print_errors, short, status_text
from mesh.cli.places import id_beginning, open_place, transaction_id

Reason = Annotated[str, Parameter("--reason", help="Kept in the journal.")]
_NoWait = Annotated[
    bool,
    Parameter("--no-wait", negative=(), show_default=False, help="Do not wait for the end, only until it goes on."),
]


async def cancel(
    transaction: str,
    /,
    *,
    reason: Reason = "",
    http: Http = "",
    registry: Registry = "",
    store: Store = "",
    curve: Curve = None,
    json: Json = False,
) -> int:
    """Stop a running transaction and undo what it did.

    Waits until it has ended, and shows how; one that had ended before stays as it is. Asked of a node, by --http or
    --registry; --store alone says which process it would be for. Exit code 1 if it is stuck then.

    Example: bitactor cancel 01993a0e7c5b --http http://127.0.0.1:8000

    Parameters
    ----------
    transaction
        Its id, or the beginning of it.
    """
    return await _change("cancel", transaction, reason, http, registry, store, curve, machine=json)


async def resume(
    transaction: str,
    /,
    *,
    no_wait: _NoWait = False,
    timeout: Timeout = None,
    http: Http = "",
    registry: Registry = "",
    store: Store = "",
    curve: Curve = None,
    json: Json = False,
) -> int:
    """Let a halted or stuck transaction go on.

    Waits until it has ended, and shows how; its deadline has stood still meanwhile. Asked of a node, by --http or
    --registry; --store alone says which process it would be for. Exit code 1 if it did not complete, or, having been
    stuck, is not undone. Ctrl-C ends the waiting, not the transaction.

    Example: bitactor resume 01993a0e7c5b --http http://127.0.0.1:8000

    Parameters
    ----------
    transaction
        Its id, or the beginning of it.
    """
    return await _change(
        "resume", transaction, "", http, registry, store, curve, machine=json, wait=not no_wait, timeout=timeout
    )


async def undo(
    transaction: str,
    /,
    *,
    reason: Reason = "",
    http: Http = "",
    registry: Registry = "",
    store: Store = "",
    curve: Curve = None,
    json: Json = False,
) -> int:
    """Take back what a completed transaction did, the last step first, once.

    Waits until that has ended, and shows how. Asked of a node, by --http or --registry; --store alone says which
    process it would be for. Exit code 1 if it is stuck then.

    Example: bitactor undo 01993a0e7c5b --http http://127.0.0.1:8000

    Parameters
    ----------
    transaction
        Its id, or the beginning of it.
    """
    return await _change("undo", transaction, reason, http, registry, store, curve, machine=json)


async def _change(
    verb: str,
    given: str,
    reason: str,
    http: str,
    registry: str,
    store: str,
    curve: Path | None,
    *,
    machine: bool,
    wait: bool = True,
    timeout: float | None = None,
) -> int:
    """Ask for something to be done to a transaction, and show how it stands then."""
    refuse_timeout(timeout)
    beginning = id_beginning(given)
    async with open_place(store, registry, curve, http, changes=True) as place:
        wanted = await transaction_id(place, beginning)
        was_stuck = verb == "resume" and await place.status(wanted) == "stuck"
        try:
            summary = await place.change(verb, wanted, reason=reason, wait=wait, timeout=timeout)
        except asyncio.CancelledError:
            err().print(f"{wanted} goes on; 'bitactor trace {wanted}' shows how far it is")
            raise
    status = summary["status"]
    if machine:
        print_document(summary)
    else:
        out().print(Text.assemble(f"{wanted} ", status_text(status)))
        if verb == "resume" and "result" in summary:
            out().print(short(summary["result"], 100_000), soft_wrap=True)
        if status not in ("completed", "running"):
            print_errors(summary)
    if verb == "resume" and wait:
        return OK if status == "completed" or (was_stuck and status in ("compensated", "cancelled")) else FAILED
    return FAILED if status == "stuck" else OK
