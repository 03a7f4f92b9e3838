"""`bitactor undo ID`"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from mesh.cli.options import Curve, Json, Registry, ask, transaction_id
from mesh.cli.output import out, print_document, status_text


async def undo(
    transaction: str,
    /,
    *,
    registry: Registry = "",
    reason: Annotated[str, Parameter(help="Kept in the journal.")] = "",
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
    wanted = transaction_id(transaction)
    summary = await ask(registry, curve, lambda client: client.undo(wanted, reason))
    if json:
        print_document(summary)
    else:
        out().print(Text.assemble(f"{wanted} ", status_text(summary["status"])))
